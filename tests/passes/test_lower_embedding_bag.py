from __future__ import annotations

from itertools import product

import pytest
import torch
from rankc.optimizer.errors import PassError
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    assert_same_graph,
    canonical,
    capture_ragged,
    capture_small,
    operators,
    run_passes,
)
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, WIDTH, BAG = 11, 3, 4
#: Sums of at most eight rows, in another order than F.embedding_bag adds them, relative to the
#: largest value of the table.
ORDER = 8 * torch.finfo(torch.float32).eps

SETTINGS = [
    (mode, padding, weighted)
    for mode, padding, weighted in product(("sum", "mean", "max"), (None, 2), (False, True))
    if mode == "sum" or not weighted
]
settings = pytest.mark.parametrize(("mode", "padding", "weighted"), SETTINGS)


class Bag(nn.Module):
    """Bags of four ids each."""

    def __init__(self, mode: str, padding: int | None, weighted: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(ROWS, WIDTH, mode=mode, padding_idx=padding)
        with torch.no_grad():
            self.bag.weight.normal_()  # the padding row too: it must not be read
        self.weighted = weighted

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.bag(ids, per_sample_weights=weights if self.weighted else None)


class RaggedBag(Bag):
    """Bags of as many ids as ``lengths`` says, all ids in a row."""

    def __init__(self, mode: str, padding: int | None, weighted: bool, last: bool) -> None:
        super().__init__(mode, padding, weighted)
        self.bag.include_last_offset = last

    def forward(self, ids: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        if not self.bag.include_last_offset:
            offsets = lengths.cumsum(0) - lengths
        return self.bag(ids, offsets, weights if self.weighted else None)


def close(got: Tensor, want: Tensor, table: Tensor) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if got.numel():
        assert float((got - want).detach().abs().max()) <= ORDER * float(table.detach().abs().max())


def draw(*shape: int) -> tuple[Tensor, Tensor]:
    """Ids, a third of them padding, and weights."""
    ids = torch.randint(ROWS, shape)
    return torch.where(torch.rand(shape) < 0.3, 2, ids), torch.randn(shape)


@settings
def test_bags_of_one_length(mode: str, padding: int | None, weighted: bool) -> None:
    module = Bag(mode, padding, weighted)
    program = canonical(module, *draw(5, BAG))
    ran = run_passes(program, "lower-embedding-bag")
    assert "embedding_bag" not in operators(ran.program)
    assert ran.applied("lower-embedding-bag") == ["lowered 1 embedding bags to lookups and sums"]
    for batch in (1, 2, 7):
        ids, weights = draw(batch, BAG)
        close(ran.program(ids, weights), module(ids, weights), module.bag.weight)
    only_padding = torch.full((3, BAG), 2)
    ones = torch.ones(3, BAG)
    close(ran.program(only_padding, ones), module(only_padding, ones), module.bag.weight)
    if padding is not None:
        assert not ran.program(only_padding, ones).any()


def test_bags_of_a_single_id() -> None:
    """``arange`` leaves its step of 1 out."""
    module = Bag("mean", 2, weighted=False)
    ran = run_passes(canonical(module, *draw(5, 1)), "lower-embedding-bag")
    assert "embedding_bag" not in operators(ran.program)
    ids, weights = draw(7, 1)
    close(ran.program(ids, weights), module(ids, weights), module.bag.weight)


@pytest.mark.parametrize("pooling", ["index", "product"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("mode", "padding", "weighted"), SETTINGS)
def test_bags_of_any_length(
    mode: str, padding: int | None, weighted: bool, last: bool, pooling: str
) -> None:
    module = RaggedBag(mode, padding, weighted, last)
    example = torch.tensor([3, 0, 2, 1])
    ids, weights = draw(6)
    program = capture_ragged(module, ids=ids, weights=weights, lengths=example)
    rows = {"ids": ids, "weights": weights, "lengths": example}
    lowered = f"lower-embedding-bag{{pooling={pooling}}}"
    ran = run_passes(program, f"canonicalize,{lowered}", rows=rows)
    assert "embedding_bag" not in operators(ran.program)
    for lengths in (
        [3, 0, 2, 1],  # an empty bag in the middle
        [0, 0, 4, 2],  # at the start
        [4, 3, 0],  # at the end
        [1, 0, 0, 0],
        [5],  # a batch of one
        [0],  # which is empty
        [0, 0, 0],  # all bags empty, no id at all
        [1, 1, 1, 1, 1],
    ):
        sizes = torch.tensor(lengths)
        ids, weights = draw(int(sizes.sum()))
        close(ran.program(ids, weights, sizes), module(ids, weights, sizes), module.bag.weight)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_bag_of_one_length_is_a_lookup_and_a_sum(mode: str) -> None:
    class Expected(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight.detach())

        def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
            pooled = F.embedding(ids, self.weight).sum([1])
            return pooled / float(BAG) if mode == "mean" else pooled

    before = Bag(mode, None, weighted=False)
    inputs = draw(5, BAG)
    ran = run_passes(canonical(before, *inputs), "lower-embedding-bag")
    assert_same_graph(ran.program, Expected(before.bag.weight), inputs, tolerance=BIT_EQUAL)


def test_a_bag_with_offsets_is_a_lookup_added_by_bag() -> None:
    class Expected(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight.detach())

        def forward(self, ids: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
            offsets = lengths.cumsum(0) - lengths
            marks = torch.zeros(ids.shape[0] + 1, dtype=torch.int64)
            ones = torch.full_like(offsets, 1, dtype=torch.int64)
            marks = marks.index_put((offsets,), ones, accumulate=True)
            bags = marks.cumsum(0)[:-1] - 1
            rows = F.embedding(ids, self.weight)
            pooled = torch.zeros(lengths.shape[0], WIDTH)
            return pooled.index_put((bags,), rows, accumulate=True)

    before = RaggedBag("sum", None, weighted=False, last=False)
    ids, weights = draw(6)
    rows = {"ids": ids, "weights": weights, "lengths": torch.tensor([3, 0, 2, 1])}
    programs = [
        run_passes(capture_ragged(module, **rows), passes, rows=rows).program
        for module, passes in (
            (before, "canonicalize,lower-embedding-bag"),
            (Expected(before.bag.weight), "canonicalize"),
        )
    ]
    inputs = tuple(rows.values())
    assert torch.equal(programs[0](*inputs), programs[1](*inputs))
    assert sorted(_plain(programs[0])) == sorted(_plain(programs[1]))


def _plain(program: object) -> list[str]:
    """Operators less those that only make sizes and zeros."""
    noise = ("sym_size", "full", "full_like", "zeros")
    return [name for name in operators(program) if name not in noise]  # type: ignore[arg-type]


def test_misses_rows_scaled_by_frequency() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(ROWS, WIDTH, mode="sum", scale_grad_by_freq=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.bag(ids)

    program = canonical(Scaled(), draw(5, BAG)[0])
    ran = run_passes(program, "lower-embedding-bag")
    assert ran.missed("lower-embedding-bag") == [
        "scale_grad_by_freq is a training option; build the bag without it"
    ]
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_offsets_that_leave_ids_over_are_not_bags_of_one_length() -> None:
    """Offsets 0, 4, 8, … but fewer than there are rows: the last bag takes all that are left."""

    class Fewer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(ROWS, WIDTH, mode="sum")

        def forward(self, ids: Tensor, bags: Tensor) -> Tensor:
            offsets = torch.arange(0, bags.shape[0] * BAG, BAG)
            return self.bag(ids.reshape(-1), offsets) + bags[:, None]

    module = Fewer()
    rows = {"ids": draw(6, BAG)[0], "bags": torch.zeros(3)}
    program = capture_ragged(module, **rows)
    ran = run_passes(program, "canonicalize,lower-embedding-bag", rows=rows)
    assert "embedding_bag" not in operators(ran.program)
    for bags, batch in ((1, 3), (4, 4), (5, 6)):
        ids, zeros = draw(batch, BAG)[0], torch.zeros(bags)
        close(ran.program(ids, zeros), module(ids, zeros), module.bag.weight)


def test_two_bags_of_one_table() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(ROWS, WIDTH, mode="mean")

        def forward(self, clicks: Tensor, likes: Tensor) -> Tensor:
            return (self.bag(clicks) * self.bag(likes)).sum(1)

    ids = draw(5, BAG)[0], draw(5, 2)[0]
    ran = run_passes(capture_small(Twice(), *ids), "canonicalize,lower-embedding-bag")
    assert operators(ran.program).count("embedding") == 2
    assert len(list(ran.program.tensors())) == 1


def test_the_target_chooses_and_an_unknown_choice_is_told() -> None:
    module = RaggedBag("sum", None, False, False)
    ids, weights = draw(6)
    inputs = {"ids": ids, "weights": weights, "lengths": torch.tensor([3, 0, 2, 1])}
    program = capture_ragged(module, **inputs)
    for target, multiplied in (("cpu-int8", False), ("l40s-fp8", True)):
        steps = "canonicalize,lower-embedding-bag"
        ran = run_passes(program, steps, rows=inputs, target=target)
        assert ("mm" in operators(ran.program)) is multiplied
    with pytest.raises(PassError, match="has no pooling 'sorted'; it is target, index or"):
        run_passes(program, "canonicalize,lower-embedding-bag{pooling=sorted}", rows=inputs)
