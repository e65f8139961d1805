from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.ir.facts import Precision, set_precision
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, operators, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 40)


class Heads(nn.Module):
    """Linears of some widths over one input, or over what ``between`` makes of it."""

    def __init__(
        self, *widths: int, biases: tuple[bool, ...] = (), inputs: int = 40, tied: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        biases = biases or (True,) * len(widths)
        self.heads = nn.ModuleList(
            nn.Linear(inputs, width, bias=bias) for width, bias in zip(widths, biases, strict=True)
        )
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        parts = [head(x).softmax(-1) for head in self.heads]
        if self.tied:
            parts.append(F.linear(x.relu(), self.heads[0].weight))
        return torch.cat(parts, -1).flatten(1).sum(1)


class Merged(nn.Module):
    """What `Heads` becomes."""

    def __init__(self, before: Heads, bias: bool = True) -> None:
        super().__init__()
        self.sizes = [head.out_features for head in before.heads]
        self.weight = nn.Parameter(torch.cat([head.weight for head in before.heads]).detach())
        biases = [
            torch.zeros(head.out_features) if head.bias is None else head.bias
            for head in before.heads
        ]
        self.bias = nn.Parameter(torch.cat(biases).detach()) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        parts = F.linear(x, self.weight, self.bias).split(self.sizes, -1)
        return torch.cat([part.softmax(-1) for part in parts], -1).flatten(1).sum(1)


def merged(module: nn.Module, x: Tensor = X, passes: str = "merge-linears") -> Ran:
    return run_passes(canonical(module, x), passes)


@pytest.mark.parametrize("biases", [(True,) * 3, (False,) * 3, (False, True, False)])
def test_before_and_expected(biases: tuple[bool, ...]) -> None:
    before = Heads(3, 4, 5, biases=biases)
    ran = merged(before)
    assert_same_graph(ran.program, Merged(before, any(biases)), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("merge-linears") == ["merged 3 linears over one input"]
    assert ran.missed("merge-linears") == []


def test_over_sequences() -> None:
    x = torch.randn(6, 3, 40)
    before = Heads(3, 4)
    assert_same_graph(merged(before, x).program, Merged(before), (x,), tolerance=BIT_EQUAL)


def test_full_tiles_stay_apart() -> None:
    """Splitting a wider one costs more than running both."""
    ran = merged(Heads(16, 3, 32, 5))
    assert operators(ran.program).count("linear") == 3
    assert operators(ran.program).count("split_with_sizes") == 1


@pytest.mark.parametrize(
    ("module", "reasons"),
    [
        (Heads(3), []),
        (Heads(16, 16), []),
        (Heads(3, 16), []),
        (Heads(12, 12), ["merged they would take about as many tiles of columns"]),
        (Heads(3, 4, inputs=8), ["it has too few inputs for a wider product to pay"]),
        (Heads(3, 4, tied=True), ["its weight is read elsewhere too"]),
    ],
    ids=["one", "full", "one narrow", "no tile saved", "few inputs", "tied"],
)
def test_near_misses(module: Heads, reasons: list[str]) -> None:
    ran = merged(module, torch.randn(6, module.heads[0].in_features))
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("merge-linears") == reasons


def test_a_smaller_group_than_asked_for_is_left_alone() -> None:
    assert merged(Heads(3, 4), passes="merge-linears{min_group=3}").outcomes == [Outcome.UNCHANGED]


@pytest.mark.parametrize("same", [True, False])
def test_formats_that_were_placed(same: bool) -> None:
    program = canonical(Heads(3, 4), X)
    placed = [n for n in program.graph.nodes if "linear" in str(n.target) and n.op != "get_attr"]
    precision = Precision("int8", 0.1, 128, "uint8", "int8")
    for node in placed[: 2 if same else 1]:
        set_precision(node, precision)
    ran = run_passes(program, "merge-linears")
    reason = "the formats placed on linears over one input differ"
    assert ran.missed("merge-linears") == ([] if same else [reason])
    assert (ran.outcomes == [Outcome.CHANGED]) == same


@pytest.mark.parametrize(
    "between",
    [lambda x: (x, x.relu()), lambda x: (x[:, :40], x[:, 1:])],
    ids=["another value", "another slice"],
)
def test_linears_over_two_values(between: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    class Two(Heads):
        def forward(self, x: Tensor) -> Tensor:
            parts = [head(part) for head, part in zip(self.heads, between(x), strict=True)]
            return torch.cat(parts, -1).sum(1)

    x = X if between(X)[1].shape == X.shape else torch.randn(6, 41)
    assert merged(Two(3, 4), x).outcomes == [Outcome.UNCHANGED]
