from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import ONE_ROUNDING, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

#: Items of a history and their width; outputs.
ITEMS, D, OUT = 5, 4, 8
X = torch.randn(6, ITEMS, D)


class Attention(nn.Module):
    """``body(candidate, items, linear)``, summed; the candidate is ``[B, 1, D]``."""

    def __init__(
        self,
        body: Callable[..., Tensor],
        inputs: int = 4 * D,
        outputs: int = OUT,
        bias: bool = True,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        made = self.body(torch.tanh(x[:, :1]), torch.relu(x), self.linear)
        return torch.sigmoid(made).flatten(1).sum(1)


class Split(nn.Module):
    """DIN's first linear in parts."""

    def __init__(self, before: Attention, *, per_example: bool) -> None:
        super().__init__()
        q, k, d, p = before.linear.weight.detach().double().split(D, 1)
        self.query = nn.Parameter((q + d).float())
        self.items, self.product = (nn.Parameter(w.float()) for w in (k - d, p))
        self.bias = before.linear.bias
        self.per_example = per_example
        if per_example:
            self.items, self.product = (
                nn.Parameter(w.detach().T.contiguous()) for w in (self.items, self.product)
            )

    def forward(self, x: Tensor) -> Tensor:
        query, items = torch.tanh(x[:, :1]), torch.relu(x)
        made = F.linear(query, self.query, self.bias)
        if self.per_example:
            matrix = query.transpose(1, 2) * self.product + self.items
            made = items @ matrix + made
        else:
            made = F.linear(items, self.items) + made
            made = F.linear(query * items, self.product) + made
        return torch.sigmoid(made).flatten(1).sum(1)


def _din(query: Tensor, items: Tensor, linear: nn.Module) -> Tensor:
    wide = query.expand(-1, items.shape[1], -1)
    made: Tensor = linear(torch.cat([wide, items, wide - items, wide * items], -1))
    return made


def split(module: Attention, options: str = "", *, x: Tensor = X, target: str = "cpu-fp32") -> Ran:
    return run_passes(canonical(module, x), f"split-linears{options}", target=target)


def test_before_and_expected() -> None:
    """With a matrix per example: there are more than ``min_rows`` items per output."""
    before = Attention(_din)
    ran = split(before)
    expected = Split(before, per_example=True)
    assert_same_graph(ran.program, expected, (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("split-linears") == ["split 1 linears over concatenations"]


@pytest.mark.parametrize(
    ("options", "target"), [("{min_rows=0.7}", "cpu-fp32"), ("", "cpu-int8")], ids=str
)
def test_before_and_expected_with_linears_alone(options: str, target: str) -> None:
    before = Attention(_din)
    ran = split(before, options, target=target)
    expected = Split(before, per_example=False)
    assert_same_graph(ran.program, expected, (X,), tolerance=ONE_ROUNDING)


def test_with_its_rows_in_one_dimension() -> None:
    """As torch-rechub has it."""

    def body(query: Tensor, items: Tensor, linear: nn.Module) -> Tensor:
        wide = query.expand(-1, ITEMS, -1)
        features = torch.cat([wide, items, wide - items, wide * items], -1)
        made: Tensor = linear(features.view(-1, 4 * D)).view(-1, ITEMS, OUT)
        return made

    before = Attention(body)
    ran = run_passes(canonical(before, X), "split-linears,cancel-views")
    expected = Split(before, per_example=True)
    assert_same_graph(ran.program, expected, (X,), tolerance=ONE_ROUNDING)


def test_without_a_bias_and_with_sums() -> None:
    def body(query: Tensor, items: Tensor, linear: nn.Module) -> Tensor:
        made: Tensor = linear(torch.cat([items, items + query, query.repeat(1, ITEMS, 1)], -1))
        return made

    before = Attention(body, 3 * D, bias=False)
    assert split(before).outcomes == [Outcome.CHANGED]


class Two(nn.Module):
    """A narrow linear over two wide parts, whose concatenation is read twice or not."""

    def __init__(self, outputs: int, *, again: bool, parts: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(parts * 256, outputs)
        self.again, self.parts = again, parts

    def forward(self, x: Tensor) -> Tensor:
        wide = [torch.relu(x), torch.tanh(x), torch.sigmoid(x)][: self.parts]
        joined = torch.cat(wide, 1)
        scores: Tensor = self.linear(joined).sum(1)
        return scores + joined.sum(1) if self.again else scores


def test_few_outputs_of_two_wide_parts() -> None:
    class Parts(nn.Module):
        def __init__(self, before: Two) -> None:
            super().__init__()
            self.weights = nn.ParameterList(
                w.contiguous() for w in before.linear.weight.split(256, 1)
            )
            self.bias = before.linear.bias

        def forward(self, x: Tensor) -> Tensor:
            made = F.linear(torch.relu(x), self.weights[0], self.bias)
            return (F.linear(torch.tanh(x), self.weights[1]) + made).sum(1)

    before = Two(1, again=False)
    x = torch.randn(6, 256)
    ran = run_passes(canonical(before, x), "split-linears")
    assert_same_graph(ran.program, Parts(before), (x,), tolerance=ONE_ROUNDING)


@pytest.mark.parametrize(
    ("module", "columns", "reasons"),
    [
        (Two(1, again=True), 256, ["the concatenation has other users"]),
        (Two(5, again=False), 256, []),
        (Two(1, again=False, parts=3), 256, []),
    ],
    ids=["read twice", "many outputs", "three parts"],
)
def test_near_misses_of_few_outputs(module: Two, columns: int, reasons: list[str]) -> None:
    ran = run_passes(canonical(module, torch.randn(6, columns)), "split-linears")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("split-linears") == reasons


@pytest.mark.parametrize(
    "body",
    [
        lambda q, items, linear: linear(torch.cat([items, torch.tanh(items)], -1)),
        lambda q, items, linear: linear(torch.cat([items, items * 2.0], -1)),
        lambda q, items, linear: linear(torch.cat([items, items + 1.0], 1).view(-1, ITEMS, 2 * D)),
    ],
    ids=["no part repeats", "scaled by a number", "rows"],
)
def test_near_misses(body: Callable[..., Tensor]) -> None:
    ran = split(Attention(body, 2 * D))
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("split-linears") == []
