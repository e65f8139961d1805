"""Parameters that are nearly the same become one, within the budget and only when asked for."""

from __future__ import annotations

import pytest
import rankc
import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, RuleJudge, assert_same_graph, canonical, run_passes, verdict
from torch import Tensor, nn

IDS = torch.arange(6)


class Twins(nn.Module):
    """Tables that are ``distances`` from the first."""

    def __init__(self, *distances: float, shape: tuple[int, int] = (64, 32)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(*shape) for _ in range(1 + len(distances)))
        for table, distance in zip(self.tables[1:], distances, strict=True):
            table.weight.data = self.tables[0].weight.data * (1 + distance)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([table(ids) for table in self.tables], 1).sum(1)


class Shared(nn.Module):
    """The same, each reading the table at its place."""

    def __init__(self, before: Twins, *reads: int) -> None:
        super().__init__()
        self.tables, self.reads = before.tables, reads

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([self.tables[index](ids) for index in self.reads], 1).sum(1)


def _tables(program: Program) -> int:
    return len(list(program.tensors()))


def shared(module: nn.Module, most: int | None = None, passes: str = "share-similar") -> Ran:
    """Runs the pass under a judge that wants at least so many tables."""

    def judge(program: Program) -> object:
        good = most is None or _tables(program) >= most
        return verdict(Status.PASS if good else Status.FAIL, 0.0, "" if good else "over budget")

    return run_passes(canonical(module, IDS), passes, judge=RuleJudge(judge))  # type: ignore[arg-type]


def test_before_and_expected() -> None:
    before = Twins(0.005, 0.5, 0.002)
    ran = shared(before)
    assert_same_graph(ran.program, Shared(before, 0, 0, 2, 0), (IDS,), tolerance=BIT_EQUAL)
    assert ran.applied("share-similar") == [
        "stored 2 similar parameters once, 16.0 KiB less",
    ]
    chosen = {site.site: site.chosen for site in ran.report.sites}
    assert chosen == {"tables.1.weight": "shared", "tables.3.weight": "shared"}


def test_what_differs_most_goes_back_while_over_budget() -> None:
    before = Twins(0.005, 0.002)
    ran = shared(before, most=2)
    assert_same_graph(ran.program, Shared(before, 0, 1, 0), (IDS,), tolerance=BIT_EQUAL)
    assert ran.missed("share-similar") == ["sharing it puts the model over budget"]
    assert {site.site: site.chosen for site in ran.report.sites}["tables.1.weight"] == "own"


def test_over_budget_altogether() -> None:
    ran = shared(Twins(0.005), most=2)
    assert ran.outcomes == [Outcome.UNCHANGED]


@pytest.mark.parametrize(
    ("module", "passes"),
    [
        (Twins(0.02), "share-similar"),
        (Twins(0.005), "share-similar{within=0.004}"),
        (Twins(0.005, shape=(8, 4)), "share-similar"),
    ],
    ids=["too far", "a tighter distance", "too small to compare by chance"],
)
def test_near_misses(module: nn.Module, passes: str) -> None:
    assert shared(module, passes=passes).outcomes == [Outcome.UNCHANGED]


def test_without_data_it_is_skipped() -> None:
    ran = run_passes(canonical(Twins(0.005), IDS), "share-similar")
    assert ran.outcomes == [Outcome.SKIPPED]


def test_no_pipeline_has_it() -> None:
    assert "share-similar" not in rankc.Pipeline.parse("default").spec()


def test_small_parameters_are_compared_with_their_own_place_in_another_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ctr, self.cvr = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other = nn.ParameterDict({"weight": torch.ones(4, 4)})
            self.cvr.weight.data, self.cvr.bias.data = (
                self.ctr.weight.data * 1.001,
                self.ctr.bias.data * 1.001,
            )

        def forward(self, ids: Tensor) -> Tensor:
            x = ids[:, None].float() * torch.ones(4)
            return (self.ctr(x) + self.cvr(x).relu() + x @ self.other["weight"]).sum(1)

    ran = shared(Two(), passes="fold-constants,share-similar,eliminate")
    assert {site.site for site in ran.report.sites} == {"cvr.weight", "cvr.bias"}
    linears = torch.ops.aten.linear.default
    assert len(ran.program.graph.find_nodes(op="call_function", target=linears)) == 1
