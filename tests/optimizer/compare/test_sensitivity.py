"""How far rounding alone moves a score."""

from __future__ import annotations

import torch
from rankc.optimizer.compare.sensitivity import spreads
from support import canonical
from torch import Tensor, nn


class Cancels(nn.Module):
    """A difference of large numbers, or of none."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.exp() + 1e4).log() - (1e4 + 0 * x).log()


class Moves(nn.Module):
    """Nothing is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1).abs()


def test_what_cancels_is_unsure_and_what_moves_is_not() -> None:
    x = torch.randn(8, 2)
    (far,) = spreads(canonical(Cancels(), x), {"x": x}).values()
    (near,) = spreads(canonical(Moves(), x), {"x": x}).values()
    assert float(far.reach.max()) > 0.0
    assert float(near.reach.max()) == 0.0
