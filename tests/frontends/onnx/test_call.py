"""What is known of a node of a file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from rankc.frontends.onnx.call import describe, kind_of, read_tensor
from rankc.optimizer.errors import CaptureError


def test_nodes_are_named_with_their_kind() -> None:
    node = ir.node("Gemm", [ir.Value(name="x")], name="top")
    assert describe(node) == "'top' (Gemm)"
    assert kind_of(ir.node("Gemm", [], domain="ai.onnx")) == "Gemm"
    assert kind_of(ir.node("Gelu", [], domain="com.microsoft")) == "com.microsoft.Gelu"


def test_tensors_are_read_in_their_type() -> None:
    assert read_tensor(ir.tensor(np.array([1.5], np.float32))).tolist() == [1.5]
    bits = ir.tensor([1.0, 2.0], dtype=ir.DataType.BFLOAT16)
    assert read_tensor(bits).dtype is torch.bfloat16
    with pytest.raises(CaptureError, match="can't be captured"):
        read_tensor(ir.tensor(["text"]))
