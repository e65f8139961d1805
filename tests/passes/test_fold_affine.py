from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import (
    ONE_ROUNDING,
    Ran,
    assert_same_graph,
    canonical,
    operators,
    run_passes,
)
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(5, 6)
Step = Callable[[Tensor], Tensor]
_OTHERS = "the linear before the constant has other users"


class Affine(nn.Module):
    """``after(linear(before(x)))`` with parameters ``s`` (4), ``t`` (4), ``r`` (6) at hand."""

    def __init__(self, body: Callable[[Affine, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4, bias=bias)
        self.s, self.t = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(1, 4))
        self.r, self.one = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.tensor(1.5))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(self, x)).sum(-1)


class Expected(nn.Module):
    """One linear with weight ``rows·W·columns`` and bias ``b·rows + W·inside + outside``."""

    def __init__(
        self,
        before: Affine,
        rows: Tensor | float = 1.0,
        columns: Tensor | float = 1.0,
        inside: Tensor | float = 0.0,
        outside: Tensor | float = 0.0,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        weight = before.linear.weight.detach().double()
        bias = torch.zeros(4) if before.linear.bias is None else before.linear.bias.detach()
        rows, columns, inside, outside = (
            torch.as_tensor(value).detach().double().expand(size)
            for value, size in ((rows, 4), (columns, 6), (inside, 6), (outside, 4))
        )
        self.linear.weight = nn.Parameter((rows[:, None] * weight * columns).float())
        self.linear.bias = nn.Parameter((bias.double() * rows + weight @ inside + outside).float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x)).sum(-1)


def folded(module: nn.Module, *inputs: Tensor) -> Ran:
    return run_passes(canonical(module, *inputs), "fold-affine")


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (lambda m, x: m.linear(x) * 3.0, {"rows": 3.0}),
        (lambda m, x: m.s * m.linear(x), {"rows": "s"}),
        (lambda m, x: m.linear(x) * m.one, {"rows": "one"}),
        (lambda m, x: m.linear(x) / 4, {"rows": 0.25}),
        (lambda m, x: m.linear(x) + 2, {"outside": 2.0}),
        (lambda m, x: m.linear(x) + m.t, {"outside": "t"}),
        (lambda m, x: m.linear(x * 3.0), {"columns": 3.0}),
        (lambda m, x: m.linear(m.r * x), {"columns": "r"}),
        (lambda m, x: m.linear(x + m.r), {"inside": "r"}),
    ],
    ids=["·3", "s·", "·scalar", "/4", "+2", "+t", "3·x", "r·x", "x+r"],
)
def test_folds(body: Callable[..., Tensor], parts: dict[str, float | str]) -> None:
    before = Affine(body)
    values = {
        place: getattr(before, value).squeeze() if isinstance(value, str) else value
        for place, value in parts.items()
    }
    ran = folded(before, X)
    assert_same_graph(ran.program, Expected(before, **values), (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("fold-affine") == ["folded 1 constant multiplies and adds into linears"]
    assert ran.missed("fold-affine") == []


@pytest.mark.parametrize("side", ["after", "before"])
def test_makes_a_bias_where_none_was(side: str) -> None:
    after = side == "after"
    before = Affine(lambda m, x: m.linear(x) + m.t if after else m.linear(x + m.r), bias=False)
    expected = Expected(before, **({"outside": before.t[0]} if after else {"inside": before.r}))
    ran = folded(before, X)
    assert_same_graph(ran.program, expected, (X,), tolerance=ONE_ROUNDING)


def test_folds_chains_on_both_sides() -> None:
    ran = folded(Affine(lambda m, x: ((m.linear(x * m.r + 1.0) * m.s) + m.t) / 2.0), X)
    assert operators(ran.program)[:2] == ["linear", "relu"]
    assert ran.applied("fold-affine") == ["folded 5 constant multiplies and adds into linears"]


def test_folds_over_sequences() -> None:
    ran = folded(Affine(lambda m, x: m.linear(x * m.r) * m.s), torch.randn(5, 3, 6))
    assert operators(ran.program)[:2] == ["linear", "relu"]


def test_misses_a_linear_that_others_read() -> None:
    def body(m: Affine, x: Tensor) -> Tensor:
        hidden = m.linear(x)
        return hidden * m.s + torch.relu(hidden)

    ran = folded(Affine(body), X)
    assert ran.missed("fold-affine") == ["the linear before the constant has other users"]
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_misses_an_input_that_others_read() -> None:
    def body(m: Affine, x: Tensor) -> Tensor:
        scaled = x * m.r
        return m.linear(scaled) + scaled[:, :4]

    ran = folded(Affine(body), X)
    assert ran.missed("fold-affine") == ["the value before the linear has other users"]
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_tells_each_miss_once_however_many_rounds_it_takes() -> None:
    def body(m: Affine, x: Tensor) -> Tensor:
        hidden = m.linear(x)
        return (F.linear(x, m.linear.weight) * 2.0) * 3.0 + hidden * m.s + torch.relu(hidden)

    ran = folded(Affine(body), X)
    assert ran.missed("fold-affine") == ["the linear before the constant has other users"]
    assert ran.outcomes == [Outcome.CHANGED]


class PerPosition(nn.Module):
    """A constant for each position of a sequence, not for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.positions = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) * self.positions).sum((1, 2))


class PerPositionBefore(PerPosition):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.positions).sum((1, 2))


@pytest.mark.parametrize("kind", [PerPosition, PerPositionBefore])
def test_misses_a_constant_along_another_dimension(kind: type[nn.Module]) -> None:
    """As many positions as channels: the sizes alone don't tell them apart."""
    ran = folded(kind(), torch.randn(5, 4, 6))
    assert ran.missed("fold-affine") == ["the constant doesn't follow the channels"]
    assert ran.outcomes == [Outcome.UNCHANGED]


class Wider(nn.Module):
    """Adding four numbers to one column makes four columns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)
        self.four = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x) + self.four).sum(1)


class Promoted(nn.Module):
    """A fp64 constant makes the sum fp64, which a fp32 linear wouldn't be."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("wide", torch.rand(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) + self.wide).sum(1)


class Counts(nn.Module):
    """An integer input becomes a float by the multiply; a linear takes no integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * 0.5).sum(1)


@pytest.mark.parametrize(
    ("module", "x"), [(Wider(), X), (Promoted(), X), (Counts(), torch.arange(30).view(5, 6))]
)
def test_misses_a_constant_that_changes_shape_or_dtype(module: nn.Module, x: Tensor) -> None:
    ran = folded(module, x)
    assert ran.missed("fold-affine") == ["the constant changes the shape or the dtype"]
    assert ran.outcomes == [Outcome.UNCHANGED]


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: 2.0 / m.linear(x),
        lambda m, x: m.s / m.linear(x),
        lambda m, x: torch.add(m.linear(x), m.s, alpha=2),
        lambda m, x: m.linear(x) * x[:, :4],
        lambda m, x: F.linear(x, m.linear.weight, m.linear.bias * 2.0) * 3.0,
        lambda m, x: F.linear(x, m.linear.weight * 2.0) * 3.0,
        lambda m, x: F.linear(x * 2.0, m.r).unsqueeze(1) * 3.0,
    ],
    ids=["2/y", "s/y", "alpha", "y·x", "computed bias", "computed weight", "weight vector"],
)
def test_leaves_what_is_no_affine_of_a_linear(body: Callable[..., Tensor]) -> None:
    """``2/y`` is captured as ``reciprocal(y)·2``."""
    assert folded(Affine(body), X).outcomes == [Outcome.UNCHANGED]


def test_a_shared_weight_keeps_its_values_for_the_other_linear() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return (self.linear(x) * 3.0).sum(1), self.linear(y).sum(1)

    program = canonical(Tied(), X, X)
    ran = run_passes(program, "fold-affine")
    assert operators(ran.program) == ["linear", "sum", "linear", "sum"]
    assert torch.equal(ran.program(X, X)[1], program(X, X)[1])


class Calibrated(nn.Module):
    """Heads of one output each, squeezed, and ``after`` makes scores of them."""

    def __init__(self, after: Callable[[Calibrated, list[Tensor]], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.s, self.t = nn.Parameter(torch.rand(3) + 0.5), nn.Parameter(torch.randn(3))
        self.one, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor([0.3]))
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self, [head(x) for head in self.heads])


class Folded(Calibrated):
    """The same with other weights and nothing behind the heads but ``after``."""

    def __init__(
        self, before: Calibrated, after: Any, scales: Sequence[float], shifts: Sequence[float]
    ) -> None:
        super().__init__(after)
        for new, old, scale, shift in zip(self.heads, before.heads, scales, shifts, strict=True):
            new.weight = nn.Parameter((old.weight.double() * scale).float())
            new.bias = nn.Parameter((old.bias.double() * scale + shift).float())


def _squeezed(m: Calibrated, heads: list[Tensor]) -> list[Tensor]:
    return [head.squeeze(1) for head in heads]


@pytest.mark.parametrize(
    ("body", "scale", "shift"),
    [
        (lambda m, h: torch.sigmoid(m.one * h[0].squeeze(1) + m.shift), 1.5, 0.3),
        (lambda m, h: torch.sigmoid(h[0].squeeze(-1) / m.one), 1 / 1.5, 0.0),
        (lambda m, h: torch.sigmoid(h[0].view(-1) / 1.7), 1 / 1.7, 0.0),
        (lambda m, h: torch.sigmoid(h[0].squeeze(1) - 0.25), 1.0, -0.25),
        (lambda m, h: torch.sigmoid((h[0].squeeze(1) - m.shift) * 2.0), 2.0, -0.6),
    ],
    ids=["Platt", "temperature", "number", "-t", "(z-t)·s"],
)
def test_calibrations_behind_a_squeeze(body: Any, scale: float, shift: float) -> None:
    before = Calibrated(body)
    ran = folded(before, X)
    view = (lambda z: z.view(-1)) if "reshape" in operators(ran.program) else lambda z: z.squeeze(1)
    expected = Folded(
        before, lambda m, h: torch.sigmoid(view(h[0])), [scale, 1, 1], [shift, 0.0, 0.0]
    )
    # A constant read as fp32 and a shift of two terms: a rounding each.
    assert_same_graph(ran.program, expected, (X,), tolerance=4 * ONE_ROUNDING)


@pytest.mark.parametrize("squeezed", [True, False])
def test_calibrations_of_tasks_side_by_side(squeezed: bool) -> None:
    def joined(m: Calibrated, heads: list[Tensor]) -> Tensor:
        return torch.stack(_squeezed(m, heads), 1) if squeezed else torch.cat(heads, 1)

    before = Calibrated(lambda m, h: joined(m, h) * m.s + m.t)
    expected = Folded(before, joined, before.s.tolist(), before.t.tolist())
    assert_same_graph(folded(before, X).program, expected, (X,), tolerance=2 * ONE_ROUNDING)


def test_a_bias_per_task() -> None:
    before = Calibrated(lambda m, h: [z.squeeze(1) + m.t[i] for i, z in enumerate(h)])
    ran = run_passes(canonical(before, X), "fold-constants,fold-affine")
    expected = Folded(before, _squeezed, [1.0] * 3, before.t.tolist())
    assert_same_graph(ran.program, expected, (X,), tolerance=ONE_ROUNDING)


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (lambda m, h: [h[0].squeeze(1) * 2.0, h[0].squeeze(1)], [_OTHERS]),
        (lambda m, h: [torch.cat(h, 1) * 2.0, h[1]], [_OTHERS]),
        (lambda m, h: 1.0 / h[0].squeeze(1), []),
        (lambda m, h: torch.stack([h[0].squeeze(1), h[1].squeeze(1).relu()], 1) * 2.0, []),
        (lambda m, h: h[0].squeeze(1).sigmoid() * 2.0, []),
    ],
    ids=["logit too", "one of them too", "reciprocal", "not all linear", "probability"],
)
def test_calibrations_that_stay(body: Any, reasons: list[str]) -> None:
    ran = run_passes(canonical(Calibrated(body), X), "eliminate,fold-affine")
    assert ran.outcomes[1] is Outcome.UNCHANGED
    assert ran.missed("fold-affine") == reasons
