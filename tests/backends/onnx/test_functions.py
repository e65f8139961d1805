"""Functions that ONNX has no operator for."""

from __future__ import annotations

import torch
from alone import on_onnxruntime
from torch import Tensor


def all_of(x: Tensor) -> Tensor:
    """Signs, powers, and angles in their quadrant."""
    found = [x.sign(), torch.nn.functional.hardswish(x), x**2, x**3, torch.atan2(x, -x)]
    return torch.stack(found, 1)


def test_each_is_what_eager_computes() -> None:
    found, expected = on_onnxruntime(all_of, torch.tensor([[-2.0, -0.5, 0.0, 0.25, 3.0]]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
