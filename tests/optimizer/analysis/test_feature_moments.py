"""Batch norms tell what the features they read were like in training."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.analysis.feature_moments import as_seen, feature_moments
from support import capture_small, made_up
from torch import Tensor, nn

MEAN = torch.arange(1.0, 7.0)
VARIANCE = torch.arange(1.0, 7.0).square()


class Normed(nn.Module):
    """Six numbers through a batch norm, in some order, beside a table or not."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.table = nn.Embedding(10, 2)
        count = 8 if form == "joined" else 6
        self.norm = nn.BatchNorm1d(count)
        self.norm.running_mean[:6] = MEAN
        self.norm.running_var[:6] = VARIANCE
        self.over = nn.Linear(count, 4)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.form == "swapped":
            x = torch.cat([x[:, 3:], x[:, :3]], 1)
        if self.form == "joined":
            x = torch.cat([x, self.table(ids)], 1)
        if self.form == "changed":
            x = x.abs().log1p()
        if self.form == "halved":
            x = torch.cat([x[:, :3], x[:, 3:].sigmoid()], 1)
        scores = self.over(self.norm(x)) + self.table(ids).sum(1, keepdim=True)
        return torch.tanh(scores).sum(1)


@pytest.mark.parametrize(
    ("form", "order"),
    [("plain", range(6)), ("swapped", (3, 4, 5, 0, 1, 2)), ("joined", range(6))],
)
def test_every_value_has_the_moments_of_its_channel(form: str, order: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    program = capture_small(Normed(form), torch.rand(5, 6), torch.arange(5))
    found = feature_moments(program, made_up(program, 1, seed=0), ["x"])["x"]
    assert torch.equal(found.mean[list(order)], MEAN.double())
    assert torch.equal(found.deviation[list(order)].square(), VARIANCE.double())
    rows = as_seen({"x": found}, "x", torch.empty(4000, 6), torch.Generator().manual_seed(0))
    assert torch.allclose(rows.mean(0).double(), found.mean, rtol=0.2)


@pytest.mark.parametrize("form", ["changed", "halved"])
def test_what_a_norm_does_not_read_as_it_is_stays_unknown(form: str) -> None:
    torch.manual_seed(0)
    program = capture_small(Normed(form), torch.rand(5, 6), torch.arange(5))
    assert feature_moments(program, made_up(program, 1, seed=0), ["x"]) == {}
