"""The pass that moved a score is found."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rankc.optimizer.diagnose.bisect import bisect
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline


def test_where_all_is_good_there_is_no_culprit(
    program: Program, context: Callable[..., PassContext]
) -> None:
    rows = {"dense": torch.randn(4, 6)}
    expected = program.run(rows)

    def good(candidate: Program) -> bool:
        found = candidate.run(rows)
        return all(torch.allclose(found[name], expected[name]) for name in expected)

    assert bisect(program, Pipeline.parse("eliminate"), good, context(rows=None)) is None
