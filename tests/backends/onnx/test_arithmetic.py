"""Remainders and quotients as PyTorch has them."""

from __future__ import annotations

import torch
from alone import on_onnxruntime
from torch import Tensor


def all_of(x: Tensor) -> Tensor:
    """Remainders and quotients by 3, and a clamp."""
    found = [x % 3, x.fmod(3), x // 3, torch.div(x, 3, rounding_mode="trunc"), x.clamp(-2, 4)]
    return torch.stack(found, 1).float()


def test_integers_have_pytorchs_signs() -> None:
    found, expected = on_onnxruntime(all_of, torch.tensor([[-7, -3, 0, 5], [8, -8, 1, 2]]))
    assert torch.equal(found, expected)
