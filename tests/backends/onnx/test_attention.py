"""Attention as PyTorch has it, masks included."""

from __future__ import annotations

import torch
from alone import on_onnxruntime
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention


def both(x: Tensor) -> Tensor:
    """With a scale of its own, and seeing no later row."""
    return torch.stack([attention(x, x, x, scale=0.25), attention(x, x, x, is_causal=True)], 1)


def test_attention_weighs_by_its_scale_and_its_mask() -> None:
    found, expected = on_onnxruntime(both, torch.randn(2, 3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
