"""Mixtures of experts are found with their gate."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.mixtures import find_mixtures
from support import canonical
from torch import Tensor, nn


class Mixed(nn.Module):
    """Two experts, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        self.gate = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        stacked = torch.stack([e(x).relu() for e in self.experts], 1)
        return (stacked * gate.unsqueeze(-1)).sum(1)


def test_a_weighted_sum_is_a_mixture() -> None:
    (found,) = find_mixtures(canonical(Mixed(), torch.randn(5, 4)))
    assert found.width == 3
    assert len(found.experts) == 2
    assert found.gate.target is torch.ops.aten.softmax.int
    assert found.owns_gate
