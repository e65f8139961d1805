"""ONNX operators that move values: views, slices, lookups, joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Call, as_tensor

_Function = Callable[[Call], Any]


def _shape(call: Call) -> Any:
    value = call.inputs[0]
    assert value is not None
    sizes = list(value.shape)[slice(call.attr("start", 0), call.attr("end"))]
    static = all(isinstance(size, int) for size in sizes)
    return np.array(sizes, dtype=np.int64 if static else object)


def _size(call: Call) -> Any:
    total: Any = 1
    value = call.inputs[0]
    assert value is not None
    for size in value.shape:
        total = total * size
    return np.array(total, dtype=np.int64 if isinstance(total, int) else object)


def _reshape(call: Call) -> Tensor:
    x = call.tensor(0)
    sizes = call.numbers(1, "shape")
    assert sizes is not None
    if not call.attr("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    dynamic = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if len(dynamic) == 1 and -1 not in sizes and 0 not in sizes:
        sizes[dynamic[0]] = -1
    return x.reshape(sizes)


def _flatten(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.attr("axis", 1)
    axis = axis % x.dim() if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    if axis == x.dim():
        return x.reshape(-1, 1)
    return x.flatten(axis).flatten(0, axis - 1) if axis > 1 else x.flatten(axis)


def _transpose(call: Call) -> Tensor:
    x = call.tensor(0)
    order = call.attr("perm") or list(reversed(range(x.dim())))
    moved = [index for index, place in enumerate(order) if index != place]
    if not moved:
        return x
    # A swap is spelled as torch's models spell it.
    return x.transpose(*moved) if len(moved) == 2 else x.permute(order)


def _squeeze(call: Call) -> Tensor:
    x, axes = call.tensor(0), call.numbers(1, "axes")
    if axes is None:
        # The batch may be of one row, and stays a dimension all the same.
        axes = [index for index, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    return x.squeeze(axes[0]) if len(axes) == 1 else x.squeeze(tuple(axes))


def _unsqueeze(call: Call) -> Tensor:
    x, axes = call.tensor(0), call.numbers(1, "axes") or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(call: Call) -> Tensor:
    x, wanted = call.tensor(0), call.numbers(1) or []
    rank = max(x.dim(), len(wanted))
    have = [1] * (rank - x.dim()) + list(x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    sizes = [
        size if isinstance(own, int) and own == 1 else own
        for own, size in zip(have, wanted, strict=True)
    ]
    return x.expand(sizes)


def _tile(call: Call) -> Tensor:
    return call.tensor(0).repeat(call.numbers(1) or [])


def _concat(call: Call) -> Tensor:
    parts = [call.tensor(index) for index in range(len(call.inputs))]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=call.attr("axis", 1))


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis = call.tensor(0), call.attr("axis", 0)
    sizes = call.numbers(1, "split")
    if sizes is None:
        count = len(call.node.outputs)
        step = -(-x.shape[axis] // count)
        sizes = [step] * (count - 1)
        sizes.append(x.shape[axis] - sum(sizes))
    return tuple(torch.split(x, sizes, dim=axis))


def _slice(call: Call) -> Tensor:
    x = call.tensor(0)
    starts, ends = call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = call.numbers(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            size = x.shape[axis]
            if not all(isinstance(bound, int) for bound in (size, start, end)):
                call.refuse("it steps backwards over a dimension of unknown size")
            last = None if end < -size else end
            places = torch.tensor(list(range(size))[slice(start, last, step)])
            x = torch.index_select(x, axis, places)
            continue
        picked: list[Any] = [slice(None)] * x.dim()
        whole = isinstance(end, int) and end >= 2**31 - 1
        picked[axis] = slice(start, None if whole else end, step)
        x = x[tuple(picked)]
    return x


def _gather(call: Call) -> Tensor:
    axis, index = call.attr("axis", 0), call.inputs[1]
    source = call.node.inputs[0]
    if isinstance(index, np.ndarray) and index.ndim == 0:
        return torch.select(call.tensor(0), axis, int(index.item()))
    data = call.tensor(0)
    axis = axis % data.dim()
    if isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype != object:
        places = index.tolist()
        if places == list(range(places[0], places[0] + len(places))) and places[0] >= 0:
            return data.narrow(axis, places[0], len(places))
    ids = call.tensor(1)
    if source in call.weights and data.dim() == 2 and axis == 0:
        return F.embedding(torch.ops.rankc.wrapped(ids, data.shape[0]), data)
    picked: list[Any] = [slice(None)] * axis
    return data[(*picked, ids)]


def _gather_elements(call: Call) -> Tensor:
    data, axis = call.tensor(0), call.attr("axis", 0)
    return torch.gather(data, axis, _counted(call, 1, data.shape[axis]))


def _counted(call: Call, index: int, size: Any) -> Tensor:
    """Places along a dimension, negative ones counted from its end, as torch numbers them."""
    places = call.tensor(index).to(torch.int64)
    given = call.inputs[index]
    if isinstance(given, np.ndarray) and given.dtype != object and not (given < 0).any():
        return places
    if isinstance(size, int):
        wrapped: Tensor = torch.ops.rankc.wrapped(places, size)
        return wrapped
    return torch.where(places < 0, places + size, places)


def _gather_nd(call: Call) -> Tensor:
    data, places = call.tensor(0), call.tensor(1)
    batch = call.attr("batch_dims", 0)
    parts = list(places.unbind(-1))
    order = call.node.inputs[0].producer() if call.node.inputs[0] is not None else None
    plain = call.untransposed.get(0)
    if batch == 0 and plain is not None and order is not None and places.dim() == 2:
        # Exporters write x[:, i, j] as a transpose, a GatherND, and a transpose back.
        perm = list(order.attributes["perm"].as_ints())
        index: list[Any] = [slice(None)] * plain.dim()
        for place, part in zip(perm, parts, strict=False):
            index[place] = part
        picked = sorted(perm[: len(parts)])
        rest = perm[len(parts) :]
        if picked == list(range(picked[0], picked[0] + len(picked))) and rest == sorted(rest):
            found: Tensor = plain[tuple(index)]
            return found.transpose(0, 1) if picked[0] == 1 else found.movedim(picked[0], 0)
    rows = []
    for axis in range(batch):
        shape = [1] * (places.dim() - 1)
        shape[axis] = -1
        rows.append(torch.arange(data.shape[axis]).reshape(shape))
    return data[(*rows, *parts)]


def _scatter_nd(call: Call) -> Tensor:
    reduction = call.attr("reduction", "none")
    if reduction not in ("none", "add"):
        call.refuse(f"its reduction {reduction!r} has no form")
    places = tuple(call.tensor(1).unbind(-1))
    return call.tensor(0).index_put(places, call.tensor(2), accumulate=reduction == "add")


def _scatter_elements(call: Call) -> Tensor:
    reduction = call.attr("reduction", "none")
    if reduction not in ("none", "add"):
        call.refuse(f"its reduction {reduction!r} has no form")
    function = torch.scatter_add if reduction == "add" else torch.scatter
    data, axis = call.tensor(0), call.attr("axis", 0)
    return function(data, axis, _counted(call, 1, data.shape[axis]), call.tensor(2))


def _pad(call: Call) -> Tensor:
    x, pads = call.tensor(0), call.numbers(1, "pads") or []
    if call.attr("mode", "constant") != "constant":
        call.refuse("only padding by a constant has a form")
    value = call.operand(2) if call.has(2) else call.attr("value", 0.0)
    axes = [axis % x.dim() for axis in call.numbers(3) or range(x.dim())]
    both = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [size for axis in reversed(range(x.dim())) for size in both.get(axis, (0, 0))]
    return F.pad(x, flat, value=value)


def _trilu(call: Call) -> Tensor:
    diagonal = int(call.known(1).item()) if call.has(1) else 0
    function = torch.triu if call.attr("upper", 1) else torch.tril
    return function(call.tensor(0), diagonal)


def _constant(call: Call) -> Any:
    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        found = call.node.attributes.get(name)
        if found is not None:
            return np.array(found.value, np.float32 if "float" in name else np.int64)
    return as_tensor(call.attr("value").numpy())


MOVES: dict[str, _Function] = {
    "Concat": _concat,
    "Constant": _constant,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
