"""Which side a value depends on."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.lineage import Lineage, lineage
from support import canonical
from torch import Tensor, nn


class Sides(nn.Module):
    """One of each side, and both."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return user.relu().sum(-1) + item.tanh().sum(-1)


def test_values_are_of_one_side_until_they_meet() -> None:
    program = canonical(Sides(), torch.randn(3, 2), torch.randn(3, 2))
    found = {node.name: kind for node, kind in lineage(program, ("user",)).items()}
    assert found["relu"] is Lineage.USER
    assert found["tanh"] is Lineage.ITEM
    assert found["add"] is Lineage.BOTH
