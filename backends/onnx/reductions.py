"""Extremes, means and truths over dimensions as PyTorch computes them, in standard ONNX.

ONNX Runtime's ReduceMax and ArgMax step over NaN, where PyTorch gives NaN and its place; over an
empty dimension its mean is 0 and its ``any`` and ``all`` are of the least integer. A pooled maximum
of embeddings costs what it did: where NaN can't come from, nothing is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from .arithmetic import constant, op

_aten = torch.ops.aten
#: Values further up than this are taken to be of anything.
_DEPTH = 32
#: How `_marked` is asked whether it holds a NaN, from the last operator to the first.
_SEARCH = ("Greater", "ReduceMax", "Cast", "IsNaN")
#: Products and sums of values below it are finite.
_FAR = 1e18
#: What makes NaN only of NaN, and the inputs that its floats are of; None for all.
_PASSES: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Gather", "GatherElements", "Reshape", "Unsqueeze", "Squeeze"), (0,)),
    **dict.fromkeys(("Slice", "Expand", "Transpose", "Identity", "Flatten", "Cast"), (0,)),
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid", "Abs", "Neg", "Clip", "DequantizeLinear"), (0,)),
    **dict.fromkeys(("LeakyRelu", "Elu", "Floor", "Ceil", "Round", "Sign", "Split"), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min"), None),
    "Where": (1, 2),
}


_MOVES = frozenset(("Gather", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Transpose", "Cast"))


def never_nan(value: ir.Value, depth: int = _DEPTH) -> bool:
    """Whether a value can't hold NaN, whatever a model is given."""
    if value.dtype is not None and not value.dtype.is_floating_point():
        return True
    if value.const_value is not None:
        return _has_none(value.const_value)
    maker = value.producer()
    if maker is None or depth == 0:
        return False
    if maker.op_type == "Constant":
        tensor = maker.attributes.get_tensor("value")
        return tensor is not None and _has_none(tensor)
    if maker.op_type in ("Mul", "Add", "Sub"):  # the codes of a table, times a step and so on
        return all(_largest(one, depth - 1) < _FAR for one in maker.inputs)
    if maker.op_type not in _PASSES:
        return False
    return all(one is not None and never_nan(one, depth - 1) for one in _passed(maker))


def _passed(maker: ir.Node) -> Sequence[ir.Value | None]:
    places = _PASSES[maker.op_type]
    return maker.inputs if places is None else [maker.inputs[place] for place in places]


def _largest(value: ir.Value | None, depth: int) -> float:
    """How far from 0 a value may be, infinity where that isn't known."""
    if value is None or depth == 0:
        return math.inf
    maker = value.producer()
    if value.const_value is not None:
        values = value.const_value.numpy()
        found = np.array([values.min(), values.max()]).astype(np.float64) if values.size else 0.0
        largest = float(np.abs(found).max())
        return math.inf if math.isnan(largest) else largest
    if value.dtype is not None and not value.dtype.is_floating_point():
        return 2.0**value.dtype.bitwidth
    if maker is None:
        return math.inf
    if maker.op_type in _MOVES:
        return _largest(maker.inputs[0], depth - 1)
    if maker.op_type in ("Mul", "Add", "Sub"):
        left, right = (_largest(one, depth - 1) for one in maker.inputs)
        found = left * right if maker.op_type == "Mul" else left + right
        return math.inf if math.isnan(found) else found
    return math.inf


def _has_none(tensor: ir.TensorProtocol) -> bool:
    values = tensor.numpy()
    return values.size == 0 or not bool(np.isnan(values.min()))


def drop_needless(model: ir.Model) -> None:
    """Takes a reduction as it is where what it reduces is never NaN.

    Weights are known only once the whole model is written.
    """
    for node in model.graph:
        if node.op_type != "Where":
            continue
        searched: ir.Value | None = node.inputs[0]
        for maker in _SEARCH:
            source = searched.producer() if searched is not None else None
            searched = source.inputs[0] if source is not None and source.op_type == maker else None
        plain = node.inputs[2]
        if searched is not None and plain is not None and never_nan(searched):
            node.outputs[0].replace_all_uses_with(plain, replace_graph_outputs=True)


def _axes(axes: Sequence[int]) -> Any:
    return op.Constant(value_ints=list(axes))


def _all_axes(x: Any, dim: int | Sequence[int] | None) -> list[int]:
    rank = len(x.shape)
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(rank))
    return [axis % rank for axis in ([dim] if isinstance(dim, int) else dim)] if rank else []


def _extreme(reduce: Callable[..., Any], x: Any, axes: list[int], keepdim: bool) -> Any:
    if not axes:
        return op.Identity(x)
    whole = {ir.DataType.BOOL, ir.DataType.INT16}
    if x.dtype in whole:  # which ONNX Runtime doesn't reduce
        wide = op.Cast(x, to=int(ir.DataType.INT32))
        return op.Cast(reduce(wide, _axes(axes), keepdims=int(keepdim)), to=int(x.dtype))
    found = reduce(x, _axes(axes), keepdims=int(keepdim))
    if not x.dtype.is_floating_point():
        return found
    missing = op.ReduceMax(_marked(x), _axes(axes), keepdims=int(keepdim))
    nan = constant(math.nan, x.dtype)
    return op.Where(op.Greater(missing, constant(0.0, ir.DataType.FLOAT)), nan, found)


def _marked(x: Any) -> Any:
    """1 where NaN is, else 0."""
    return op.Cast(op.IsNaN(x), to=int(ir.DataType.FLOAT))


def _place(arg: Callable[..., Any], x: Any, dim: int | None, keepdim: bool) -> Any:
    """Where the first NaN is, else the first extreme."""
    rank = len(x.shape)
    if rank == 0:
        return op.Constant(value_int=0)
    if dim is None:
        flat = _place(arg, _flat(x), 0, False)
        return op.Reshape(flat, op.Constant(value_ints=[1] * rank)) if keepdim else flat
    axis, keep = dim % rank, int(keepdim)
    if x.dtype in (ir.DataType.BOOL, ir.DataType.INT16):
        x = op.Cast(x, to=int(ir.DataType.INT32))
        return arg(x, axis=axis, keepdims=keep)
    found = arg(x, axis=axis, keepdims=keep)
    if not x.dtype.is_floating_point():
        return found
    marked = _marked(x)
    first = op.ArgMax(marked, axis=axis, keepdims=keep)
    missing = op.ReduceMax(marked, _axes([axis]), keepdims=keep)
    return op.Where(op.Greater(missing, constant(0.0, ir.DataType.FLOAT)), first, found)


def _flat(x: Any) -> Any:
    flat = op.Reshape(x, op.Constant(value_ints=[-1]))
    flat.dtype, flat.shape = x.dtype, ir.Shape([None])
    return flat


def amax(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """``aten.amax``: NaN where one goes in."""
    return _extreme(op.ReduceMax, x, _all_axes(x, dim), keepdim)


def amin(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """``aten.amin``: NaN where one goes in."""
    return _extreme(op.ReduceMin, x, _all_axes(x, dim), keepdim)


def max_dim(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """``aten.max.dim``: the values, and their first places."""
    return amax(x, [dim], keepdim), argmax(x, dim, keepdim)


def min_dim(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """``aten.min.dim``: the values, and their first places."""
    return amin(x, [dim], keepdim), argmin(x, dim, keepdim)


def argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """``aten.argmax``: the first place of NaN, else of the largest."""
    return _place(op.ArgMax, x, dim, keepdim)


def argmin(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """``aten.argmin``: the first place of NaN, else of the smallest."""
    return _place(op.ArgMin, x, dim, keepdim)


def mean(x: Any, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """``aten.mean``: NaN of nothing."""
    if dtype not in (-1, None):
        x = op.Cast(x, to=dtype)
    wanted = x.dtype if dtype in (-1, None) else ir.DataType(dtype)
    axes = _all_axes(x, dim)
    if not axes:
        return op.Identity(x)
    found = op.ReduceMean(x, _axes(axes), keepdims=int(keepdim))
    sizes = [x.shape[axis] for axis in axes]
    if all(isinstance(size, int) and size > 0 for size in sizes):
        return found
    count = op.ReduceProd(op.Gather(op.Shape(x), _axes(axes)), keepdims=0)
    nothing = op.Equal(count, constant(0, ir.DataType.INT64))
    return op.Where(nothing, constant(math.nan, wanted), found)


def mean_all(x: Any, dtype: int = -1) -> Any:
    """``aten.mean.default``."""
    return mean(x, None, False, dtype)


def some(x: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Any:
    """``aten.any``: False of nothing."""
    return _truth(op.ReduceMax, x, dim, keepdim, neutral=0)


def every(x: Any, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Any:
    """``aten.all``: True of nothing."""
    return _truth(op.ReduceMin, x, dim, keepdim, neutral=1)


def _truth(
    reduce: Callable[..., Any],
    x: Any,
    dim: int | Sequence[int] | None,
    keepdim: bool,
    *,
    neutral: int,
) -> Any:
    """ONNX Runtime reduces no truths, and of no integers gives the least or the largest."""
    axes = _all_axes(x, dim)
    held = x if x.dtype == ir.DataType.BOOL else op.Cast(x, to=int(ir.DataType.BOOL))
    if not axes:
        return held
    found = reduce(op.Cast(held, to=int(ir.DataType.INT32)), _axes(axes), keepdims=int(keepdim))
    # The least integer isn't above 0, nor the largest below 1: these are what nothing gives.
    one = constant(1, ir.DataType.INT32)
    return op.Equal(found, one) if neutral == 0 else op.GreaterOrEqual(found, one)


def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enabled: bool = True,
) -> Any:
    """``aten.group_norm``, of an empty batch too, where nothing can be inferred of a shape."""
    sizes = x.shape[1:]
    inner = -1
    if all(isinstance(size, int) for size in sizes):
        inner = math.prod(int(size) for size in sizes) // num_groups
    grouped = op.Reshape(x, op.Constant(value_ints=[0, num_groups, inner]))
    ones = constant(np.ones(num_groups), x.dtype)
    zeros = constant(np.zeros(num_groups), x.dtype)
    normal = op.InstanceNormalization(grouped, ones, zeros, epsilon=eps)
    normal = op.Reshape(normal, op.Shape(x), allowzero=1)
    last = op.Constant(value_ints=[-1, *[1] * (len(x.shape) - 2)])
    if weight is not None:
        normal = op.Mul(normal, op.Reshape(weight, last))
    return normal if bias is None else op.Add(normal, op.Reshape(bias, last))


#: What the exporter would write otherwise.
REDUCTIONS: dict[Any, Any] = {
    _aten.amax.default: amax,
    _aten.amin.default: amin,
    _aten.max.default: amax,
    _aten.min.default: amin,
    _aten.max.dim: max_dim,
    _aten.min.dim: min_dim,
    _aten.argmax.default: argmax,
    _aten.argmin.default: argmin,
    _aten.mean.dim: mean,
    _aten.mean.default: mean_all,
    _aten.any.default: some,
    _aten.any.dim: some,
    _aten.any.dims: some,
    _aten.all.default: every,
    _aten.all.dim: every,
    _aten.all.dims: every,
    _aten.group_norm.default: group_norm,
}
