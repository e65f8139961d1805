from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn

X = torch.randn(5, 3, 4)


class Body(nn.Module):
    """``body(x, linear)``, summed."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 6)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x, self.linear)).flatten(1).sum(1)


def cancelled(body: Callable[..., Tensor]) -> Ran:
    return run_passes(canonical(Body(body), X), "cancel-views")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (
            lambda x, linear: torch.relu(x).transpose(0, 1).reshape(3, -1, 2, 2).transpose(0, 1),
            lambda x, linear: torch.relu(x).reshape(-1, 3, 2, 2),
        ),
        (
            lambda x, linear: torch.relu(x).transpose(1, 2).permute(2, 0, 1).transpose(0, 1),
            lambda x, linear: torch.relu(x),
        ),
        (
            lambda x, linear: linear(x.transpose(0, 1)).transpose(0, 1),
            lambda x, linear: linear(x),
        ),
        (
            lambda x, linear: (
                linear(x.transpose(0, 1).reshape(-1, 4)).view(3, -1, 6).transpose(0, 1)
            ),
            lambda x, linear: linear(x),
        ),
        (
            lambda x, linear: torch.stack(linear(x.permute(1, 0, 2)).unbind(0), 1),
            lambda x, linear: linear(x),
        ),
    ],
    ids=["heads", "a circle", "a linear", "flat rows", "unbound"],
)
def test_before_and_expected(
    before: Callable[..., Tensor], expected: Callable[..., Tensor]
) -> None:
    assert_same_graph(cancelled(before).program, Body(expected), (X,), tolerance=BIT_EQUAL)


@pytest.mark.parametrize(
    "body",
    [
        lambda x, linear: torch.relu(x).transpose(1, 2),
        lambda x, linear: torch.relu(x)[:, 1:].transpose(1, 2),
        lambda x, linear: linear(x.transpose(0, 1)).sum(0),
        lambda x, linear: linear(torch.relu(x).reshape(-1, 4, 3).transpose(1, 2)),
        lambda x, linear: linear(x.transpose(0, 1)[1:]).transpose(0, 1),
    ],
    ids=["one view", "a part", "summed as it is", "rows are mixed", "part of the rows"],
)
def test_near_misses(body: Callable[..., Tensor]) -> None:
    assert cancelled(body).outcomes == [Outcome.UNCHANGED]


def test_a_view_with_other_users_stays_for_them() -> None:
    def body(x: Tensor, linear: nn.Module) -> Tensor:
        turned = torch.relu(x).transpose(0, 1)
        return linear(turned).transpose(0, 1) + turned.sum((0, 2))[:, None, None]

    program = canonical(Body(body), X)
    ran = run_passes(program, "cancel-views")
    assert ran.outcomes == [Outcome.CHANGED]
    assert torch.equal(program(X), ran.program(X))
