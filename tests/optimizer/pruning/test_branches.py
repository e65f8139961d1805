"""Whole operands of sums may go."""

from __future__ import annotations

import torch
from rankc.optimizer.pruning.branches import branches
from rankc.optimizer.pruning.dependence import Scene
from support import canonical
from torch import Tensor, nn


class Residual(nn.Module):
    """A block that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.tanh()
        return self.head(hidden + self.block(hidden).relu()).squeeze(-1)


def test_a_residual_block_is_a_branch() -> None:
    program = canonical(Residual(), torch.randn(3, 4))
    found = [node for node, *_ in branches(Scene(program))]
    assert any(node.target is torch.ops.aten.add.Tensor for node in found)
