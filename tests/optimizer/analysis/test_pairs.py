"""Which dot products a value holds."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.pairs import PairTracer
from support import canonical
from torch import Tensor, nn


class Triangle(nn.Module):
    """Products of all pairs of three rows."""

    def __init__(self) -> None:
        super().__init__()
        row, column = torch.triu_indices(3, 3, 1)
        self.register_buffer("row", row)
        self.register_buffer("column", column)

    def forward(self, x: Tensor) -> Tensor:
        every = torch.bmm(x, x.transpose(1, 2))
        return every[:, self.row, self.column].relu()


def test_a_triangle_is_three_pairs() -> None:
    program = canonical(Triangle(), torch.randn(4, 3, 2))
    (last,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    found = PairTracer(program).pairs(last.args[0])  # type: ignore[arg-type]
    assert found is not None
    assert sorted(map(sorted, found.tolist())) == [[0, 1], [0, 2], [1, 2]]
