"""A linear is put into its format."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.sites import linear_sites
from rankc.optimizer.ir import Program, Rewriter, verify
from rankc.optimizer.ir.facts import Precision
from rankc.optimizer.ir.ops import HALF_LINEAR
from rankc.optimizer.precision.linear_formats import realise


def test_it_scores_nearly_as_before(program: Program) -> None:
    rows = {"dense": torch.randn(16, 6)}
    (expected,) = program.run(rows).values()
    realise(Rewriter(program, "test"), linear_sites(program)[0], Precision("bf16"))
    verify(program)
    (found,) = program.run(rows).values()
    assert len(linear_sites(program)) == 5
    assert program.graph.find_nodes(op="call_function", target=HALF_LINEAR.op)
    assert float((found - expected).abs().max()) < 0.02
