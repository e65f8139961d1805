from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 8)


class Experts(nn.Module):
    """``body(x, gate, parts)``: a gate ``[B, 3]``, and inner values and linear of each expert."""

    def __init__(
        self,
        body: Callable[..., Tensor],
        inner: tuple[int, int, int] = (3, 3, 3),
        biases: tuple[bool, bool, bool] = (True, True, True),
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.ModuleList(nn.Linear(8, width, bias=False) for width in inner)
        self.up = nn.ModuleList(
            nn.Linear(width, 8, bias=bias) for width, bias in zip(inner, biases, strict=True)
        )
        self.gate = nn.Linear(8, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        inner = [torch.tanh(down(x)) for down in self.down]
        return torch.relu(self.body(x, self.gate(x).softmax(1), inner, self.up)).flatten(1).sum(1)


class Factored(Experts):
    """What `Experts` becomes: one linear with the weights, and the biases as columns, if any."""

    def __init__(
        self,
        inner: tuple[int, int, int],
        biases: tuple[bool, bool, bool],
        *,
        crossed: bool,
        columns: bool,
    ) -> None:
        super().__init__(lambda: X, inner, biases)
        parts = [up.weight for up in self.up]
        if any(biases):
            zero = torch.zeros(8)
            parts.append(torch.stack([zero if u.bias is None else u.bias for u in self.up], 1))
        self.mixture = nn.Parameter(torch.cat(parts, 1).detach())
        self.inner, self.biased = inner, any(biases)
        self.crossed, self.columns = crossed, columns

    def forward(self, x: Tensor) -> Tensor:
        inner = [torch.tanh(down(x)) for down in self.down]
        gate = self.gate(x).softmax(1)
        weights = gate.unsqueeze(2 if self.columns else 1)
        flat = weights.reshape(-1, 3)
        if len(set(self.inner)) == 1:
            weights = weights if self.columns else weights.reshape(-1, 3, 1)
            mixed = (torch.stack(inner, 1) * weights).reshape(-1, sum(self.inner))
        else:
            mixed = torch.cat([h * flat[:, e : e + 1] for e, h in enumerate(inner)], 1)
        if self.biased:
            mixed = torch.cat([mixed, flat], 1)
        made = F.linear(mixed, self.mixture)
        made = x * made if self.crossed else made
        return torch.relu(made.unsqueeze(2 if self.columns else 1)).flatten(1).sum(1)


def _mixed(*, crossed: bool, columns: bool) -> Callable[..., Tensor]:
    def body(x: Tensor, gate: Tensor, inner: list[Tensor], ups: nn.ModuleList) -> Tensor:
        experts = [up(h) for up, h in zip(ups, inner, strict=True)]
        experts = [x * expert if crossed else expert for expert in experts]
        if columns:
            return torch.stack(experts, 2) @ gate.unsqueeze(2)
        return torch.bmm(gate.unsqueeze(1), torch.stack(experts, 1))

    return body


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize(
    ("inner", "biases"),
    [((3, 3, 3), (True, True, True)), ((3, 3, 3), (False,) * 3), ((3, 2, 4), (False, True, False))],
    ids=["biased", "plain", "of different ranks"],
)
def test_before_and_expected(crossed: bool, columns: bool, inner: tuple, biases: tuple) -> None:
    before = Experts(_mixed(crossed=crossed, columns=columns), inner, biases)
    ran = run_passes(canonical(before, X), "factor-mixtures")
    expected = Factored(inner, biases, crossed=crossed, columns=columns)
    assert_same_graph(ran.program, expected, (X,), tolerance=BIT_EQUAL)
    assert ran.applied("factor-mixtures") == ["factored 1 mixtures of linear experts"]


def _read_twice(x: Tensor, gate: Tensor, inner: list[Tensor], ups: nn.ModuleList) -> Tensor:
    stacked = torch.stack([up(h) for up, h in zip(ups, inner, strict=True)], 2)
    return torch.cat([stacked @ gate.unsqueeze(2), stacked], 2)


def _other_factors(x: Tensor, gate: Tensor, inner: list[Tensor], ups: nn.ModuleList) -> Tensor:
    factors = (x, torch.relu(x), x)
    crossed = [f * up(h) for f, up, h in zip(factors, ups, inner, strict=True)]
    return torch.stack(crossed, 2) @ gate.unsqueeze(2)


def _active(x: Tensor, gate: Tensor, inner: list[Tensor], ups: nn.ModuleList) -> Tensor:
    experts = [torch.relu(up(h)) for up, h in zip(ups, inner, strict=True)]
    return torch.stack(experts, 2) @ gate.unsqueeze(2)


def _two_gates(x: Tensor, gate: Tensor, inner: list[Tensor], ups: nn.ModuleList) -> Tensor:
    stacked = torch.stack([up(h) for up, h in zip(ups, inner, strict=True)], 2)
    return stacked @ torch.stack([gate, gate * gate], 2)


@pytest.mark.parametrize(
    ("body", "inner", "reasons"),
    [
        (_read_twice, (3, 3, 3), ["its experts have other users"]),
        (
            _mixed(crossed=True, columns=True),
            (9, 9, 9),
            ["its experts are narrower than what they read"],
        ),
        (_other_factors, (3, 3, 3), []),
        (_active, (3, 3, 3), []),
        (_two_gates, (3, 3, 3), []),
    ],
    ids=["read twice", "wide inside", "other factors", "activations", "two gates"],
)
def test_near_misses(body: Callable[..., Tensor], inner: tuple, reasons: list[str]) -> None:
    ran = run_passes(canonical(Experts(body, inner), X), "factor-mixtures")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("factor-mixtures") == reasons
