from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn

X = torch.randn(6, 4)


class Columns(nn.Module):
    """``body(x, column)``, summed; the column is ``[4, 1]``."""

    def __init__(self, body: Callable[..., Tensor], column: Tensor | None = None) -> None:
        super().__init__()
        own = torch.linspace(-1.0, 1.0, 4)[:, None] if column is None else column
        self.column = nn.Parameter(own)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.relu(x), self.column).sum(1)


def sunk(body: Callable[..., Tensor]) -> Ran:
    return run_passes(canonical(Columns(body), X), "sink-unsqueezes")


def test_before_and_expected() -> None:
    def before(x: Tensor, column: Tensor) -> Tensor:
        first = x.unsqueeze(2)
        crossed = first * torch.tanh(first + column)
        return (crossed - first / 3.0).squeeze(2)

    def expected(x: Tensor, row: Tensor) -> Tensor:
        crossed = x * torch.tanh(x + row)
        return crossed - x / 3.0

    row = Columns(before).column.detach().squeeze(1)
    ran = sunk(before)
    assert_same_graph(ran.program, Columns(expected, row), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("sink-unsqueezes") == ["moved 6 operators before dimensions of size 1"]


def test_one_that_is_read_on_stays_behind() -> None:
    ran = sunk(lambda x, column: torch.tanh(x.unsqueeze(2)).transpose(1, 2).flatten(1))
    expected = Columns(lambda x, column: torch.tanh(x).unsqueeze(2).transpose(1, 2).flatten(1))
    assert_same_graph(ran.program, expected, (X,), tolerance=BIT_EQUAL)


@pytest.mark.parametrize(
    "body",
    [
        lambda x, column: torch.tanh(x.unsqueeze(1)).sum(1),
        lambda x, column: (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1),
        lambda x, column: (x.unsqueeze(2) + column.T).flatten(1),
        lambda x, column: x.unsqueeze(2).softmax(1).squeeze(2),
        lambda x, column: x[:, :1].unsqueeze(2).squeeze(1),
    ],
    ids=[
        "not the last",
        "two places",
        "an outer sum",
        "not elementwise",
        "squeezed elsewhere",
    ],
)
def test_near_misses(body: Callable[..., Tensor]) -> None:
    ran = sunk(body)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("sink-unsqueezes") == []
