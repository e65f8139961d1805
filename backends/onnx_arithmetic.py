"""Division, remainders, shifts and comparisons as PyTorch computes them, in standard ONNX.

The exporter divides integers in float32, takes the floor of a rounded quotient, and loses NaN in
maxima. ONNX's Div of integers truncates, its Mod has the sign of the divisor, and Mod with ``fmod``
that of the dividend. A divisor of 0 is an error in PyTorch; ONNX Runtime's Mod says so too, where
its Div would end the process, so a divisor that may be 0 goes through Mod first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset21

_aten = torch.ops.aten
# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21


def constant(value: Any, dtype: ir.DataType) -> Any:
    """A scalar."""
    return op.Constant(value=ir.tensor(np.array(value).astype(dtype.numpy()), dtype))


def _both(left: Any, right: Any) -> tuple[Any, Any, ir.DataType]:
    """Both operands as values of one type; a number takes the type of the other."""
    known = left.dtype if isinstance(left, ir.Value) else right.dtype
    if not isinstance(left, ir.Value):
        left = constant(left, known)
    if not isinstance(right, ir.Value):
        right = constant(right, known)
    return left, right, known


def _never_zero(divisor: Any) -> bool:
    """Whether it is known, and nowhere 0."""
    maker = divisor.producer()
    tensor = divisor.const_value if maker is None else maker.attributes.get_tensor("value")
    return tensor is not None and tensor.size < 1024 and bool((tensor.numpy() != 0).all())


def _integer_quotient(left: Any, right: Any, dtype: ir.DataType) -> tuple[Any, Any]:
    """The truncated quotient, and the remainder with the divisor's sign."""
    remainder = op.Mod(left, right)
    zero = constant(0, dtype)
    if not _never_zero(right):
        # Mod refuses 0; Div waits for it, since what it divides by is made of both.
        right = op.Add(right, op.BitwiseAnd(remainder, zero))
    return op.Div(left, right), remainder


def _signs_differ(left: Any, right: Any, dtype: ir.DataType) -> Any:
    zero = constant(0, dtype)
    return op.Xor(op.Less(left, zero), op.Less(right, zero))


def divide(left: Any, right: Any, rounding_mode: str | None = None) -> Any:
    """``aten.div`` with a rounding mode."""
    left, right, dtype = _both(left, right)
    if rounding_mode is None:
        return op.Div(left, right)
    if rounding_mode == "floor":
        return floor_divide(left, right)
    if dtype.is_floating_point():
        return truncate(op.Div(left, right))
    return _integer_quotient(left, right, dtype)[0]


def floor_divide(left: Any, right: Any) -> Any:
    """``aten.floor_divide``; of floats as c10's ``div_floor_floating``, which corrects rounding."""
    left, right, dtype = _both(left, right)
    if not dtype.is_floating_point():
        quotient, remainder = _integer_quotient(left, right, dtype)
        zero = constant(0, dtype)
        short = op.And(_signs_differ(left, right, dtype), op.Not(op.Equal(remainder, zero)))
        return op.Sub(quotient, op.Cast(short, to=int(dtype)))
    zero, one = constant(0.0, dtype), constant(1.0, dtype)
    plain = op.Div(left, right)
    remainder = op.Mod(left, right, fmod=1)
    quotient = op.Div(op.Sub(left, remainder), right)
    apart = op.And(_signs_differ(remainder, right, dtype), op.Not(op.Equal(remainder, zero)))
    quotient = op.Where(apart, op.Sub(quotient, one), quotient)
    floor = op.Floor(quotient)
    far = op.Greater(op.Sub(quotient, floor), constant(0.5, dtype))
    floor = op.Where(far, op.Add(floor, one), floor)
    floor = op.Where(op.Equal(quotient, zero), op.Mul(plain, zero), floor)  # keeps the sign of 0
    return op.Where(op.Equal(right, zero), plain, floor)


def truncate(x: Any) -> Any:
    """``aten.trunc``."""
    zero = constant(0.0, x.dtype)
    return op.Where(op.Less(x, zero), op.Ceil(x), op.Floor(x))


def remainder(left: Any, right: Any) -> Any:
    """``aten.remainder``: has the divisor's sign."""
    left, right, dtype = _both(left, right)
    if not dtype.is_floating_point():
        return op.Mod(left, right)
    rest = op.Mod(left, right, fmod=1)
    zero = constant(0.0, dtype)
    apart = op.And(_signs_differ(rest, right, dtype), op.Not(op.Equal(rest, zero)))
    return op.Where(apart, op.Add(rest, right), rest)


def fmod(left: Any, right: Any) -> Any:
    """``aten.fmod``: has the dividend's sign."""
    left, right, dtype = _both(left, right)
    if dtype.is_floating_point():
        return op.Mod(left, right, fmod=1)
    rest, zero = op.Mod(left, right), constant(0, dtype)
    apart = op.And(_signs_differ(left, right, dtype), op.Not(op.Equal(rest, zero)))
    return op.Where(apart, op.Sub(rest, right), rest)


def relu(x: Any) -> Any:
    """``aten.relu``, of integers too."""
    return op.Relu(x) if x.dtype.is_floating_point() else op.Max(x, constant(0, x.dtype))


#: What the exporter would write otherwise.
ARITHMETIC: dict[Any, Any] = {
    _aten.div.Tensor_mode: divide,
    _aten.div.Scalar_mode: divide,
    _aten.floor_divide.default: floor_divide,
    _aten.remainder.Tensor: remainder,
    _aten.remainder.Scalar: remainder,
    _aten.remainder.Scalar_Tensor: remainder,
    _aten.fmod.Tensor: fmod,
    _aten.fmod.Scalar: fmod,
    _aten.trunc.default: truncate,
    _aten.relu.default: relu,
}
