from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from interactions import Attention, Sizes
from rankc.optimizer.report.records import Outcome
from support import (
    EAGER_INT8,
    ONE_ROUNDING,
    Ran,
    assert_same_graph,
    canonical,
    operators,
    run_passes,
)
from torch import Tensor, nn

X = torch.randn(5, 6, 8)
WAYS = ("split", "rows first", "whole", "viewed")


class Summed(nn.Module):
    """A module over rows, summed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found.sum((1, 2))


def recast(inner: nn.Module, passes: str = "recast-attention", x: Tensor = X) -> Ran:
    torch.manual_seed(0)
    return run_passes(canonical(Summed(inner), x), passes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_over_inputs_however_it_is_written(way: str, heads: int, biased: bool) -> None:
    attention = Attention(Sizes(6, 8, 0), heads, way, biased=biased)
    ran = recast(attention, "raise-linears,recast-attention{max_ratio=9.0},eliminate,cancel-views")
    said = ran.applied("recast-attention")
    assert said == ["computed attention over the inputs of its keys and values"]
    products = [name for name in operators(ran.program) if name in ("matmul", "bmm")]
    assert len(products) == 2
    assert operators(ran.program).count("linear") == 3, "queries, values and the one after"
    assert "permute" not in operators(ran.program)


@pytest.mark.parametrize("way", WAYS)
def test_head_by_head_however_it_is_written(way: str) -> None:
    attention = Attention(Sizes(6, 8, 0), 2, way, biased=True)
    ran = recast(attention, "raise-linears,recast-attention{max_ratio=0.0},eliminate,cancel-views")
    assert ran.applied("recast-attention") == ["computed attention head by head"]
    names = operators(ran.program)
    assert (names.count("matmul"), names.count("linear")) == (4, 7)
    assert names.count("transpose") == 2, "one for each head's keys"


def test_before_and_expected_over_inputs() -> None:
    torch.manual_seed(0)
    query, key, value = (nn.Linear(8, 8) for _ in range(3))

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = query, key, value

        def forward(self, x: Tensor) -> Tensor:
            shape = (-1, 6, 2, 4)
            q, k, v = (m(x).view(shape).transpose(1, 2) for m in (self.query, self.key, self.value))
            mixed = torch.softmax(q @ k.transpose(2, 3) / 2.0, -1) @ v
            return mixed.transpose(1, 2).reshape(-1, 6, 8).sum((1, 2))

    q, k, v = (m.weight.detach().double().view(2, 4, 8) for m in (query, key, value))
    folded = torch.cat([0.5 * k[h].T @ q[h] for h in range(2)])
    bias = torch.cat(
        [0.5 * k[h].T @ query.bias.detach().double()[4 * h : 4 * h + 4] for h in (0, 1)]
    )

    class Expected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.folded = nn.Parameter(folded.float())
            self.bias = nn.Parameter(bias.float())
            self.blocks = nn.Parameter(torch.block_diag(*v).float())
            self.value_bias = nn.Parameter(value.bias.detach())

        def forward(self, x: Tensor) -> Tensor:
            rows = F.linear(x, self.folded, self.bias).reshape(-1, 12, 8)
            weights = torch.softmax(rows @ x.transpose(1, 2), -1)
            mixed = (weights @ x).reshape(-1, 6, 16)
            return F.linear(mixed, self.blocks, self.value_bias).sum((1, 2))

    ran = run_passes(canonical(Before(), X), "recast-attention{max_ratio=9.0}")
    assert_same_graph(ran.program, Expected(), (X,), tolerance=ONE_ROUNDING)


class Pooled(nn.Module):
    """One query over a history, masked in one of several ways."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x[:, :1]).view(-1, 1, 2, 4).transpose(1, 2)
        k = self.key(x).view(-1, 6, 2, 4).permute(0, 2, 3, 1)
        v = self.value(x).view(-1, 6, 2, 4).transpose(1, 2)
        scores = self.mask(q @ k / 2.0, x)
        return (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(-1, 8)


def _padding(x: Tensor) -> Tensor:
    return (x[..., 0] > 0)[:, None, None]


@pytest.mark.parametrize(
    "mask",
    [
        lambda scores, x: scores.masked_fill(_padding(x), -1e9),
        lambda scores, x: scores + _padding(x) * -1e9,
        lambda scores, x: scores.masked_fill(_padding(x), -1e9) + x[:, None, None, :, 1],
    ],
    ids=["filled", "added", "both"],
)
def test_one_query_over_a_masked_history(mask: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    program = canonical(Rows(Pooled(mask)), X)
    ran = run_passes(program, "recast-attention,cancel-views,compose-linears")
    assert len(ran.applied("recast-attention")) == 1
    assert not any(shape == (6, 8) for shape in linear_shapes(ran)), "the history isn't projected"


class Rows(nn.Module):
    """A module of ``[B, 8]``, summed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found.sum(1)


def linear_shapes(ran: Ran) -> list[tuple[object, ...]]:
    """What the linears give, less the batch."""
    nodes = ran.program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    return [tuple(node.meta["val"].shape[1:]) for node in nodes]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (
            lambda scores, x: scores + torch.stack([x[:, :1, 0], x[:, :1, 1]], 1)[..., None],
            "its mask differs from head to head or from query to query",
        ),
        (lambda scores, x: scores.masked_fill(_padding(x), 0.0), None),
        (lambda scores, x: scores.masked_fill(_padding(x), -1e9) * 0.5, None),
        (lambda scores, x: torch.relu(scores), None),
    ],
    ids=["per head", "filled with 0", "scaled after the mask", "something else"],
)
def test_masks_that_are_left_alone(
    mask: Callable[[Tensor, Tensor], Tensor], reason: str | None
) -> None:
    ran = run_passes(canonical(Rows(Pooled(mask)), X), "recast-attention")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("recast-attention") == ([reason] if reason else [])


class Odd(nn.Module):
    """Attention in which one thing is out of the ordinary."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.odd == "values aren't a linear's":
            v = torch.relu(v)
        q, k, v = (each.view(-1, 6, 2, 4).transpose(1, 2) for each in (q, k, v))
        if self.odd == "keys are cut otherwise":
            k = k.flip(1) if False else torch.cat([k[:, 1:], k[:, :1]], 1)
        weights = torch.softmax(q @ k.transpose(2, 3), 1 if self.odd == "over heads" else -1)
        mixed = weights @ v
        if self.odd == "heads are summed":
            return mixed.sum(1)
        if self.odd == "weights are read":
            return mixed.transpose(1, 2).reshape(-1, 6, 8) + weights.sum((1, 3))[..., None]
        return mixed.transpose(1, 2).reshape(-1, 6, 8)


@pytest.mark.parametrize(
    ("odd", "reasons"),
    [
        (
            "values aren't a linear's",
            ["its queries, keys or values aren't heads of linears over rows"],
        ),
        ("heads are summed", ["its heads aren't put side by side again"]),
        ("over heads", []),
        ("weights are read", []),
    ],
)
def test_near_misses(odd: str, reasons: list[str]) -> None:
    ran = recast(Odd(odd))
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("recast-attention") == reasons


def test_heads_that_meet_crosswise_are_found() -> None:
    ran = recast(Odd("keys are cut otherwise"))
    assert len(ran.applied("recast-attention")) == 1


def test_many_heads_are_left_alone() -> None:
    ran = recast(
        Attention(Sizes(6, 8, 0), 2, "viewed", biased=True),
        "recast-attention{max_ratio=0.0,max_heads=1}",
    )
    assert ran.missed("recast-attention") == ["neither over inputs nor per head is it cheaper"]


def test_gpus_are_left_alone() -> None:
    program = canonical(Summed(Attention(Sizes(6, 8, 0), 2, "viewed", biased=True)), X)
    ran = run_passes(program, "recast-attention", target="h100-fp8")
    assert ran.outcomes == [Outcome.SKIPPED]
    assert run_passes(program, "recast-attention", target=EAGER_INT8).outcomes == [Outcome.CHANGED]
