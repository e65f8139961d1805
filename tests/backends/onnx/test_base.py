"""What backends that read ONNX have in common."""

from __future__ import annotations

import torch
from rankc.backends.onnxruntime.backend import OnnxRuntime
from support import capture_small
from torch import nn


def test_a_linear_is_had_by_all() -> None:
    program = capture_small(nn.Linear(3, 1), torch.randn(4, 3))
    assert not OnnxRuntime().lacks(program)
