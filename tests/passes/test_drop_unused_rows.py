from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn

IDS = torch.tensor([[3, 70], [99, 12], [41, 5]])


class Hashed(nn.Module):
    """``hash(ids)`` looked up in a table of so many rows."""

    def __init__(self, hashing: Callable[[Tensor], Tensor], rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(100, 8)
        self.table.weight = nn.Parameter(self.table.weight.detach()[:rows])
        self.hashing = hashing

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(self.hashing(ids)).sum((1, 2))


def dropped(module: nn.Module) -> Ran:
    return run_passes(canonical(module, IDS), "drop-unused-rows")


@pytest.mark.parametrize(
    ("hashing", "rows"),
    [
        (lambda ids: ids % 20, 20),
        (lambda ids: (ids % 20).unsqueeze(-1).squeeze(-1), 20),
        (lambda ids: ids & 31, 32),
        (lambda ids: ids.clamp(0, 9), 10),
        (lambda ids: ids.clamp(max=9), 10),
    ],
)
def test_before_and_expected(hashing: Callable[[Tensor], Tensor], rows: int) -> None:
    ran = dropped(Hashed(hashing, 100))
    assert ran.outcomes == [Outcome.CHANGED]
    assert_same_graph(ran.program, Hashed(hashing, rows), (IDS,), tolerance=BIT_EQUAL)
    assert ran.applied("drop-unused-rows") == [f"dropped {100 - rows} rows that no id reaches"]


@pytest.mark.parametrize(
    "hashing",
    [
        lambda ids: ids,
        lambda ids: ids % 100,
        lambda ids: ids % 20 + 50,
        lambda ids: ids.clamp(min=1),
        lambda ids: torch.where(ids > 50, ids % 20, ids),
    ],
)
def test_ids_that_reach_every_row(hashing: Callable[[Tensor], Tensor]) -> None:
    assert dropped(Hashed(hashing, 100)).outcomes == [Outcome.UNCHANGED]


def test_two_lookups_keep_what_either_reaches() -> None:
    class Twice(Hashed):
        def forward(self, ids: Tensor) -> Tensor:
            return (self.table(ids % 20) * self.table(ids % 30)).sum((1, 2))

    ran = dropped(Twice(lambda ids: ids, 100))
    assert [len(v) for _, v in ran.program.tensors()] == [30]


def test_misses_a_table_that_something_else_reads() -> None:
    class Tied(Hashed):
        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids % 20).sum((1, 2)) + self.table.weight.sum()

    ran = dropped(Tied(lambda ids: ids, 100))
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("drop-unused-rows") == ["something else than lookups reads it"]
