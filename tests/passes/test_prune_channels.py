"""prune-channels: units that scores don't need go, within the budget; each reason not to."""

from __future__ import annotations

import re

import pytest
import torch
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import PruneError
from rankc.optimizer.ir import Program
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    Ran,
    assert_same_graph,
    capture_small,
    made_up,
    run_passes,
)
from torch import Tensor, nn

#: What only a wrecked model exceeds, and what only rounding is within.
AMPLE, NONE = Budget(ne=0.5, max_rms_shift=1.0), Budget(ne=1e-8)
ROWS = torch.linspace(-1.0, 1.0, 48).reshape(8, 6)


class Mlp(nn.Module):
    """Two linears, and some hidden units between that nobody reads."""

    def __init__(self, width: int, dead: tuple[int, ...] = ()) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 1)
        alive = [unit for unit in range(width) if unit not in dead]
        for parameter in self.parameters():
            parameter.data.zero_()
        self.first.weight.data[alive] = torch.randn(len(alive), 6, generator=generator)
        self.last.weight.data[:, alive] = torch.randn(1, len(alive), generator=generator)
        self.first.weight.data[list(dead)] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).squeeze(1)


class Running(nn.Module):
    """A running sum reads all of its linear's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cumsum(self.first(x), 1)).squeeze(1)


def test_before_and_expected() -> None:
    ran = pruned(capture_small(Mlp(64, dead=tuple(range(0, 64, 2))), ROWS), budget=NONE)
    assert ran.outcomes[1] is Outcome.CHANGED
    assert_same_graph(ran.program, Mlp(32), (ROWS,), tolerance=BIT_EQUAL)
    (site,) = [site for site in ran.report.sites if site.site == "first"]
    assert (site.kind, site.shape, site.chosen) == ("units", (64, 32), "32 of 64 outputs")
    assert site.candidates[0]["removed"] == list(range(0, 64, 2))


def test_what_goes_is_kept_at_its_mean() -> None:
    """A unit that says the same for every row moves into the bias."""
    model = Mlp(64, dead=tuple(range(48, 64)))
    model.first.weight.data[48:] = 0.0
    model.first.bias.data[48:] = 2.0
    model.last.weight.data[:, 48:] = 0.5
    program = capture_small(model, ROWS)
    ran = pruned(program, budget=NONE)
    assert ran.program.tensor("first.weight").shape == (48, 6)
    rows = made_up(program, 64, seed=3)
    (before,), (after,) = (p.run(rows).values() for p in (program, ran.program))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0.0)


def test_nothing_goes_beyond_the_budget() -> None:
    program = capture_small(Mlp(64), ROWS)
    ran = pruned(program, budget=NONE)
    assert ran.outcomes[1] is Outcome.UNCHANGED
    assert ran.missed("prune-channels") == ["no unit saves time within the budget"]


def test_without_data_it_is_skipped() -> None:
    ran = run_passes(capture_small(Mlp(64), ROWS), "canonicalize,prune-channels")
    assert ran.outcomes[1] is Outcome.SKIPPED
    assert ran.missed("prune-channels") == ["there is no data to tell what units are worth"]


def test_an_operator_that_needs_all_of_a_value_is_named() -> None:
    ran = pruned(capture_small(Running(), ROWS))
    assert ran.said_of("first") == ["its outputs can't go: cumsum reads all of it"]
    assert ran.program.tensor("first.weight").shape[0] == 32


@pytest.mark.parametrize("allocation", ["automatic", "uniform"])
@pytest.mark.parametrize("importance", ["effect", "magnitude"])
def test_a_share_of_the_flops_goes_whatever_it_costs(importance: str, allocation: str) -> None:
    program = capture_small(Mlp(64), ROWS)
    spec = f"prune-channels{{flops=0.5,importance={importance},allocation={allocation}}}"
    ran = pruned(program, spec)
    assert ran.program.tensor("first.weight").numel() <= 0.5 * 64 * 6


def test_a_share_that_no_layer_can_give_is_an_error_that_names_it() -> None:
    told = re.compile(r"90% of the FLOPs were to go.*'first'.*cumsum reads all of it", re.DOTALL)
    with pytest.raises(PruneError, match=told):
        pruned(capture_small(Running(), ROWS), "prune-channels{flops=0.9}")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("prune-channels{importance=luck,flops=0.5}", "importance is effect or magnitude"),
        ("prune-channels{allocation=fair,flops=0.5}", "allocation is automatic or uniform"),
        ("prune-channels{pattern=1:4}", "pattern is units or 2:4"),
        ("prune-channels{pattern=2:4}", "save nothing on cpu-fp32: none of its kernels"),
        ("prune-channels{importance=magnitude}", "know no budget: give flops="),
    ],
)
def test_options_it_does_not_know(spec: str, told: str) -> None:
    with pytest.raises(PruneError, match=told):
        pruned(capture_small(Mlp(8), ROWS), spec)


class _Said(Ran):
    def said_of(self, site: str) -> list[str]:
        return [remark.message for remark in self.report.remarks if site in remark.sites]


def pruned(program: Program, spec: str = "prune-channels", budget: Budget = AMPLE) -> _Said:
    ran = run_passes(
        program,
        f"canonicalize,{spec}",
        judge=Judge.of(program, synthesize(program.signature, 512, seed=2), budget),
        calibration=[made_up(program, 256, seed=5)],
    )
    return _Said(ran.program, ran.report)
