from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn

X = torch.randn(5, 3, 32)


class Body(nn.Module):
    """``body(x, linear)``, summed."""

    def __init__(self, body: Callable[..., Tensor], *, biased: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2, bias=biased)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x, self.linear)).flatten(1).sum(1)


def mixed(body: Callable[..., Tensor], x: Tensor = X, *, biased: bool = True) -> Ran:
    return run_passes(canonical(Body(body, biased=biased), x), "mix-tokens")


def _left(x: Tensor, linear: nn.Linear) -> Tensor:
    made = linear.weight @ x
    return made if linear.bias is None else made + linear.bias[:, None]


def _twice(x: Tensor, linear: nn.Linear) -> Tensor:
    return linear(x.transpose(1, 2)).transpose(1, 2)


def _flat(x: Tensor, linear: nn.Linear) -> Tensor:
    return linear(x.transpose(1, 2).reshape(-1, 3)).view(-1, 32, 2).transpose(1, 2)


@pytest.mark.parametrize("before", [_twice, _flat])
@pytest.mark.parametrize("biased", [True, False])
def test_before_and_expected(before: Callable[..., Tensor], biased: bool) -> None:
    ran = mixed(before, biased=biased)
    if biased:
        column = Body(_left).linear.bias.detach()[:, None]

        class Expected(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.weight = nn.Linear(3, 2).weight
                self.column = nn.Parameter(column)

            def forward(self, x: Tensor) -> Tensor:
                return torch.relu(self.weight @ x + self.column).flatten(1).sum(1)

        assert_same_graph(ran.program, Expected(), (X,), tolerance=BIT_EQUAL)
    else:
        assert_same_graph(ran.program, Body(_left, biased=False), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("mix-tokens") == ["mixed rows by a product from the left"]


def test_rows_that_were_flat_before() -> None:
    program = canonical(
        Body(lambda x, linear: _twice(torch.relu(x).view(-1, 3, 32), linear)), X.flatten(1)
    )
    ran = run_passes(program, "mix-tokens")
    assert ran.outcomes == [Outcome.CHANGED]


@pytest.mark.parametrize(
    ("body", "x", "reasons"),
    [
        (_twice, X[..., :31], ["its rows are too narrow for a product from the left"]),
        (lambda x, linear: linear(x.transpose(1, 2)), X, ["its result isn't transposed back"]),
        (
            lambda x, linear: linear(x.transpose(1, 2)).view(-1, 4, 8, 2).transpose(1, 2),
            X,
            ["its result isn't transposed back"],
        ),
        (lambda x, linear: linear(x.reshape(-1, 32, 3)).transpose(1, 2), X, []),
        (lambda x, linear: _twice(x[:, 1:], linear), torch.randn(5, 4, 32), []),
    ],
    ids=["narrow", "not turned back", "turned elsewhere", "no transpose", "a part"],
)
def test_near_misses(body: Callable[..., Tensor], x: Tensor, reasons: list[str]) -> None:
    ran = mixed(body, x)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("mix-tokens") == reasons
