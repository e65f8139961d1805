from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 3, 4)


class Turned(nn.Module):
    """``body(x, module)``, summed."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.row = nn.Parameter(torch.randn(3))
        self.column = nn.Parameter(self.row.detach().reshape(1, 3, 1))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.body(torch.exp(x), self)).flatten(1).sum(1)


def sunk(body: Callable[..., Tensor]) -> Ran:
    return run_passes(canonical(Turned(body), X), "sink-transposes")


def _split_and_joined(x: Tensor, model: Turned) -> Tensor:
    first, second = torch.split(x.transpose(1, 2), [1, 3], 1)
    return torch.cat([second, first], 1).transpose(1, 2)


def _split_and_joined_straight(x: Tensor, model: Turned) -> Tensor:
    first, second = torch.split(x, [1, 3], 2)
    return torch.cat([second, first], 2)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (
            lambda x, m: (torch.relu(x.transpose(1, 2) * 0.5)).transpose(1, 2),
            lambda x, m: torch.relu(x * 0.5),
        ),
        (
            lambda x, m: (x.transpose(1, 2) - torch.tanh(x.transpose(1, 2))).permute(0, 2, 1),
            lambda x, m: x - torch.tanh(x),
        ),
        (
            lambda x, m: (x.transpose(1, 2) + m.row).transpose(1, 2),
            lambda x, m: x + m.column,
        ),
        (_split_and_joined, _split_and_joined_straight),
        (
            lambda x, m: x.transpose(1, 2)[:, 1:3].transpose(2, 1),
            lambda x, m: x[:, :, 1:3],
        ),
        (lambda x, m: torch.relu(x.transpose(1, 2)).sum(1), lambda x, m: torch.relu(x).sum(2)),
        (
            lambda x, m: m.norm(m.linear(x.view(-1, 3, 1, 4).transpose(1, 2))).transpose(1, 2),
            lambda x, m: m.norm(m.linear(x.view(-1, 3, 1, 4))),
        ),
    ],
    ids=["one operand", "two operands", "a parameter", "joined", "sliced", "summed", "last"],
)
def test_before_and_expected(
    before: Callable[..., Tensor], expected: Callable[..., Tensor]
) -> None:
    ran = sunk(before)
    assert_same_graph(ran.program, Turned(expected), (X,), tolerance=BIT_EQUAL)
    (said,) = ran.applied("sink-transposes")
    assert said.endswith("operators before transposes, of which fewer are left")


_AS_MANY = ["moving operators before transposes would leave as many of them"]


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (lambda x, m: torch.relu(x.transpose(1, 2)), _AS_MANY),
        (
            lambda x, m: (lambda t: torch.relu(t).transpose(1, 2) + t.sum(1)[..., None])(
                x.transpose(1, 2)
            ),
            _AS_MANY,
        ),
        (lambda x, m: F.pad(x.transpose(1, 2), [1, 1]).transpose(1, 2), _AS_MANY),
        (
            lambda x, m: m.linear(x[:, :1].expand(-1, 4, 4).transpose(1, 2)).transpose(1, 2),
            _AS_MANY,
        ),
        (lambda x, m: torch.relu(x), []),
    ],
    ids=["one", "another user", "not known", "along the other dimension", "none"],
)
def test_near_misses(body: Callable[..., Tensor], reasons: list[str]) -> None:
    ran = sunk(body)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("sink-transposes") == reasons
