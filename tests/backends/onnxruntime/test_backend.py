"""The backend that is always there."""

from __future__ import annotations

import torch
from alone import on_onnxruntime
from rankc.backends.onnxruntime.backend import OnnxRuntime
from torch import nn


def test_a_linear_scores_as_in_eager_pytorch() -> None:
    linear = nn.Linear(3, 2)
    found, expected = on_onnxruntime(linear, torch.randn(4, 3))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert "onnxruntime" in OnnxRuntime().versions()
