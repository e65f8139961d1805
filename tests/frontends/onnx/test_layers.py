"""Layers of a file score as ONNX Runtime scores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from alone import from_file
from onnx import helper, numpy_helper


def test_a_transposed_gemm_with_a_bias(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w"),
        numpy_helper.from_array(np.ones(2, np.float32), "b"),
    ]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    found, expected = from_file([node], torch.randn(4, 3), tmp_path, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
