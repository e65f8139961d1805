from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn

X = torch.randn(6, 5, 4)


class Pooled(nn.Module):
    """``body(weights, x)``, summed; the weights are a softmax over rows."""

    def __init__(self, body: Callable[..., Tensor], outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(4, outputs)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(self.score(x).softmax(1), x)).flatten(1).sum(1)


def contracted(body: Callable[..., Tensor], outputs: int = 1) -> Ran:
    return run_passes(canonical(Pooled(body, outputs), X), "contract-products")


def _product(w: Tensor, x: Tensor) -> Tensor:
    return w.transpose(1, 2) @ x


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (lambda w, x: (w * x).sum(1), lambda w, x: _product(w, x).squeeze(1)),
        (lambda w, x: (x * w).sum(-2), lambda w, x: _product(w, x).squeeze(1)),
        (lambda w, x: (w * x).sum(1, keepdim=True), _product),
    ],
    ids=["weights first", "rows first", "dimension kept"],
)
def test_before_and_expected(
    before: Callable[..., Tensor], expected: Callable[..., Tensor]
) -> None:
    ran = contracted(before)
    assert_same_graph(ran.program, Pooled(expected), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("contract-products") == [
        "computed 1 weighed sums of rows as matrix products"
    ]


def _read_twice(w: Tensor, x: Tensor) -> Tensor:
    weighed = w * x
    return torch.cat([weighed.sum(1, keepdim=True), weighed], 1)


@pytest.mark.parametrize(
    ("body", "outputs", "reasons"),
    [
        (_read_twice, 1, ["the weighed rows have other users"]),
        (lambda w, x: (w * x).sum(2), 1, []),
        (lambda w, x: (w * x).sum((1, 2))[:, None], 1, []),
        (lambda w, x: (w * x).sum(1), 4, []),
        (lambda w, x: (w[:, :1] * x).sum(1), 1, []),
        (lambda w, x: (w * x[..., :1]).sum(1), 1, []),
        (lambda w, x: (w + x).sum(1), 1, []),
        (lambda w, x: ((w > 0) * x).sum(1), 1, []),
    ],
    ids=[
        "read twice",
        "columns",
        "both",
        "a weight per column",
        "one row",
        "narrow",
        "a sum",
        "a mask",
    ],
)
def test_near_misses(body: Callable[..., Tensor], outputs: int, reasons: list[str]) -> None:
    ran = contracted(body, outputs)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("contract-products") == reasons
