"""Sizes that coincide: rows and ids, rows and widths, one row, starts that could be lengths."""

from __future__ import annotations

from itertools import islice, product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankc.frontends.export import capture
from rankc.optimizer.data.ragged import _owners, readings
from torch import Tensor, nn

WIDTH = 3


class Bags(nn.Module):
    """A bag of ids by starts, bounds or lengths, alone or beside dense features."""

    def __init__(self, by: str, table: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by = by
        self.bag = nn.EmbeddingBag(table, WIDTH, mode="sum", include_last_offset=by == "bounds")
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, ids: Tensor, delimiter: Tensor, dense: Tensor | None = None) -> Tensor:
        if self.by == "lengths":
            delimiter = delimiter.cumsum(0) - delimiter
        pooled = self.bag(ids, delimiter)
        return self.score(pooled if dense is None else pooled * dense).squeeze(1)  # type: ignore[no-any-return]


def rows_of(
    lengths: list[int], by: str, table: int, dense: bool, seed: int = 0
) -> tuple[Tensor, ...]:
    """Rows with so many ids each."""
    drawn = torch.Generator().manual_seed(seed)
    counts = torch.tensor(lengths, dtype=torch.int64)
    ids = torch.randint(0, table, (int(counts.sum()),), generator=drawn)
    ends = counts.cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), ends])
    delimiter = {"starts": bounds[:-1], "bounds": bounds, "lengths": counts}[by]
    extra = (torch.rand(len(counts), WIDTH, generator=drawn),) if dense else ()
    return (ids, delimiter, *extra)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    by=st.sampled_from(["starts", "bounds", "lengths"]),
    table=st.sampled_from([3, 6, 23]),
    dense=st.booleans(),
)
def test_whatever_sizes_coincide(lengths: list[int], by: str, table: int, dense: bool) -> None:
    model = Bags(by, table).eval()
    program = capture(model, rows_of(lengths, by, table, dense))
    for other in ([1], [2, 0, 1], [0, 2] * 4):
        batch = rows_of(other, by, table, dense, seed=1)
        with torch.no_grad():
            assert torch.allclose(program(*batch), model(*batch), atol=1e-6)


@pytest.mark.parametrize("lengths", [[2, 2, 2], [1, 1, 1], [0, 1, 2], [1], [2, 1], [6, 0, 0]])
@pytest.mark.parametrize("by", ["starts", "bounds", "lengths"])
def test_sizes_that_fit_several_readings(lengths: list[int], by: str) -> None:
    model = Bags(by, 6).eval()
    program = capture(model, rows_of(lengths, by, 6, dense=False))
    batch = rows_of([0, 3, 1, 2], by, 6, dense=False, seed=1)
    with torch.no_grad():
        assert torch.allclose(program(*batch), model(*batch), atol=1e-6)


class Wide(nn.Module):
    """Widths, tables and numbers of rows that could be mistaken for one another."""

    def __init__(self, width: int, table: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(table, width)
        self.scale = nn.Parameter(torch.rand(width))
        self.score = nn.Linear(width, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        mixed = self.table(ids) * self.scale + dense.mean(1, keepdim=True) * self.scale
        similar = mixed @ self.table.weight.t()
        return self.score(mixed).squeeze(1) + similar.softmax(1)[:, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("rows", "width", "table"),
    [(1, 1, 1), (3, 3, 3), (2, 1, 2), (5, 23, 25), (23, 23, 23), (6, 276, 23), (1, 27, 29)],
)
def test_dense_models_of_any_sizes(rows: int, width: int, table: int) -> None:
    model = Wide(width, table).eval()

    def batch(count: int) -> tuple[Tensor, Tensor]:
        drawn = torch.Generator().manual_seed(count)
        ids = torch.randint(0, table, (count,), generator=drawn)
        return ids, torch.rand(count, width, generator=drawn)

    program = capture(model, batch(rows))
    for count in (1, 3, 64):
        with torch.no_grad():
            assert torch.allclose(program(*batch(count)), model(*batch(count)), atol=1e-6)


def test_lists_of_offsets_and_of_ids_in_turn() -> None:
    """``facebookresearch/dlrm``'s call with as many ids as rows in one of the lists."""

    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bags = nn.ModuleList(nn.EmbeddingBag(9, WIDTH, mode="sum") for _ in range(2))

        def forward(self, offsets: list[Tensor], ids: list[Tensor]) -> Tensor:
            return sum(  # type: ignore[return-value]
                bag(i, o).sum(1) for bag, i, o in zip(self.bags, ids, offsets, strict=True)
            )

    model = Lists().eval()
    offsets = [torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])]
    ids = [torch.tensor([3, 1, 8]), torch.tensor([2, 5])]
    program = capture(model, (offsets, ids))
    other = ([torch.tensor([0, 2]), torch.tensor([0, 1])], [torch.arange(3), torch.arange(4)])
    with torch.no_grad():
        assert torch.allclose(program(*other), model(*other), atol=1e-6)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    fitting=st.lists(
        st.lists(st.sampled_from([None, "a", "b", "c"]), unique=True).map(tuple), max_size=5
    ),
    missing=st.frozensets(st.sampled_from("abc")),
)
def test_choices_are_those_of_all_that_fit_in_the_same_order(
    fitting: list[tuple[str | None, ...]], missing: frozenset[str]
) -> None:
    wanted = [owners for owners in product(*fitting) if missing <= set(owners)]
    assert list(_owners(fitting, missing)) == wanted


@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_many_columns_of_one_number_a_row_are_read_at_once(zeros: int) -> None:
    """Sixty columns; each choice of what could delimit them would be tried, 2 to the 60."""
    ids = {f"id{place}": torch.randint(1, 9, (16,)) for place in range(4 - zeros)}
    empty = {f"zero{place}": torch.zeros(16, dtype=torch.int64) for place in range(zeros)}
    columns = {f"x{place}": torch.rand(16) for place in range(60)}
    found = list(islice(readings(ids | empty | columns), 100))
    assert found[0] == ()
    assert len(found) == (1 if zeros == 0 else 100)
