"""Capture by tracing Python first."""

from __future__ import annotations

import torch
from rankc.frontends.trace import trace
from torch import Tensor, nn


class Tupled(nn.Module):
    """One tensor out."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.relu() + 1,)


def test_the_trace_computes_the_same() -> None:
    x = torch.randn(3, 2)
    (found,) = trace(Tupled(), {"x": x})(x)
    assert torch.equal(found, x.relu() + 1)
