from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import ONE_ROUNDING, Ran, assert_same_graph, canonical, operators, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 4)


class Crosses(nn.Module):
    """``body(x0, linears, biases)`` over some cross layers, then a score."""

    def __init__(self, body: Callable[..., Tensor], layers: int = 3, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers))
        self.biases = nn.ParameterList(torch.randn(4) for _ in range(layers))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        crossed = self.body(torch.relu(x), self.linears, self.biases)
        return torch.tanh(crossed).flatten(1).sum(1)


def collapsed(module: Crosses) -> Ran:
    """Without computed constants, as in a pipeline."""
    program = run_passes(canonical(module, X), "fold-constants,eliminate").program
    return run_passes(program, "collapse-crosses")


def _crossed(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    x = x0
    for linear, bias in zip(linears, biases, strict=True):
        x = x0 * linear(x) + bias + x
    return x


class Collapsed(nn.Module):
    """Three layers as numbers."""

    def __init__(self, before: Crosses) -> None:
        super().__init__()
        linears = [(n.weight.double()[0], n.bias.double()[0]) for n in before.linears]
        self.weight = nn.Parameter(torch.cat([n.weight for n in before.linears]).detach())
        constant, self.offsets = torch.zeros(4, dtype=torch.float64), []
        for (weight, bias), added in zip(linears, before.biases, strict=True):
            self.offsets.append(float((weight @ constant).detach()) + float(bias.detach()))
            constant = constant + added.double().detach()
        self.constant = nn.Parameter(constant.float())

    def forward(self, x: Tensor) -> Tensor:
        x0 = torch.relu(x)
        dots = F.linear(x0, self.weight)
        scale: Tensor | float = 1.0
        for layer, offset in enumerate(self.offsets):
            dot = dots[:, layer : layer + 1]
            dot = (dot if layer == 0 else scale * dot) + offset
            scale = dot + scale
        made = x0 * scale + self.constant
        return torch.tanh(made).sum(1)


def test_before_and_expected() -> None:
    before = Crosses(_crossed)
    ran = collapsed(before)
    assert_same_graph(ran.program, Collapsed(before), (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("collapse-crosses") == ["collapsed 3 cross layers to numbers"]


def _columns(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    """Over columns."""
    first = x0.unsqueeze(2)
    x = first
    for linear, bias in zip(linears, biases, strict=True):
        dot = F.linear(x.squeeze(2), linear.weight).unsqueeze(2)
        x = first * dot + bias[:, None] + x
    return x.squeeze(2)


def _in_the_linear(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    x = x0
    for linear in linears:
        x = x + linear(x) * x0
    return x


def _outer_products(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    """As deepctr has it, by a product of a column and a number."""
    first = x0.unsqueeze(2)
    x = first
    for linear, bias in zip(linears, biases, strict=True):
        dot = F.linear(x.squeeze(2), linear.weight).unsqueeze(2)
        x = torch.matmul(first, dot) + bias[:, None] + x
    return x.squeeze(2)


@pytest.mark.parametrize("body", [_columns, _outer_products, _in_the_linear])
def test_other_ways_to_write_it(body: Callable[..., Tensor]) -> None:
    ran = collapsed(Crosses(body))
    assert ran.applied("collapse-crosses") == ["collapsed 3 cross layers to numbers"]
    assert operators(ran.program).count("linear") == 1


def test_a_linear_of_the_result_takes_numbers_too() -> None:
    def body(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
        score: Tensor = linears[2](_crossed(x0, linears[:2], biases[:2]))
        return score

    ran = collapsed(Crosses(body))
    assert ran.outcomes == [Outcome.CHANGED]
    names = operators(ran.program)
    assert names.count("linear") == 1
    widths = [n.meta["val"].shape[-1] for n in ran.program.graph.nodes if n.op == "call_function"]
    # Of values as wide as the input, the input itself is left; the other is the three numbers.
    assert [width for width in widths if width in (3, 4)] == [4, 3]


def _every_layer(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    outputs = [x0]
    for linear in linears:
        outputs.append(torch.sigmoid(outputs[-1] + x0 * linear(outputs[-1])))
    return torch.cat(outputs, 1)


def _read_between(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    first = x0 * linears[0](x0)
    second = x0 * linears[1](first)
    return torch.cat([first, second], 1)


def _permuted(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    x = x0
    for linear in linears:
        x = x0 * linear(x) + x[:, [1, 0, 3, 2]]
    return x


def _per_column(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    x = x0
    for linear in linears:
        x = x0 * linear(x.unsqueeze(2)).squeeze(2) + x
    return x


def _matrices(x0: Tensor, linears: nn.ModuleList, biases: nn.ParameterList) -> Tensor:
    x = x0
    for linear in linears:
        x = x0 * F.linear(x, torch.cat([linear.weight] * 4)) + x
    return x


@pytest.mark.parametrize(
    ("module", "reasons"),
    [
        (Crosses(_read_between), ["the outputs of its cross layers are used elsewhere too"]),
        (Crosses(_crossed, layers=1), []),
        (Crosses(_every_layer), []),
        (Crosses(_permuted), []),
        (Crosses(_per_column, width=1), []),
        (Crosses(_matrices), []),
    ],
    ids=["read between", "one", "activations", "permuted", "per column", "matrices"],
)
def test_near_misses(module: Crosses, reasons: list[str]) -> None:
    ran = collapsed(module)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("collapse-crosses") == reasons
