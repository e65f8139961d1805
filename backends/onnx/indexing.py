"""Scatters and searches as PyTorch computes them, in standard ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.function_libs.torch_lib.tensor_typing import TTensor

from ...optimizer.errors import UnsupportedError
from .arithmetic import constant, floor_divide, op

_aten = torch.ops.aten
#: Up to so many borders each value is compared with all of them.
_COMPARED = 64
_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


def scatter_reduce(
    x: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool = True
) -> Any:
    """``aten.scatter_reduce.two``: means too, from what reduces nothing, NaN where one goes in."""
    dtype = x.dtype
    rank = len(x.shape)
    if rank == 0:
        flat = op.Constant(value_ints=[-1])
        parts = [op.Reshape(value, flat) for value in (x, index, source)]
        for part, value in zip(parts, (x, index, source), strict=True):
            part.dtype, part.shape = value.dtype, ir.Shape([1])
        made = scatter_reduce(parts[0], 0, parts[1], parts[2], reduce, include_self)
        return op.Reshape(made, op.Constant(value_ints=np.zeros(0, np.int64).tolist()))
    # What lies beside the index isn't read.
    source = _as_large(source, index)
    base = x if include_self else _put(x, dim, index, _neutral(reduce, dtype))
    mode = _REDUCTIONS[reduce]
    total = op.ScatterElements(base, index, source, axis=dim, reduction=mode)
    if reduce == "mean":
        return _mean(total, x, dim, index, include_self, dtype)
    if reduce in ("amax", "amin") and dtype.is_floating_point():
        return _with_nan(total, base, dim, index, source, dtype)
    return total


def scatter_with(x: Any, dim: int, index: Any, src: Any, reduce: str) -> Any:
    """``aten.scatter.reduce``: the older name of sums and products."""
    return scatter_reduce(x, dim, index, src, {"add": "sum", "multiply": "prod"}[reduce])


def _as_large(source: Any, index: Any) -> Any:
    if list(map(str, source.shape or ())) == list(map(str, index.shape or (None,))):
        return source
    rank = len(source.shape)
    zeros = op.Constant(value_ints=[0] * rank)
    return op.Slice(source, zeros, op.Shape(index), op.Constant(value_ints=list(range(rank))))


def _neutral(reduce: str, dtype: ir.DataType) -> Any:
    """What a reduction takes no notice of."""
    if reduce in ("sum", "mean"):
        return constant(0, dtype)
    if reduce == "prod":
        return constant(1, dtype)
    if dtype.is_floating_point():
        return constant(-np.inf if reduce == "amax" else np.inf, dtype)
    bounds = np.iinfo(dtype.numpy())
    return constant(bounds.min if reduce == "amax" else bounds.max, dtype)


def _put(x: Any, dim: int, index: Any, value: Any) -> Any:
    return op.ScatterElements(x, index, op.Expand(value, op.Shape(index)), axis=dim)


def _mean(total: Any, x: Any, dim: int, index: Any, include_self: bool, dtype: ir.DataType) -> Any:
    """The sums over their counts; integers are floored, and what nothing goes to stays."""
    one, zero = constant(1, dtype), constant(0, dtype)
    counted = op.Expand(one if include_self else zero, op.Shape(x))
    ones = op.Expand(one, op.Shape(index))
    counts = op.ScatterElements(counted, index, ones, axis=dim, reduction="add")
    counts = op.Max(counts, one)
    if dtype.is_floating_point():
        return op.Div(total, counts)
    counts.dtype = total.dtype = dtype
    return floor_divide(total, counts)


def _with_nan(total: Any, base: Any, dim: int, index: Any, source: Any, dtype: ir.DataType) -> Any:
    to = int(dtype)
    before = op.Cast(op.IsNaN(base), to=to)
    put = op.Cast(op.IsNaN(source), to=to)
    found = op.ScatterElements(before, index, put, axis=dim, reduction="max")
    return op.Where(op.Greater(found, constant(0, dtype)), constant(np.nan, dtype), total)


def searchsorted(
    borders: TTensor,
    values: TTensor,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """``aten.searchsorted``: how many borders lie before a value; of NaN all of them."""
    if sorter is not None:
        raise UnsupportedError("searchsorted with a sorter; sort the borders before")
    right = right or side == "right"
    known = values.dtype if isinstance(values, ir.Value) else borders.dtype
    if not isinstance(values, ir.Value):
        values = constant(values, known)
    shape: Any = borders.shape
    count, rows = shape[-1], len(shape) > 1
    common = _common(values.dtype, borders.dtype)
    values, borders = _as(values, common), _as(borders, common)
    if isinstance(count, int) and count <= _COMPARED:
        found = _counted(borders, values, right, rows)
    else:
        found = _halved(borders, values, right, count, rows)
    return op.Cast(found, to=int(ir.DataType.INT32)) if out_int32 else found


def _common(one: Any, other: Any) -> Any:
    """The type that C++ compares two numbers in: the floating-point one, or the wider."""
    return max((one, other), key=lambda kind: (kind.is_floating_point(), kind.itemsize))


def _as(value: Any, kind: Any) -> Any:
    return value if value.dtype is kind else op.Cast(value, to=int(kind))


def bucketize(
    values: TTensor, borders: TTensor, out_int32: bool = False, right: bool = False
) -> Any:
    """``aten.bucketize``."""
    return searchsorted(borders, values, out_int32, right)


def _beyond(border: Any, value: Any, right: bool) -> Any:
    """Whether a value belongs behind a border; NaN belongs behind all."""
    return op.Not(op.Greater(border, value) if right else op.GreaterOrEqual(border, value))


def _counted(borders: Any, values: Any, right: bool, rows: bool) -> Any:
    last = op.Constant(value_ints=[-1])
    if rows:
        borders = op.Unsqueeze(borders, op.Constant(value_ints=[-2]))
    behind = _beyond(borders, op.Unsqueeze(values, last), right)
    return op.ReduceSum(op.Cast(behind, to=int(ir.DataType.INT64)), last, keepdims=0)


def _halved(borders: Any, values: Any, right: bool, count: Any, rows: bool) -> Any:
    """PyTorch's bisection, as many steps as the number of borders has bits."""
    if not isinstance(count, int):
        raise UnsupportedError("searchsorted in a number of borders that isn't fixed")
    whole = ir.DataType.INT64
    low = op.Expand(constant(0, whole), op.Shape(values))
    high = op.Expand(constant(count, whole), op.Shape(values))
    for _ in range(count.bit_length()):
        middle = op.Div(op.Add(low, high), constant(2, whole))
        place = op.Min(middle, constant(count - 1, whole))
        border = op.GatherElements(borders, place, axis=-1) if rows else op.Gather(borders, place)
        behind, open_ = _beyond(border, values, right), op.Less(low, high)
        up, down = op.And(open_, behind), op.And(open_, op.Not(behind))
        low = op.Where(up, op.Add(middle, constant(1, whole)), low)
        high = op.Where(down, middle, high)
    return low


def sort(x: Any, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """``aten.sort``, stable."""
    return _largest_first(x, _size(x, dim), dim, descending)


def stable_sort(
    x: Any, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """``aten.sort.stable``."""
    return sort(x, dim, descending)


def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """``aten.topk``: NaN counts as larger than all."""
    if not len(x.shape):
        return op.Identity(x), constant(0, ir.DataType.INT64)
    return _largest_first(x, op.Constant(value_ints=[k]), dim, largest)


def _size(x: Any, dim: int) -> Any:
    return op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))


def _largest_first(x: Any, count: Any, dim: int, descending: bool) -> tuple[Any, Any]:
    """So many of the largest, or smallest, in order; of equals the first comes first.

    TopK is stable, but has no place for NaN: those are told apart by a second, stable sort.
    """
    order = {"axis": dim, "largest": int(descending), "sorted": 1}
    if not x.dtype.is_floating_point():
        values, places = op.TopK(x, count, **order)
        return values, places
    size = _size(x, dim)
    missing = op.IsNaN(x)
    key = op.Where(missing, constant(np.inf, x.dtype), x)
    _, first = op.TopK(key, size, **order)
    flags = op.Cast(op.GatherElements(missing, first, axis=dim), to=int(ir.DataType.INT32))
    _, second = op.TopK(flags, count, **order)
    places = op.GatherElements(first, second, axis=dim)
    return op.GatherElements(x, places, axis=dim), places


#: What the exporter writes otherwise, or not at all.
INDEXING: dict[Any, Any] = {
    _aten.scatter_reduce.two: scatter_reduce,
    _aten.scatter.reduce: scatter_with,
    _aten.searchsorted.Tensor: searchsorted,
    _aten.searchsorted.Scalar: searchsorted,
    _aten.bucketize.Tensor: bucketize,
    _aten.sort.default: sort,
    _aten.sort.stable: stable_sort,
    _aten.topk.default: topk,
}
