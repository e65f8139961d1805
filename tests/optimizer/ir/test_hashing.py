"""What a model does to ids before it looks them up, in words."""

from __future__ import annotations

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.ir.hashing import hashing_of
from torch import Tensor, nn

IDS = torch.arange(6)


class Lookup(nn.Module):
    """Looks up what ``hashed`` makes of the ids."""

    def __init__(self, hashed) -> None:
        super().__init__()
        self.table, self.hashed = nn.Embedding(100, 4), hashed
        self.register_buffer("shift", torch.tensor([3, 5]))

    def forward(self, ids: Tensor) -> Tensor:
        found = self.hashed(self, ids)
        rows = found if isinstance(found, tuple) else (found,)
        return sum(self.table(r).reshape(len(ids), -1)[:, :4].sum(1) for r in rows)


@pytest.mark.parametrize(
    ("hashed", "ways"),
    [
        (lambda m, ids: ids, ("nothing",)),
        (lambda m, ids: ids % 100, ("modulo 100",)),
        (lambda m, ids: (ids * 31 + 7) % 100, ("times 31, plus 7, modulo 100",)),
        (lambda m, ids: torch.bitwise_xor(ids, 5) & 63, ("xor 5, and 63",)),
        (lambda m, ids: ids.clamp(0, 50), ("clamp to 0 50",)),
        (lambda m, ids: (ids, ids % 10), ("modulo 10", "nothing")),
        (lambda m, ids: ids[:, None] + m.shift, ("plus [3, 5]",)),
        (lambda m, ids: ids.view(-1, 1).squeeze(1), ("nothing",)),
    ],
)
def test_ways_to_the_table(hashed, ways: tuple[str, ...]) -> None:
    program = capture(Lookup(hashed).eval(), (IDS,))
    (placeholder,) = program.graph.find_nodes(op="placeholder")
    assert hashing_of(placeholder) == ways


def test_a_feature_that_is_not_looked_up_has_none() -> None:
    class Dense(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return (ids % 3).float()

    program = capture(Dense().eval(), (IDS,))
    (placeholder,) = program.graph.find_nodes(op="placeholder")
    assert hashing_of(placeholder) == ()
