"""ONNX operators that compute element by element, or over whole dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .call import DTYPES, Call, as_tensor

_Made = Any
_Function = Callable[[Call], _Made]


def _unary(function: Callable[[Tensor], Tensor]) -> _Function:
    return lambda call: function(call.tensor(0))


def _binary(function: Callable[[Any, Any], Tensor]) -> _Function:
    def compute(call: Call) -> Tensor:
        left, right = call.operand(0), call.operand(1)
        if not isinstance(left, Tensor):
            # torch's comparisons and functions want a tensor first; it is a number of one type.
            left = call.tensor(0)
        return function(left, right)

    return compute


def _add(call: Call) -> Tensor:
    left, right = call.operand(0), call.operand(1)
    made: Tensor = left + right if isinstance(left, Tensor) else right + left
    return made


def _mul(call: Call) -> Tensor:
    left, right = call.operand(0), call.operand(1)
    made: Tensor = left * right if isinstance(left, Tensor) else right * left
    return made


def _div(left: Any, right: Any) -> Tensor:
    whole = not left.dtype.is_floating_point
    return torch.div(left, right, rounding_mode="trunc") if whole else left / right


def _mod(call: Call) -> Tensor:
    function = torch.fmod if call.attr("fmod", 0) else torch.remainder
    return function(call.tensor(0), call.operand(1))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> _Function:
    def compute(call: Call) -> Tensor:
        made = call.tensor(0)
        for index in range(1, len(call.inputs)):
            made = function(made, call.tensor(index))
        return made

    return compute


def _mean(call: Call) -> Tensor:
    total: Tensor = _variadic(torch.add)(call)
    return total / len(call.inputs)


def _clip(call: Call) -> Tensor:
    low = call.operand(1) if call.has(1) else call.attr("min")
    high = call.operand(2) if call.has(2) else call.attr("max")
    if low is None and high is None:
        return call.tensor(0)
    return torch.clamp(call.tensor(0), low, high)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call.tensor(0), approximate=call.attr("approximate", "none"))


def _prelu(call: Call) -> Tensor:
    x, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1 or (x.dim() == 2 and slope.numel() == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x > 0, x, slope * x)


def _hard_sigmoid(call: Call) -> Tensor:
    alpha, beta = call.attr("alpha", 0.2), call.attr("beta", 0.5)
    return torch.clamp(call.tensor(0) * alpha + beta, 0.0, 1.0)


def _softmax(function: Callable[..., Tensor]) -> _Function:
    def compute(call: Call) -> Tensor:
        x = call.tensor(0)
        axis = call.attr("axis", 1 if call.version < 13 else -1)
        if call.version >= 13 or axis % x.dim() == x.dim() - 1:
            return function(x, dim=axis)
        # Before opset 13 all dimensions from the axis on were one.
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return compute


def _where(call: Call) -> Tensor:
    left, right = call.operand(1), call.operand(2)
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        left = call.tensor(1)
    return torch.where(call.tensor(0), left, right)


def _cast(call: Call) -> Tensor:
    dtype = DTYPES.get(call.attr("to"))
    if dtype is None:
        call.refuse("it casts to a format that can't be captured")
    return call.tensor(0).to(dtype)


def _cast_like(call: Call) -> Tensor:
    return call.tensor(0).to(call.tensor(1).dtype)


def _reduce(function: Callable[..., Tensor]) -> _Function:
    def compute(call: Call) -> Tensor:
        x = call.tensor(0)
        axes = call.numbers(1, "axes")
        if not axes and call.attr("noop_with_empty_axes", 0):
            return x
        dims = [int(axis) % x.dim() for axis in axes] if axes else list(range(x.dim()))
        return function(x, dims, bool(call.attr("keepdims", 1)))

    return compute


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> _Function:
    def compute(call: Call) -> Tensor:
        if call.attr("select_last_index", 0):
            call.refuse("select_last_index has no form")
        return function(call.tensor(0), call.attr("axis", 0), bool(call.attr("keepdims", 1)))

    return compute


def _cumsum(call: Call) -> Tensor:
    x, axis = call.tensor(0), int(call.known(1).item())
    if call.attr("reverse", 0):
        x = x.flip(axis)
    total = torch.cumsum(x, axis, dtype=x.dtype)
    if call.attr("exclusive", 0):
        total = total - x
    return total.flip(axis) if call.attr("reverse", 0) else total


def _topk(call: Call) -> Any:
    count = call.numbers(1, "k")
    assert count is not None
    largest, ordered = bool(call.attr("largest", 1)), bool(call.attr("sorted", 1))
    found = torch.topk(call.tensor(0), count[0], call.attr("axis", -1), largest, ordered)
    return found.values, found.indices


def _range(call: Call) -> Tensor:
    start, limit, step = (call.known(index).item() for index in range(3))
    kind = next(v.dtype for v in call.inputs if isinstance(v, np.ndarray) and v.dtype != object)
    return torch.arange(start, limit, step, dtype=as_tensor(np.zeros(1, kind)).dtype)


def _constant_of_shape(call: Call) -> Tensor:
    filled = call.attr("value")
    value = np.zeros(1, np.float32) if filled is None else filled.numpy()
    dtype = as_tensor(np.zeros(1, value.dtype)).dtype
    return torch.full(call.numbers(0) or [], value[0].item(), dtype=dtype)


def _bit_shift(call: Call) -> Tensor:
    left = call.attr("direction") == "LEFT"
    shift = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return shift(call.tensor(0), call.tensor(1))


def _one_hot(call: Call) -> Tensor:
    ids, depth, axis = call.tensor(0), call.numbers(1), call.attr("axis", -1)
    assert depth is not None
    off, on = call.known(2).tolist()
    ids = torch.where(ids < 0, ids + depth[0], ids)
    axis = axis % (ids.dim() + 1)
    places = torch.arange(depth[0]).reshape([-1] + [1] * (ids.dim() - axis))
    dtype = as_tensor(call.known(2)).dtype
    return torch.where(ids.unsqueeze(axis) == places, on, off).to(dtype)


MATH: dict[str, _Function] = {
    "Abs": _unary(torch.abs),
    "Add": _add,
    "And": _binary(torch.logical_and),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "BitShift": _bit_shift,
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(torch.ceil),
    "Celu": lambda call: F.celu(call.tensor(0), call.attr("alpha", 1.0)),
    "Clip": _clip,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(torch.cos),
    "CumSum": _cumsum,
    "Div": _binary(_div),
    "Dropout": lambda call: call.tensor(0),
    "Elu": lambda call: F.elu(call.tensor(0), call.attr("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": lambda call: call.inputs[0],
    "IsInf": _unary(torch.isinf),
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(0), call.attr("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Mish": _unary(F.mish),
    "Mod": _mod,
    "Mul": _mul,
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "OneHot": _one_hot,
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _binary(torch.pow),
    "Range": _range,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, dims, keep: torch.sum(torch.abs(x), dims, keep)),
    "ReduceL2": _reduce(lambda x, dims, keep: torch.sqrt(torch.sum(x * x, dims, keep))),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(lambda x, dims, keep: torch.sum(x, dims, keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduce(lambda x, dims, keep: torch.sum(x * x, dims, keep)),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": _unary(F.selu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Swish": _unary(F.silu),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": lambda call: F.threshold(call.tensor(0), call.attr("alpha", 1.0), 0.0),
    "TopK": _topk,
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
    "com.microsoft.FastGelu": lambda call: F.gelu(call.tensor(0), approximate="tanh"),
    "com.microsoft.Gelu": _unary(F.gelu),
}
