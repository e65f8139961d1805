"""Mixtures of experts, in the ways public code writes them, become one product."""

from __future__ import annotations

import multi_task as forms
import pytest
import torch
from hypothesis import given, settings
from rankc.frontends.export import capture
from rankc.models.mmoe import MMoE, MMoEConfig
from rankc.models.ple import PLE, PLEConfig
from rankc.optimizer.compare.numerics import divergence
from rankc.optimizer.pipeline.promises import ROUNDING_FLOOR
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, made_up, operators, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Experts, and one gate and one output a task; ``form`` mixes."""

    def __init__(self, form, tasks: int = 1, experts: int = 3, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.experts = nn.ModuleList(nn.Linear(8, width) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(8, experts) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = [expert(x).relu() for expert in self.experts]
        return [self.form(gate(x).softmax(-1), experts) for gate in self.gates]


class One(nn.Module):
    """What `Heads` of one task becomes."""

    def __init__(self, before: Heads) -> None:
        super().__init__()
        self.experts, self.gates = before.experts, before.gates

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = [expert(x).relu() for expert in self.experts]
        count, width = len(experts), experts[0].shape[1]
        gate = self.gates[0](x).softmax(-1).unsqueeze(1)
        pile = torch.cat(experts, 1).reshape(-1, count, width)
        return [torch.bmm(gate, pile).reshape(-1, width)]


class Many(nn.Module):
    """What `Heads` of several tasks becomes."""

    def __init__(self, before: Heads) -> None:
        super().__init__()
        self.experts = before.experts
        gates = list(before.gates)
        self.weight = nn.Parameter(torch.cat([gate.weight for gate in gates]).detach())
        self.bias = nn.Parameter(torch.cat([gate.bias for gate in gates]).detach())

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = [expert(x).relu() for expert in self.experts]
        count, width = len(experts), experts[0].shape[1]
        tasks = len(self.weight) // count
        gates = F.linear(x, self.weight, self.bias).reshape(-1, tasks, count).softmax(-1)
        pile = torch.cat(experts, 1).reshape(-1, count, width)
        mixed = torch.bmm(gates, pile).reshape(-1, tasks * width)
        return list(mixed.split_with_sizes([width] * tasks, 1))


def consolidated(module: nn.Module, passes: str = "consolidate-heads", x: Tensor = X) -> Ran:
    return run_passes(canonical(module, x), passes)


@pytest.mark.parametrize("form", forms.FORMS, ids=lambda form: form.__name__)
def test_every_form_of_one_mixture(form) -> None:
    before = Heads(form)
    ran = consolidated(before)
    assert_same_graph(ran.program, One(before), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("consolidate-heads") == ["computed a mixture of 3 experts by one product"]
    again = run_passes(ran.program, "consolidate-heads")
    assert again.outcomes == [Outcome.UNCHANGED]


@pytest.mark.parametrize("form", forms.FORMS, ids=lambda form: form.__name__)
def test_every_form_of_three_mixtures(form) -> None:
    before = Heads(form, tasks=3)
    if form is forms.backwards:  # the experts come in the order of the gate's columns
        before = Heads(forms.loop, tasks=3)
    ran = consolidated(before)
    assert_same_graph(ran.program, Many(before), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("consolidate-heads") == ["computed 3 mixtures of 3 experts by one product"]


def test_a_dimension_that_is_kept() -> None:
    ran = consolidated(Heads(forms.kept_dim))
    assert ran.outcomes == [Outcome.CHANGED]
    assert "sum" not in operators(ran.program)


def test_experts_that_are_columns_of_one_value_are_not_copied() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.gate = nn.Linear(8, 15), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate(x).softmax(1)
            return sum(gate[:, i, None] * y for i, y in enumerate(self.experts(x).split(5, 1)))

    ran = consolidated(Wide())
    assert ran.outcomes == [Outcome.CHANGED]
    expected = ["linear", "softmax", "linear", "unsqueeze", "reshape", "bmm", "reshape"]
    assert sorted(operators(ran.program)) == sorted(expected)


class Gates(Heads):
    """Gates that aren't softmaxes of linears over one value."""

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = [expert(x).relu() for expert in self.experts]
        weights = [gate(x * (task + 1.0)).sigmoid() for task, gate in enumerate(self.gates)]
        return [self.form(weight, experts) for weight in weights]


def test_gates_of_another_kind_are_joined_as_they_are() -> None:
    ran = consolidated(Gates(forms.rechub, tasks=2))
    assert ran.applied("consolidate-heads") == ["computed 2 mixtures of 3 experts by one product"]
    assert operators(ran.program).count("sigmoid") == 2
    assert operators(ran.program).count("bmm") == 1


def test_a_gate_that_is_needed_elsewhere_stays() -> None:
    class Told(Heads):
        def forward(self, x: Tensor) -> list[Tensor]:
            experts = [expert(x).relu() for expert in self.experts]
            gates = [gate(x).softmax(-1) for gate in self.gates]
            return [*(self.form(gate, experts) for gate in gates), gates[0]]

    ran = consolidated(Told(forms.rechub, tasks=2))
    assert operators(ran.program).count("softmax") == 2
    assert operators(ran.program).count("bmm") == 1


class Overlapping(nn.Module):
    """One extraction layer of PLE: an expert of each task, a shared one, and a gate a task."""

    def __init__(self, tasks: int, tower_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = nn.ModuleList(nn.Linear(8, 5) for _ in range(tasks))
        self.shared = nn.Linear(8, 5)
        self.gates = nn.ModuleList(nn.Linear(8, 2, bias=False) for _ in range(tasks))
        self.towers = nn.ModuleList(nn.Linear(5, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        shared = self.shared(x).relu()
        scores = []
        for own, gate, tower in zip(self.own, self.gates, self.towers, strict=True):
            experts = torch.stack([own(x).relu(), shared], 1)
            scores.append(tower((gate(x).softmax(1).unsqueeze(2) * experts).sum(1)))
        return scores


def test_overlapping_experts_join_and_what_needs_them_moves_behind() -> None:
    """The tower of the first task stands before the expert of the second."""
    ran = consolidated(Overlapping(2))
    assert ran.applied("consolidate-heads") == ["computed 2 mixtures of 3 experts by one product"]
    assert operators(ran.program).count("softmax") == 1
    assert operators(ran.program).count("linear") == 3 + 1 + 2


def test_experts_that_hardly_overlap_stay_apart() -> None:
    ran = consolidated(Overlapping(3), "consolidate-heads{max_waste=1.4}")
    assert (
        ran.applied("consolidate-heads") == ["computed a mixture of 2 experts by one product"] * 3
    )


class Chained(Heads):
    """The first mixture is an expert of the second."""

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = [expert(x).relu() for expert in self.experts]
        first = forms.rechub(self.gates[0](x).softmax(1), experts)
        second = forms.rechub(self.gates[1](x).softmax(1), [first, *experts[1:]])
        return [second]


def test_a_mixture_that_feeds_another_stays_apart() -> None:
    ran = consolidated(Chained(forms.rechub, tasks=2))
    assert ran.outcomes == [Outcome.CHANGED]
    assert operators(ran.program).count("bmm") == 2


def test_narrow_experts_are_a_miss() -> None:
    ran = consolidated(Heads(forms.rechub, width=3))
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("consolidate-heads") == ["its experts have fewer than 4 columns"]


def test_weighted_experts_that_are_used_elsewhere_are_a_miss() -> None:
    class Both(Heads):
        def forward(self, x: Tensor) -> list[Tensor]:
            pile = torch.stack([expert(x).relu() for expert in self.experts], 1)
            weighted = self.gates[0](x).softmax(-1).unsqueeze(2) * pile
            return [weighted.sum(1), weighted.amax(1)]

    ran = consolidated(Both(forms.rechub))
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("consolidate-heads") == ["its weighted experts are used elsewhere too"]


class Elsewhere(Heads):
    """Looks like a mixture: a half of the gate, one expert twice, or a sum over columns."""

    def __init__(self, what: str) -> None:
        super().__init__(forms.rechub)
        self.what = what

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = [expert(x).relu() for expert in self.experts]
        gate = self.gates[0](x).softmax(-1)
        if self.what == "half":
            return [forms.python_sum(gate, experts[:2])]
        if self.what == "columns":
            return [(torch.stack(experts, 1) * gate.unsqueeze(2)).sum(2)]
        if self.what == "shifted":
            return [sum(gate[:, i, None] * y.roll(i, 1) for i, y in enumerate(experts))]
        return [sum(gate[:, i, None] * y * y for i, y in enumerate(experts))]


@pytest.mark.parametrize("what", ["half", "columns", "shifted", "squared"])
def test_what_only_looks_like_a_mixture(what: str) -> None:
    """A half of a gate isn't one; a roll or a square makes experts of their own."""
    ran = consolidated(Elsewhere(what))
    assert (ran.outcomes == [Outcome.CHANGED]) == (what == "shifted")


@pytest.mark.parametrize(("tasks", "products"), [(1, 1), (3, 1)])
def test_mmoe_as_it_is_written(tasks: int, products: int) -> None:
    torch.manual_seed(0)
    names = tuple(f"task{i}" for i in range(tasks))
    config = MMoEConfig((50, 31), 4, embedding_dim=8, tasks=names, experts=3, expert=(16, 8))
    program = capture(MMoE(config).eval())
    ran = run_passes(program, "rounding,consolidate-heads")
    assert operators(ran.program).count("bmm") == products
    assert operators(ran.program).count("softmax") == 1


def test_ple_as_it_is_written() -> None:
    """The gates of the first level read one value, those of the second one each."""
    torch.manual_seed(0)
    config = PLEConfig((50, 31), 4, embedding_dim=8, expert=(16, 8), tower=(16,))
    ran = run_passes(capture(PLE(config).eval()), "rounding,consolidate-heads")
    assert operators(ran.program).count("softmax") == 1 + 3
    assert operators(ran.program).count("bmm") == 1 + 3


@settings(max_examples=5, deadline=None, derandomize=True)
@given(forms.multi_task())
@pytest.mark.slow
def test_random_multi_task_models_score_alike(model: nn.Module) -> None:
    program = canonical(model, X)
    ran = run_passes(program, "consolidate-heads,merge-linears,eliminate")
    assert operators(ran.program).count("sum") == 0
    rows = made_up(program, 50, seed=3)
    moved = divergence(program.run(rows), ran.program.run(rows))
    assert moved.relative <= ROUNDING_FLOOR
    again = run_passes(ran.program, "consolidate-heads")
    assert again.outcomes == [Outcome.UNCHANGED]
