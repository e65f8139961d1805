"""``len`` of a tensor and ``int`` of a size don't fix the number of rows."""

from __future__ import annotations

import rankc
import torch
from torch import Tensor, nn


class Counted(nn.Module):
    """Means by hand."""

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(len(x), 1)
        return (x.sum(1, keepdim=True) + zeros).squeeze(1)


def test_the_batch_stays_open() -> None:
    program = rankc.capture(Counted().eval(), torch.randn(3, 4))
    (score,) = program.run({"x": torch.randn(7, 4)}).values()
    assert score.shape == (7,)
