"""Where views take elements from, for one row."""

from __future__ import annotations

import torch
from rankc.optimizer.pruning.one_row import OneRow
from support import canonical
from torch import Tensor, nn


class Joined(nn.Module):
    """Two halves in the other order."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(2, 1)
        return torch.cat([right, left], 1).relu()


def test_a_join_of_parts_is_a_permutation() -> None:
    program = canonical(Joined(), torch.randn(3, 4))
    row = OneRow(program)
    (join,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    moved = row.moves(join)
    assert moved is not None
    assert row.shape(join) == (1, 4)
    assert sorted(moved.index.flatten().tolist()) == [0, 1, 2, 3]
    (relu,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert row.moves(relu) is None
