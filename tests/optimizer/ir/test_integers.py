"""Which values integers can have."""

from __future__ import annotations

import torch
from rankc.optimizer.ir.integers import IntegerRanges, Range
from support import canonical
from torch import Tensor, nn


class Hashed(nn.Module):
    """Ids hashed into 100 buckets, shifted, and looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids % 100 + 50).sum(-1)


def test_a_modulo_and_a_shift_bound_what_is_looked_up() -> None:
    program = canonical(Hashed(), torch.arange(6))
    (lookup,) = program.graph.find_nodes(
        op="call_function", target=torch.ops.aten.embedding.default
    )
    assert IntegerRanges().of(lookup.args[1]) == Range(50, 149)


def test_ranges_join_and_meet() -> None:
    assert Range(0, 3) | Range(2, 9) == Range(0, 9)
    assert Range(0, 3) & Range(2, 9) == Range(2, 3)
    assert Range(0, 3).within(0, 5)
