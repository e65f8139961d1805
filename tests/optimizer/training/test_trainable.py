"""Programs learn through their codes."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.training.trainable import Trainable


def test_gradients_reach_every_weight_and_come_back(program: Program) -> None:
    trainable = Trainable(program)
    rows = {"dense": torch.randn(5, 6)}
    trainable.check_learns(rows)
    assert len(trainable.leaves) == 12
    state = trainable.state()
    with torch.no_grad():
        for leaf in trainable.leaves.values():
            leaf.zero_()
    trainable.restore(state)
    made = trainable.trained()
    expected, found = program.run(rows), made.run(rows)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
