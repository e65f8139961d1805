"""Linears whose weights alone are coded, in ONNX: a DequantizeLinear before a product in bf16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from onnxscript import opset21

from ...optimizer.ir.ops import CODED_LINEAR
from .forms import Form

# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21


class CodedWeights(Form):
    """``coded_linear``; with a scale a block, its codes have 4 bits."""

    @property
    def translations(self) -> Mapping[Any, Callable[..., Any]]:
        """The reference."""
        return {CODED_LINEAR.op: _coded_linear}

    def finish(self, model: ir.Model) -> None:
        """Codes with a scale a block have 4 bits, which PyTorch has no tensors of."""
        for node in model.graph:
            block = node.attributes.get("block_size")
            codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
            if codes is None or codes.const_value is None or codes.dtype is not ir.DataType.INT8:
                continue
            if block is None or block.as_int() == 0:
                continue
            fours = codes.const_value.numpy().astype(ir.DataType.INT4.numpy())
            codes.const_value = ir.tensor(fours, ir.DataType.INT4, codes.name)
            codes.type = ir.TensorType(ir.DataType.INT4)


def _coded_linear(x: Any, codes: Any, scale: Any, bias: Any = None) -> Any:
    """The reference; with a scale a block, `finish` makes codes of 4 bits of the bytes."""
    if len(scale.shape) == 1:
        weight = op.DequantizeLinear(codes, scale, axis=0)
    else:
        block = int(codes.shape[1]) // int(scale.shape[1])
        weight = op.DequantizeLinear(codes, scale, axis=1, block_size=block)
    low = op.Cast(x, to=int(scale.dtype))
    product = op.MatMul(low, op.Transpose(weight, perm=[1, 0]))
    product = op.Cast(product, to=ir.DataType.FLOAT)
    return product if bias is None else op.Add(product, bias)
