from __future__ import annotations

import pytest
import torch
from rankc.frontends.export import capture
from support import (
    BIT_EQUAL,
    EAGER_INT8,
    assert_same_graph,
    capture_small,
    lookups,
    made_up,
    operators,
    permissive_judge,
    run_passes,
)
from torch import Tensor, nn

IDS = torch.randint(0, 5, (6, 3))


class Columns(nn.Module):
    """A table per column of one input, as public models write it."""

    def __init__(self, rows: tuple[int, ...] = (5, 7, 9), widths: tuple[int, ...] = (4, 4, 4)):
        super().__init__()
        pairs = zip(rows, widths, strict=True)
        self.tables = nn.ModuleList(nn.Embedding(r, w) for r, w in pairs)

    def forward(self, ids: Tensor) -> Tensor:
        parts = [table(ids[:, index]) for index, table in enumerate(self.tables)]
        return torch.cat(parts, 1).sum(1)


def test_groups_the_columns_of_one_input() -> None:
    before = Columns()

    class Expected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.cat([t.weight for t in before.tables]))  # type: ignore[misc]
            self.register_buffer("starts", torch.tensor([0, 5, 12]))

        def forward(self, ids: Tensor) -> Tensor:
            starts = self.starts
            assert isinstance(starts, Tensor)
            rows = torch.nn.functional.embedding(ids + starts, self.rows)
            return torch.cat([rows[:, 0], rows[:, 1], rows[:, 2]], 1).sum(1)

    ran = run_passes(capture_small(before, IDS), "canonicalize,group-tables")
    assert_same_graph(ran.program, Expected(), (IDS,), tolerance=BIT_EQUAL)
    assert ran.applied("group-tables") == ["grouped 3 tables into one lookup"]


def test_groups_inputs_of_their_own_and_lists_of_ids() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.many = nn.Embedding(5, 4), nn.Embedding(9, 4)

        def forward(self, one: Tensor, many: Tensor) -> Tensor:
            return self.one(one).sum(1) + self.many(many).sum(1).sum(1)

    inputs = (IDS[:, 0].contiguous(), IDS)
    program = capture_small(Before(), *inputs)
    ran = run_passes(program, "canonicalize,group-tables,collapse-slices")
    assert len(lookups(ran.program)) == 1
    for rows in (1, 2, 6):
        few = tuple(value[:rows] for value in inputs)
        assert torch.equal(program(*few), ran.program(*few))


def test_groups_by_width() -> None:
    program = capture_small(Columns(rows=(5, 5, 5), widths=(4, 8, 4)), IDS)
    ran = run_passes(program, "canonicalize,group-tables")
    assert len(lookups(ran.program)) == 2
    assert ran.missed("group-tables") == ["no other table has its width and format"]


def test_groups_quantized_rows_with_their_scales() -> None:
    program = capture_small(Columns(), IDS)
    ran = run_passes(
        program,
        "canonicalize,place-precision,quantize-tables,group-tables,collapse-slices",
        target=EAGER_INT8,
        judge=permissive_judge(program),
        calibration=[made_up(program, 64, seed=3)],
    )
    (lookup,) = lookups(ran.program)
    assert [int(a.meta["val"].shape[0]) for a in lookup.args[:3]] == [21, 21, 21]  # type: ignore[union-attr]
    assert "cat" not in operators(ran.program)


def test_a_table_read_twice_is_grouped_at_each_reading() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return (self.table(ids[:, 0]) * self.table(ids[:, 1])).sum(1)

    program = capture_small(Twice(), IDS)
    ran = run_passes(program, "canonicalize,group-tables")
    (lookup,) = lookups(ran.program)
    assert lookup.args[0].meta["val"].shape[0] == 5, "its rows are stored once"  # type: ignore[union-attr]


def test_a_large_table_is_not_copied() -> None:
    ran = run_passes(capture_small(Columns(), IDS), "canonicalize,group-tables{max_bytes=100}")
    assert len(lookups(ran.program)) == 3
    assert ran.missed("group-tables")[0] == "its 112 B would be copied"


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_scores_are_the_same_bit_for_bit(batch: int) -> None:
    program = capture_small(Columns(), IDS)
    ran = run_passes(program, "canonicalize,group-tables,collapse-slices")
    ids = torch.randint(0, 5, (batch, 3))
    assert torch.equal(program(ids), ran.program(ids))


def test_groups_bags_that_are_slices_of_one_input() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.EmbeddingBag(5, 4, mode="sum") for _ in range(3))

        def forward(self, ids: Tensor) -> Tensor:
            return torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], 1).sum(1)

    ids = torch.randint(0, 5, (6, 3, 2))
    program = capture_small(Bags(), ids)
    ran = run_passes(program, "rounding,group-tables")
    assert len(lookups(ran.program)) == 1
    assert torch.equal(program(ids), ran.program(ids))


def test_ids_that_are_as_many_in_the_example_alone_stay_apart() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clicks, self.likes = nn.EmbeddingBag(5, 4), nn.EmbeddingBag(7, 4)

        def forward(self, lists: dict[str, dict[str, Tensor]]) -> Tensor:
            clicks, likes = (
                bag(one["values"], one["lengths"].cumsum(0) - one["lengths"])
                for bag, one in zip((self.clicks, self.likes), lists.values(), strict=True)
            )
            return (clicks * likes).sum(1)

    two = torch.full((6,), 2)
    lists = {name: {"values": torch.arange(12) % 5, "lengths": two} for name in ("a", "b")}
    program = capture(Bags().eval(), (lists,))
    ran = run_passes(program, "canonicalize,lower-embedding-bag,group-tables")
    assert ran.applied("group-tables") == []
    lists["b"] = {"values": torch.arange(3) % 5, "lengths": torch.tensor([1, 0, 0, 2, 0, 0])}
    want = program(lists)
    assert torch.allclose(ran.program(lists), want, rtol=0.0, atol=1e-6)


def test_bags_of_many_numbers_stay_apart() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5, 4) for _ in range(3))

        def forward(self, ids: Tensor) -> Tensor:
            return torch.cat([t(ids[:, i]).sum(1) for i, t in enumerate(self.tables)], 1).sum(1)

    ids = torch.randint(0, 5, (6, 3, 2))
    ran = run_passes(capture_small(Bags(), ids), "canonicalize,group-tables{max_numbers=7}")
    assert len(lookups(ran.program)) == 3
    reason = "its rows would be copied out of those of all tables"
    assert ran.missed("group-tables") == [reason] * 3


def test_columns_of_several_inputs_are_joined_by_ranges() -> None:
    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5, 4) for _ in range(5))

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            columns = [user[:, 0], user[:, 1], item[:, 2], item[:, 0], item[:, 1]]
            return torch.cat([t(c) for t, c in zip(self.tables, columns, strict=True)], 1).sum(1)

    program = capture_small(Sides(), IDS, IDS.flip(0))
    ran = run_passes(program, "canonicalize,group-tables,collapse-slices")
    assert operators(ran.program)[:5] == ["slice", "slice", "slice", "cat", "add"]
    assert torch.equal(program(IDS, IDS.flip(0)), ran.program(IDS, IDS.flip(0)))
