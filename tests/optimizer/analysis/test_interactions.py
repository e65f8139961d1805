from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.analysis.interactions import (
    field_gates,
    matrix_crosses,
    sum_square_identities,
)
from rankc.optimizer.report.records import Kind, Outcome
from support import canonical, run_passes
from torch import Tensor, nn

X = torch.randn(6, 3, 4)


class Model(nn.Module):
    """``body(x, model)`` over rows ``[B, 3, 4]``, summed."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.down, self.up = nn.Linear(12, 2), nn.Linear(2, 12)
        self.squeeze, self.excite = nn.Linear(3, 2), nn.Linear(2, 3)
        self.vector = nn.Linear(12, 1)
        self.bias = nn.Parameter(torch.randn(12))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(torch.relu(x), self)).flatten(1).sum(1)


def _count(find: Callable[..., list], body: Callable[..., Tensor]) -> int:
    return len(find(canonical(Model(body), X)))


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (lambda x, m: x.sum(1) ** 2 - (x**2).sum(1), 1),
        (lambda x, m: x.sum(1, keepdim=True).pow(2) - (x * x).sum(1, keepdim=True), 1),
        (lambda x, m: x.sum(1) * x.sum(1) - x.pow(2).sum(-2), 0),
        (lambda x, m: (x * x).sum(1) - x.sum(1) ** 2, 0),
        (lambda x, m: x.sum(1) ** 2 - (m.first(x.flatten(1)).view(-1, 3, 4) ** 2).sum(1), 0),
        (lambda x, m: x.sum(1) ** 2 + (x**2).sum(1), 0),
    ],
    ids=["powers", "dimension kept", "two sums", "the other way round", "of another", "added"],
)
def test_sum_square_identities(body: Callable[..., Tensor], count: int) -> None:
    assert _count(sum_square_identities, body) == count


def _layers(x: Tensor, model: Model) -> Tensor:
    x0 = x.flatten(1)
    x1 = x0 * model.first(x0) + model.bias + x0
    return x0 * (model.second(x1) + model.bias) + x1


def _low_rank(x: Tensor, model: Model) -> Tensor:
    x0 = x.flatten(1)
    return x0 + model.up(model.down(x0)) * x0


def _gated(x: Tensor, model: Model) -> Tensor:
    x0 = x.flatten(1)
    return torch.sigmoid(model.second(x0)) * model.first(x0) + x0


def _vector(x: Tensor, model: Model) -> Tensor:
    x0 = x.flatten(1)
    return x0 * model.vector(x0) + x0


def _no_shortcut(x: Tensor, model: Model) -> Tensor:
    x0 = x.flatten(1)
    return x0 * model.first(x0) + model.bias


@pytest.mark.parametrize(
    ("body", "count"),
    [(_layers, 2), (_low_rank, 1), (_gated, 0), (_vector, 0), (_no_shortcut, 0)],
    ids=["two layers", "low rank", "a highway", "a vector", "no shortcut"],
)
def test_matrix_crosses(body: Callable[..., Tensor], count: int) -> None:
    assert _count(matrix_crosses, body) == count


def _gates(x: Tensor, pooled: Tensor, model: Model) -> Tensor:
    return x * torch.relu(model.excite(torch.relu(model.squeeze(pooled)))).unsqueeze(2)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (lambda x, m: _gates(x, x.mean(2), m), 1),
        (lambda x, m: _gates(x, x.mean(-1, keepdim=True).squeeze(2), m), 1),
        (lambda x, m: _gates(x, torch.tanh(x).mean(2), m), 0),
        (lambda x, m: x * torch.sigmoid(x.mean(2)).unsqueeze(2), 0),
        (lambda x, m: x * m.up(m.down(x.flatten(1))).view(-1, 3, 4), 0),
    ],
    ids=["mean", "dimension kept", "of another", "no linear", "a gate per column"],
)
def test_field_gates(body: Callable[..., Tensor], count: int) -> None:
    assert _count(field_gates, body) == count


@pytest.mark.parametrize(
    ("body", "pass_name", "said"),
    [
        (
            lambda x, m: x.sum(1) ** 2 - (x * x).sum(1),
            "reassociate-fm",
            ["a factorization machine as the square of a sum"],
        ),
        (_layers, "collapse-crosses", ["a cross layer with a matrix, which doesn't collapse"] * 2),
        (
            lambda x, m: _gates(x, x.mean(2), m),
            "contract-products",
            ["rows weighed by a net of their sums, and not summed"],
        ),
    ],
    ids=["factorization machine", "crosses", "gates"],
)
def test_the_report_names_them(body: Callable[..., Tensor], pass_name: str, said: list) -> None:
    ran = run_passes(canonical(Model(body), X), pass_name)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.said(Kind.ANALYSIS, pass_name) == said
