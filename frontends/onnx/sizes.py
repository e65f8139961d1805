"""ONNX operators on values known while capturing: what exporters compute shapes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .call import DTYPES, Call, Known

#: Larger results are computed by the graph, where they become parameters.
MOST = 4096


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Call], Known]:
    def fold(call: Call) -> Known:
        left, right = call.known(0), call.known(1)
        if object not in (left.dtype, right.dtype):
            return np.asarray(function(left, right))
        made = np.frompyfunc(function, 2, 1)(left.astype(object), right.astype(object))
        return tidy(np.asarray(made, dtype=object))

    return fold


def _truth(function: Callable[[Any, Any], Any]) -> Callable[[Call], Known]:
    def fold(call: Call) -> Known:
        left, right = call.known(0).astype(object), call.known(1).astype(object)
        made = np.frompyfunc(lambda a, b: bool(function(a, b)), 2, 1)(left, right)
        return np.asarray(made, dtype=bool)

    return fold


def tidy(value: Known) -> Known:
    """An array of plain integers where no symbol is left in it."""
    flat = value.reshape(-1).tolist()
    if value.dtype == object and all(isinstance(size, (int, np.integer)) for size in flat):
        return value.astype(np.int64)
    return value


def _divide(left: Any, right: Any) -> Any:
    """ONNX's Div: integers are cut off towards zero, which for sizes is down."""
    whole = not isinstance(left, np.ndarray) or left.dtype.kind in "iu"
    if not whole:
        return left / right
    return (
        np.trunc(left / right).astype(left.dtype) if isinstance(left, np.ndarray) else left // right
    )


def _gather(call: Call) -> Known:
    return np.take(call.known(0), call.known(1).astype(np.int64), axis=call.attr("axis", 0))


def _concat(call: Call) -> Known:
    parts = [call.known(index) for index in range(len(call.inputs))]
    return tidy(np.concatenate(parts, axis=call.attr("axis", 0)))


def _slice(call: Call) -> Known:
    data = call.known(0)
    starts, ends = call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = call.numbers(4) or [1] * len(starts)
    picked = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        picked[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(picked)]


def _squeeze(call: Call) -> Known:
    axes = call.numbers(1, "axes")
    return np.squeeze(call.known(0), None if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> Known:
    return np.expand_dims(call.known(0), tuple(call.numbers(1, "axes") or ()))


def _reshape(call: Call) -> Known:
    data, sizes = call.known(0), call.known(1).tolist()
    return data.reshape([data.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def _cast(call: Call) -> Known:
    data, dtype = call.known(0), DTYPES.get(call.attr("to"))
    if data.dtype == object:
        return data  # symbols are integers, and stay so
    if dtype is None or str(dtype).startswith(("torch.bfloat", "torch.float8")):
        call.refuse("it casts to a format that can't be captured")
    return data.astype(str(dtype).removeprefix("torch."))


def _where(call: Call) -> Known:
    condition, left, right = (call.known(index) for index in range(3))
    if object in (left.dtype, right.dtype):
        return tidy(np.where(condition, left.astype(object), right.astype(object)))
    return np.where(condition, left, right)


def _prod(call: Call) -> Known:
    total: Any = 1
    for size in call.known(0).reshape(-1).tolist():
        total = total * size
    shape = (1,) * call.known(0).ndim if call.attr("keepdims", 1) else ()
    return tidy(np.array(total, dtype=object).reshape(shape))


def _range(call: Call) -> Known:
    start, limit, step = (call.known(index) for index in range(3))
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _constant_of_shape(call: Call) -> Known:
    filled = call.attr("value")
    value = np.zeros(1, np.float32) if filled is None else filled.numpy()
    return np.full(call.numbers(0) or (), value[0], dtype=value.dtype)


def _expand(call: Call) -> Known:
    data = call.known(0)
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(call.known(1).tolist())))


#: Tried when every input is known; each gives a known value.
SIZES: dict[str, Callable[[Call], Known]] = {
    "Add": _binary(lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b),
    "Mul": _binary(lambda a, b: a * b),
    "Div": _binary(_divide),
    "Mod": _binary(lambda a, b: a % b),
    "Min": _binary(lambda a, b: np.minimum(a, b)),
    "Max": _binary(lambda a, b: np.maximum(a, b)),
    "Equal": _truth(lambda a, b: a == b),
    "Less": _truth(lambda a, b: a < b),
    "LessOrEqual": _truth(lambda a, b: a <= b),
    "Greater": _truth(lambda a, b: a > b),
    "GreaterOrEqual": _truth(lambda a, b: a >= b),
    "And": _truth(lambda a, b: a and b),
    "Or": _truth(lambda a, b: a or b),
    "Not": lambda call: np.logical_not(call.known(0)),
    "Neg": lambda call: tidy(np.asarray(-call.known(0))),
    "Identity": lambda call: call.known(0),
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "Where": _where,
    "ReduceProd": _prod,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Floor": lambda call: np.floor(call.known(0)),
    "Ceil": lambda call: np.ceil(call.known(0)),
    "Sqrt": lambda call: np.sqrt(call.known(0)),
}


def fold(call: Call) -> Known | None:
    """The node's value if it is known; None where the graph must compute it."""
    function = SIZES.get(call.node.op_type)
    if function is None or not all(isinstance(v, np.ndarray) for v in call.inputs if v is not None):
        return None
    if len(call.inputs) > 2 and call.node.op_type in ("Min", "Max"):
        return None
    symbolic = any(v.dtype == object for v in call.inputs if isinstance(v, np.ndarray))
    if symbolic and call.node.op_type in ("Range", "ConstantOfShape", "Expand", "Min", "Max"):
        return None
    sizes = call.numbers(0) if call.node.op_type == "ConstantOfShape" else None
    if sizes and (len(sizes) > 1 or sizes[0] > MOST):
        return None
    if call.node.op_type in ("Floor", "Ceil", "Sqrt") and symbolic:
        return None
    made = np.asarray(function(call))
    return made if made.size <= MOST else None
