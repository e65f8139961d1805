"""NaN in, NaN out, past codes that have none."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program, Rewriter
from rankc.optimizer.precision.carry import carry_nan


def test_without_codes_nothing_is_added(program: Program) -> None:
    before = program.fingerprint()
    assert carry_nan(Rewriter(program, "test")) == 0
    assert program.fingerprint() == before
    x = torch.full((2, 6), float("nan"))
    assert all(bool(v.isnan().all()) for v in program.run({"dense": x}).values())
