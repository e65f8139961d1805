"""Division, remainders, shifts and comparisons as PyTorch computes them, in standard ONNX.

The exporter divides integers in float32, takes the floor of a rounded quotient, and loses NaN in
maxima. ONNX's Div of integers truncates, its Mod has the sign of the divisor, and Mod with ``fmod``
that of the dividend. A divisor of 0 is an error in PyTorch; ONNX Runtime's Mod says so too, where
its Div would end the process, so a divisor that may be 0 goes through Mod first. Div also ends the
process for the least number over -1, which PyTorch wraps: what may be -1 divides as 1, negated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset21
from onnxscript.function_libs.torch_lib.tensor_typing import TTensor

from ...optimizer.errors import UnsupportedError

_aten = torch.ops.aten
# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21
#: The most integers that are multiplied one by one.
_MULTIPLIED = 64


def constant(value: Any, dtype: ir.DataType) -> Any:
    """A scalar."""
    return op.Constant(value=ir.tensor(np.array(value).astype(dtype.numpy()), dtype))


def _both(left: Any, right: Any) -> tuple[Any, Any, ir.DataType]:
    """Both operands as values of one type; a number takes the type of the other."""
    # The annotation TTensor has the exporter give a number the other operand's type.
    known: Any = left.dtype if isinstance(left, ir.Value) else right.dtype
    if not isinstance(left, ir.Value):
        left = constant(left, known)
    if not isinstance(right, ir.Value):
        right = constant(right, known)
    return left, right, known


def _divides_safely(divisor: Any) -> bool:
    """Whether it is known, and nowhere 0 or -1."""
    maker = divisor.producer()
    tensor = divisor.const_value if maker is None else maker.attributes.get_tensor("value")
    return tensor is not None and tensor.size < 1024 and not np.isin(tensor.numpy(), (0, -1)).any()


def _integer_quotient(left: Any, right: Any, dtype: ir.DataType) -> tuple[Any, Any]:
    """The truncated quotient, and the remainder with the divisor's sign."""
    remainder = op.Mod(left, right)
    if _divides_safely(right):
        return op.Div(left, right), remainder
    # Mod refuses 0; Div waits for it, since what it divides by is made of both.
    right = op.Add(right, op.BitwiseAnd(remainder, constant(0, dtype)))
    back = op.Equal(right, constant(-1, dtype))
    left = op.Where(back, op.Neg(left), left)
    return op.Div(left, op.Where(back, constant(1, dtype), right)), remainder


def _signs_differ(left: Any, right: Any, dtype: ir.DataType) -> Any:
    zero = constant(0, dtype)
    return op.Xor(op.Less(left, zero), op.Less(right, zero))


def divide(left: TTensor, right: TTensor, rounding_mode: str | None = None) -> Any:
    """``aten.div`` with a rounding mode."""
    left, right, dtype = _both(left, right)
    if rounding_mode is None:
        return op.Div(left, right)
    if rounding_mode == "floor":
        return floor_divide(left, right)
    if dtype.is_floating_point():
        return _truncated(op.Div(left, right), dtype)
    return _integer_quotient(left, right, dtype)[0]


def floor_divide(left: TTensor, right: TTensor) -> Any:
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
    return _truncated(x, x.dtype)


def _truncated(x: Any, dtype: ir.DataType) -> Any:
    zero = constant(0.0, dtype)
    return op.Where(op.Less(x, zero), op.Ceil(x), op.Floor(x))


def remainder(left: TTensor, right: TTensor) -> Any:
    """``aten.remainder``: has the divisor's sign."""
    left, right, dtype = _both(left, right)
    if not dtype.is_floating_point():
        return op.Mod(left, right)
    rest = op.Mod(left, right, fmod=1)
    zero = constant(0.0, dtype)
    apart = op.And(_signs_differ(rest, right, dtype), op.Not(op.Equal(rest, zero)))
    return op.Where(apart, op.Add(rest, right), rest)


def fmod(left: TTensor, right: TTensor) -> Any:
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


def masked_fill(x: TTensor, mask: Any, value: TTensor) -> Any:
    """``aten.masked_fill``, of truths too, which ONNX Runtime's Where doesn't take."""
    value, x, dtype = _both(value, x)
    if dtype != ir.DataType.BOOL:
        return op.Where(mask, value, x)
    return op.Or(op.And(mask, value), op.And(op.Not(mask), x))


def add(left: TTensor, right: TTensor, alpha: float = 1.0) -> Any:
    """``aten.add``; a sum of truths is whether one holds."""
    left, right, dtype = _both(left, right)
    if dtype == ir.DataType.BOOL:
        return op.Or(left, right)
    if alpha != 1:
        right = op.Mul(right, constant(alpha, dtype))
    return op.Add(left, right)


def integer_sum(x: Any, axes: Any, keepdim: bool, rank: int) -> Any:
    """A sum over dimensions that wraps; ONNX Runtime sums int64 in float64."""
    last = [axis for axis in range(rank) if axis not in axes]
    turned = op.Transpose(x, perm=[*last, *axes])
    flat = op.Flatten(turned, axis=len(last))
    kept = op.Gather(op.Shape(x), op.Constant(value_ints=last)) if last else None
    ones = op.Expand(
        constant(1, ir.DataType.INT64),
        op.Concat(
            op.Gather(op.Shape(flat), op.Constant(value_ints=[1])),
            op.Constant(value_ints=[1]),
            axis=0,
        ),
    )
    total = op.MatMul(flat, ones)
    if kept is None:
        kept = op.Constant(value=ir.tensor(np.zeros(0, np.int64), ir.DataType.INT64))
    total = op.Reshape(total, kept, allowzero=1)
    if not keepdim:
        return total
    return op.Unsqueeze(total, op.Constant(value_ints=sorted(axes)))


def sum_dims(x: Any, dim: Any = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """``aten.sum.dim_IntList``."""
    rank = len(x.shape)
    axes = list(range(rank)) if not dim else [axis % rank for axis in dim]
    if dtype not in (-1, None):
        wanted = ir.DataType(dtype)
        x, known = (x if x.dtype == wanted else op.Cast(x, to=int(wanted))), wanted
    else:
        known = x.dtype
        if not known.is_floating_point() and known != ir.DataType.INT64:
            x = op.Cast(x, to=int(ir.DataType.INT64))
    if known == ir.DataType.INT64 and rank:
        return integer_sum(x, axes, keepdim, rank)
    if rank == 0:
        return op.Identity(x)
    return op.ReduceSum(x, op.Constant(value_ints=axes), keepdims=int(keepdim))


def clamp(x: Any, min: float | None = None, max: float | None = None) -> Any:
    """``aten.clamp``; Clip with one bound would take infinity for the largest number."""
    dtype = x.dtype
    if min is not None and max is not None:
        return op.Clip(x, constant(min, dtype), constant(max, dtype))
    if min is not None:
        return op.Max(x, constant(min, dtype))
    return x if max is None else op.Min(x, constant(max, dtype))


def prod_dim(x: Any, dim: int, keepdim: bool = False, dtype: int = -1) -> Any:
    """``aten.prod.dim_int``; of integers one by one: ONNX Runtime multiplies int64 in float64."""
    wanted = ir.DataType(dtype) if dtype not in (-1, None) else x.dtype
    if not wanted.is_floating_point():
        wanted = ir.DataType.INT64 if dtype in (-1, None) else wanted
    rank, size = len(x.shape), x.shape[dim] if len(x.shape) else 1
    x = x if x.dtype == wanted else op.Cast(x, to=int(wanted))
    if rank == 0:
        return op.Identity(x)
    axes = op.Constant(value_ints=[dim % rank])
    if wanted.is_floating_point() or size == 0:
        return op.ReduceProd(x, axes, keepdims=int(keepdim))
    if not isinstance(size, int) or size > _MULTIPLIED:
        raise UnsupportedError(f"a product of {size} integers; at most {_MULTIPLIED}")
    made = op.Gather(x, op.Constant(value_ints=[0]), axis=dim)
    for index in range(1, size):
        made = op.Mul(made, op.Gather(x, op.Constant(value_ints=[index]), axis=dim))
    return made if keepdim else op.Squeeze(made, axes)


def fmax(left: TTensor, right: TTensor) -> Any:
    """``aten.fmax``: NaN only where both are."""
    return _other_than_nan(left, right, op.Max(left, right))


def fmin(left: TTensor, right: TTensor) -> Any:
    """``aten.fmin``: NaN only where both are."""
    return _other_than_nan(left, right, op.Min(left, right))


def _other_than_nan(left: Any, right: Any, both: Any) -> Any:
    if not left.dtype.is_floating_point():
        return both
    return op.Where(op.IsNaN(left), right, op.Where(op.IsNaN(right), left, both))


def scalar_tensor(
    s: float,
    dtype: int = ir.DataType.FLOAT,
    layout: str = "",
    device: str = "",
    pin_memory: bool = False,
) -> Any:
    """``aten.scalar_tensor``: a number in its own type; the exporter rounds it to float32 first."""
    kind = ir.DataType(dtype if dtype != -1 else ir.DataType.FLOAT)
    if isinstance(s, ir.Value):
        return op.Cast(s, to=int(kind))
    return constant(s, kind)


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
    _aten.add.Tensor: add,
    _aten.add.Scalar: add,
    _aten.masked_fill.Scalar: masked_fill,
    _aten.masked_fill.Tensor: masked_fill,
    _aten.sum.dim_IntList: sum_dims,
    _aten.clamp.default: clamp,
    _aten.prod.dim_int: prod_dim,
    _aten.fmax.default: fmax,
    _aten.fmin.default: fmin,
    _aten.scalar_tensor.default: scalar_tensor,
}
