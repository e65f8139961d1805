"""What units are worth: first order, set right by what half of each group moves scores by."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.pruning.channels import channels
from rankc.optimizer.pruning.importance import by_effect
from rankc.optimizer.pruning.moments import input_moments
from rankc.optimizer.pruning.removal import Removal
from rankc.optimizer.pruning.surgery import without
from support import capture_small, permissive_judge, run_passes
from torch import Tensor, nn


class TwoLayers(nn.Module):
    """A layer of three directions, whose units tell one another, beside one of 32."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.told, self.alone = nn.Linear(6, 32), nn.Linear(6, 32)
        self.last = nn.Linear(64, 1)
        for linear in (self.told, self.alone, self.last):
            linear.weight.data = torch.randn(linear.weight.shape, generator=generator)
        self.told.weight.data[:, 3:] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.told(x), self.alone(x).relu()], 1)).squeeze(1)


def prepared() -> Program:
    return run_passes(capture_small(TwoLayers(), torch.randn(4, 6)), "canonicalize").program


def test_half_of_each_group_is_worth_what_it_was_measured_to_cost() -> None:
    program = prepared()
    found, judge = channels(program), permissive_judge(program, 1024)
    rows = [judge.sample()]
    moments = input_moments(program, rows)
    worth = by_effect(program, found, rows, moments)
    told, measured = {}, {}
    for i, group in enumerate(found.groups):
        moves = worth.moves["score"][:, worth.units(i)]
        half = torch.argsort(moves.square().mean(0), stable=True)[: group.units // 2]
        smaller = without(program, found, Removal.of([(group, half.tolist())]), moments)
        told[group.site] = float(moves[:, half].sum(1).square().mean())
        measured[group.site] = judge.damages(smaller)["score"]
    assert 0.5 < told["alone"] / measured["alone"] < 2.0
    assert told["told"] < 0.01 * told["alone"]
