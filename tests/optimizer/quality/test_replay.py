"""Programs that differ in little are run in little."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program, Rewriter
from rankc.optimizer.quality.replay import Replay


def test_a_replay_gives_what_a_run_gives(program: Program) -> None:
    rows = {"dense": torch.randn(5, 6)}
    replay = Replay(rows)
    other = program.clone()
    Rewriter(other, "test").set_value("head.bias", torch.tensor([3.0]))
    for one in (program, other, program):
        (found,), (expected,) = replay.run(one).values(), one.run(rows).values()
        assert torch.equal(found, expected)
