from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, operators, run_passes
from torch import Tensor, nn

X = torch.randn(6, 4, 3)
PAIRS = list(combinations(range(4), 2))
LEFT, RIGHT = (torch.tensor(side) for side in zip(*PAIRS, strict=True))


class Rows(nn.Module):
    """``body(x, linears)``, summed; a linear for each of the six pairs."""

    def __init__(self, body: Callable[..., Tensor], *, biased: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(3, 3, bias=biased) for _ in PAIRS)
        self.register_buffer("left", LEFT)
        self.register_buffer("right", RIGHT)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(torch.relu(x), self)).flatten(1).sum(1)


def batched(body: Callable[..., Tensor]) -> Ran:
    """Without duplicates first, as in a pipeline: a row's linear is called in many pairs."""
    program = run_passes(canonical(Rows(body), X), "eliminate").program
    return run_passes(program, "batch-row-products")


def _written(pick: Callable[[int, int], int] | None, *, stacked: bool) -> Callable[..., Tensor]:
    """The products as a loop over pairs, with a linear each, of a field, for all, or none."""

    def body(x: Tensor, model: Rows) -> Tensor:
        rows = x.unbind(1) if stacked else x.split(1, 1)
        products = []
        for pair, (i, j) in enumerate(PAIRS):
            left = rows[i] if pick is None else model.linears[pick(pair, i)](rows[i])
            products.append(left * rows[j])
        return torch.stack(products, 1) if stacked else torch.cat(products, 1)

    return body


def _plain(x: Tensor, model: Rows) -> Tensor:
    return x[:, model.left] * x[:, model.right]


def _shared(x: Tensor, model: Rows) -> Tensor:
    linear = model.linears[0]
    return linear(x[:, :3])[:, model.left] * x[:, model.right]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("pick", "expected"),
    [(None, _plain), (lambda pair, i: 0, _shared)],
    ids=["no matrix", "one for all"],
)
def test_before_and_expected(
    pick: Callable[[int, int], int] | None, expected: Callable[..., Tensor], stacked: bool
) -> None:
    ran = batched(_written(pick, stacked=stacked))
    assert_same_graph(ran.program, Rows(expected), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("batch-row-products") == ["computed 6 products of rows at once"]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_linears_over_one_row_are_merged(biased: bool, stacked: bool) -> None:
    module = Rows(_written(lambda pair, i: pair, stacked=stacked), biased=biased)
    ran = run_passes(canonical(module, X), "batch-row-products")
    # Three of the four rows stand on the left of some pair.
    assert operators(ran.program).count("linear") == 3
    assert operators(ran.program).count("mul") == 1


def test_runs_of_both_kinds_in_one_stack() -> None:
    def body(x: Tensor, model: Rows) -> Tensor:
        rows = x.unbind(1)
        parts = [
            linear(rows[i]) * rows[j] for linear, (i, j) in zip(model.linears, PAIRS, strict=True)
        ]
        parts += [rows[0], *(rows[i] * rows[j] for i, j in PAIRS), rows[1]]
        return torch.stack(parts, 1)

    program = canonical(Rows(body), X)
    ran = run_passes(program, "batch-row-products")
    assert ran.applied("batch-row-products") == ["computed 6 products of rows at once"] * 2
    assert operators(ran.program).count("mul") == 2
    assert torch.allclose(program(X), ran.program(X), rtol=0.0, atol=1e-6)


def test_a_product_that_is_joined_twice() -> None:
    def body(x: Tensor, model: Rows) -> Tensor:
        rows = x.unbind(1)
        products = [rows[i] * rows[j] for i, j in PAIRS]
        return torch.stack([products[0], rows[0], *products], 1)

    program = canonical(Rows(body), X)
    ran = run_passes(program, "batch-row-products")
    assert ran.outcomes == [Outcome.CHANGED]
    assert torch.equal(program(X), ran.program(X))


def _few(x: Tensor, model: Rows) -> Tensor:
    rows = x.unbind(1)
    return torch.stack([rows[i] * rows[j] for i, j in PAIRS[:5]], 1)


def _read_twice(x: Tensor, model: Rows) -> Tensor:
    rows = x.unbind(1)
    products = [rows[i] * rows[j] for i, j in PAIRS]
    return torch.stack([*products, products[0].exp()], 1)


def _both(x: Tensor, model: Rows) -> Tensor:
    rows = x.unbind(1)
    pairs = zip(model.linears, PAIRS, strict=True)
    return torch.stack([linear(rows[i]) * linear(rows[j]) for linear, (i, j) in pairs], 1)


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (_few, ["it has too few products of rows"]),
        (_read_twice, ["products of its rows are used elsewhere too"]),
        (_both, []),
        (lambda x, model: torch.stack([row + row for row in x.unbind(1)] * 2, 1), []),
        (lambda x, model: torch.cat([row * row for row in x.unbind(1)] * 2, 1), []),
    ],
    ids=["few", "read twice", "linears on both sides", "sums", "side by side"],
)
def test_near_misses(body: Callable[..., Tensor], reasons: list[str]) -> None:
    ran = batched(body)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("batch-row-products") == reasons
