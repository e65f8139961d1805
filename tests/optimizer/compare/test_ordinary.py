"""Ordinary rows are ones that the program scores."""

from __future__ import annotations

import torch
from rankc.optimizer.compare.ordinary import ordinary
from rankc.optimizer.ir import Program


def test_ordinary_rows_have_finite_scores(program: Program) -> None:
    rows = ordinary(program, 16, seed=1)
    assert len(rows) == 16
    assert all(bool(torch.isfinite(v).all()) for v in program.run(rows.features).values())
