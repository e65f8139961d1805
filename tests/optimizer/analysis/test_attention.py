"""Attention is found however it is written."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.attention import attentions
from support import canonical
from torch import Tensor, nn


class Spelled(nn.Module):
    """Softmax of scaled products."""

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ x.transpose(1, 2)) * 0.5
        return (scores.softmax(-1) @ x).sum((1, 2))


class Whole(nn.Module):
    """The operator."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x).sum((1, 2))


def test_both_forms_are_found_with_their_scale() -> None:
    x = torch.randn(3, 5, 4)
    (spelled,) = attentions(canonical(Spelled(), x))
    (whole,) = attentions(canonical(Whole(), x))
    assert spelled.scale == whole.scale == 0.5
    assert spelled.turned
    assert not whole.turned
