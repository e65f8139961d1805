"""factorize-linear: outputs of low rank are computed by two linears, where that is faster."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.compare.numerics import divergence
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.report.records import Outcome
from support import Ran, capture_small, made_up, operators, run_passes
from torch import Tensor, nn

ROWS = torch.linspace(-1.0, 1.0, 512).reshape(4, 128)


class Wide(nn.Module):
    """A linear of 128 by 128 whose weight has a rank of its own."""

    def __init__(self, rank: int, scale: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wide, self.last = nn.Linear(128, 128, bias=bias), nn.Linear(128, 1)
        left, right = (torch.randn(128, rank, generator=generator) for _ in range(2))
        for parameter in self.parameters():
            parameter.data.fill_(0.5)
        self.wide.weight.data = scale * left @ right.T / 128
        self.last.weight.data = torch.randn(1, 128, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(x).relu()).squeeze(1)


class Twice(Wide):
    """Reads its weight twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.wide(x).relu()).relu()).squeeze(1)


def factorized(module: nn.Module, ne: float = 1e-6, data: bool = True) -> Ran:
    program = capture_small(module, ROWS)
    rows = synthesize(program.signature, 512, seed=2)
    return run_passes(
        program,
        "canonicalize,factorize-linear",
        judge=Judge.of(program, rows, Budget(ne=ne)),
        calibration=[made_up(program, 1024, seed=5)] if data else [],
    )


@pytest.mark.parametrize("bias", [True, False])
def test_before_and_expected(bias: bool) -> None:
    ran = factorized(Wide(16, bias=bias))
    assert ran.outcomes[1] is Outcome.CHANGED
    assert operators(ran.program) == ["linear", "linear", "relu", "linear", "squeeze"]
    first, second = (ran.program.tensor(f"wide.weight_{part}") for part in ("in", "out"))
    assert (tuple(first.shape), tuple(second.shape)) == ((16, 128), (128, 16))
    rows = made_up(ran.program, 64, seed=7)
    whole = capture_small(Wide(16, bias=bias), ROWS)
    assert divergence(whole.run(rows), ran.program.run(rows)).relative < 1e-5


def test_each_rank_is_told_with_what_it_saves_and_costs() -> None:
    (site,) = factorized(Wide(16)).report.sites
    assert (site.site, site.kind, site.shape, site.chosen) == (
        "wide",
        "rank",
        (128, 128),
        "rank 16",
    )
    flops = {told["rank"]: told["flops"] for told in site.candidates}
    assert flops[16] == 0.25
    assert all(told["seconds"] > 0.0 for told in site.candidates)
    assert site.candidates[0]["damage"]["score"] < 1e-9


def test_full_rank_within_no_budget_is_a_miss() -> None:
    ran = factorized(Wide(128, scale=3.0))
    assert ran.outcomes[1] is Outcome.UNCHANGED
    assert "no rank that is faster is within the budget" in ran.missed("factorize-linear")


def test_narrow_linears_are_a_miss() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(128, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.only(x).sum(1)

    assert factorized(Narrow()).missed("factorize-linear") == ["two linears aren't faster"]


def test_a_weight_that_is_read_twice_stays() -> None:
    ran = factorized(Twice(16))
    assert ran.program.tensor("wide.weight").shape == (128, 128)


def test_without_data_it_is_skipped() -> None:
    ran = factorized(Wide(16), data=False)
    assert ran.missed("factorize-linear") == [
        "there is no data to tell which ranks a linear's outputs need"
    ]
