"""Functions of a number whose ONNX form by the exporter isn't PyTorch's at NaN, infinity or 0."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch

from .arithmetic import constant, op

_aten = torch.ops.aten


def atan2(y: Any, x: Any) -> Any:
    """``aten.atan2``: the angle of each quadrant, of zeros with a sign and of two infinities."""
    dtype = y.dtype
    zero, one = constant(0.0, dtype), constant(1.0, dtype)
    up, along = op.Abs(y), op.Abs(x)
    alike = op.Where(op.Equal(up, zero), zero, one)  # 0 over 0, infinity over infinity
    ratio = op.Where(op.Equal(up, along), alike, op.Div(up, along))
    angle = op.Atan(ratio)
    angle = op.Where(_is_negative(x, dtype), op.Sub(constant(math.pi, dtype), angle), angle)
    return op.Where(_is_negative(y, dtype), op.Neg(angle), angle)


def _is_negative(x: Any, dtype: ir.DataType) -> Any:
    """Whether the sign is set, that of 0 too."""
    zero = constant(0.0, dtype)
    return op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))


def sign(x: Any) -> Any:
    """``aten.sign``: 0 of NaN."""
    found = op.Sign(x)
    if not x.dtype.is_floating_point():
        return found
    return op.Where(op.IsNaN(x), constant(0.0, x.dtype), found)


def hardswish(x: Any) -> Any:
    """``aten.hardswish``, in the order in which PyTorch multiplies."""
    three, six = constant(3.0, x.dtype), constant(6.0, x.dtype)
    gate = op.Clip(op.Add(x, three), constant(0.0, x.dtype), six)
    return op.Div(op.Mul(x, gate), six)


def power(x: Any, exponent: Any) -> Any:
    """``aten.pow`` by a number: square roots are NaN below 0, where Pow makes infinity of -inf."""
    if isinstance(exponent, ir.Value):
        return power_of(x, exponent)
    dtype = x.dtype
    if isinstance(exponent, float) and not dtype.is_floating_point():
        dtype = ir.DataType.FLOAT
        x = op.Cast(x, to=int(dtype))
    if abs(exponent) == 0.5:
        root = op.Sqrt(x)
        return root if exponent > 0 else op.Reciprocal(root)
    return op.Pow(x, constant(exponent, dtype))


def power_of(x: Any, exponent: Any) -> Any:
    """``aten.pow`` of tensors, in the wider of both types; ONNX gives the first one's."""
    wide = _wider(x.dtype, exponent.dtype)
    return op.Pow(x if x.dtype == wide else op.Cast(x, to=int(wide)), exponent)


def _wider(left: ir.DataType, right: ir.DataType) -> ir.DataType:
    if left.is_floating_point() != right.is_floating_point():
        return left if left.is_floating_point() else right
    return left if left.bitwidth >= right.bitwidth else right


#: What the exporter would write otherwise.
FUNCTIONS: dict[Any, Any] = {
    _aten.atan2.default: atan2,
    _aten.sign.default: sign,
    _aten.hardswish.default: hardswish,
    _aten.pow.Tensor_Scalar: power,
    _aten.pow.Tensor_Tensor: power_of,
}
