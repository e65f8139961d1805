from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import ONE_ROUNDING, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 3, 8)


class Chain(nn.Module):
    """``body(x, linears)`` over a chain of linears of these widths, summed."""

    def __init__(
        self, *widths: int, biases: tuple[bool, ...] = (), body: Callable[..., Tensor] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        pairs = list(pairwise(widths))
        biases = biases or (True,) * len(pairs)
        self.linears = nn.ModuleList(
            nn.Linear(*pair, bias=bias) for pair, bias in zip(pairs, biases, strict=True)
        )
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        if self.body is not None:
            x = self.body(x, *self.linears)
        else:
            for linear in self.linears:
                x = linear(x)
        return torch.relu(x).flatten(1).sum(1)


class Composed(nn.Module):
    """The chain as one linear, its weights multiplied in fp64."""

    def __init__(self, chain: Chain, body: Callable[..., Tensor] = F.linear) -> None:
        super().__init__()
        first, *others = chain.linears
        weight, bias = first.weight.double(), first.bias
        bias = None if bias is None else bias.double()
        for linear in others:
            own, added = linear.weight.double(), linear.bias
            bias = None if bias is None else own @ bias
            if added is not None:
                bias = added.double() if bias is None else bias + added.double()
            weight = own @ weight
        self.weight = nn.Parameter(weight.float().detach())
        self.bias = None if bias is None else nn.Parameter(bias.float().detach())
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x, self.weight, self.bias)).flatten(1).sum(1)


def composed(chain: Chain) -> Ran:
    return run_passes(canonical(chain, X), "compose-linears")


@pytest.mark.parametrize(
    "biases", [(True, True), (False, False), (True, False), (False, True)], ids=str
)
def test_before_and_expected(biases: tuple[bool, bool]) -> None:
    chain = Chain(8, 8, 3, biases=biases)
    ran = composed(chain)
    assert_same_graph(ran.program, Composed(chain), (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("compose-linears") == ["composed 1 linears with the linears before them"]


def test_a_chain_collapses() -> None:
    chain = Chain(8, 16, 8, 2, biases=(False, False, False))
    # Two steps round twice.
    assert_same_graph(composed(chain).program, Composed(chain), (X,), tolerance=4 * ONE_ROUNDING)


def test_with_rows_reshaped_in_between() -> None:
    def before(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
        return second(first(x).reshape(-1, 8))

    def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias).reshape(-1, 3)

    def whole(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *rest: body(x, *rest).view(-1, 9)

    chain = Chain(8, 8, 3, body=whole(before))
    ran = composed(chain)
    assert ran.outcomes == [Outcome.CHANGED]
    rows = run_passes(canonical(Composed(chain, whole(expected)), X), "cancel-views").program
    again = run_passes(ran.program, "cancel-views").program
    assert_same_graph(again, rows, (X,), tolerance=ONE_ROUNDING)


def _twice(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    hidden = first(x)
    return torch.cat([second(hidden), hidden], -1)


@pytest.mark.parametrize(
    ("chain", "reasons"),
    [
        (Chain(8, 8, 3, body=_twice), ["the linear before it has other users"]),
        (Chain(8, 2, 8), ["composed they would have more weights"]),
        (Chain(8, 8, 3, body=lambda x, a, b: b(torch.relu(a(x)))), []),
        (Chain(8, 8, 4, body=lambda x, a, b: b(a(x).transpose(1, 2).reshape(-1, 3, 8))), []),
    ],
    ids=["read twice", "low rank", "between", "turned"],
)
def test_near_misses(chain: Chain, reasons: list[str]) -> None:
    ran = composed(chain)
    assert ran.missed("compose-linears") == reasons
    assert ran.outcomes == [Outcome.UNCHANGED]
