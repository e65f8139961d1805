"""Sizes that a file computes stay open in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from alone import from_file
from onnx import helper, numpy_helper


def test_a_reshape_by_a_computed_shape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.array([6]), "rest"),
    ]
    found, expected = from_file(nodes, torch.randn(5, 2, 3), tmp_path, weights)
    assert torch.equal(found, expected)
