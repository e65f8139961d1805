"""Where a score may jump."""

from __future__ import annotations

import torch
from rankc.optimizer.compare.landmarks import landmarks, truncates_integers
from support import canonical
from torch import Tensor, nn


class Steps(nn.Module):
    """A threshold at 3, of a feature divided by 2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x / 2 > 3.0, 1.0, 0.0).sum(-1)


def test_a_threshold_is_found_on_the_features_own_scale() -> None:
    program = canonical(Steps(), torch.randn(3, 2))
    assert 6.0 in landmarks(program)["x"].levels
    assert not truncates_integers(program)
