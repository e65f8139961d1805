"""Operators whose ONNX form is exact for float32 and loses digits of float64, or has no kernel.

The exporter writes constants in float32, and casts to it to ask what is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.function_libs.torch_lib.ops import core, nn
from torch import Tensor, fx

from .arithmetic import constant, op

_aten = torch.ops.aten
_DOUBLE = ir.DataType.DOUBLE


def log2(x: Any) -> Any:
    """``aten.log2``."""
    return op.Div(op.Log(x), constant(math.log(2.0), x.dtype))


def log10(x: Any) -> Any:
    """``aten.log10``."""
    return op.Div(op.Log(x), constant(math.log(10.0), x.dtype))


def isinf(x: Any) -> Any:
    """``aten.isinf``: float32 has no room for the largest float64."""
    if x.dtype != _DOUBLE:
        return op.IsInf(op.Cast(x, to=int(ir.DataType.FLOAT)))
    return op.Equal(op.Abs(x), constant(np.inf, x.dtype))


def gelu(x: Any, approximate: str = "none") -> Any:
    """``aten.gelu``."""
    if x.dtype != _DOUBLE or approximate != "tanh":
        return nn.aten_gelu(x, approximate)
    cube = op.Mul(constant(0.044715, x.dtype), op.Mul(x, op.Mul(x, x)))
    inner = op.Mul(constant(math.sqrt(2.0 / math.pi), x.dtype), op.Add(x, cube))
    half = op.Mul(constant(0.5, x.dtype), x)
    return op.Mul(half, op.Add(constant(1.0, x.dtype), op.Tanh(inner)))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """``aten.leaky_relu``."""
    if x.dtype != _DOUBLE:
        return op.LeakyRelu(x, alpha=negative_slope)
    below = op.Less(x, constant(0.0, x.dtype))
    return op.Where(below, op.Mul(x, constant(negative_slope, x.dtype)), x)


def log_softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """``aten.log_softmax``: NaN beside infinity, of float64 too."""
    if x.dtype != _DOUBLE or not len(x.shape):
        return _log_softmax(x, dim, dtype)
    axes = op.Constant(value_ints=[dim % len(x.shape)])
    shifted = op.Sub(x, op.ReduceMax(x, axes, keepdims=1))
    found = op.Sub(shifted, op.Log(op.ReduceSum(op.Exp(shifted), axes, keepdims=1)))
    return found if dtype in (-1, None) else op.Cast(found, to=dtype)


def _log_softmax(x: Any, dim: int, dtype: int) -> Any:
    """The exporter's form."""
    scalar = not len(x.shape)
    found = op.LogSoftmax(op.Unsqueeze(x, op.Constant(value_ints=[0])) if scalar else x, axis=dim)
    if dtype not in (-1, None):
        found = op.Cast(found, to=dtype)
    return op.Squeeze(found) if scalar else found


def layer_norm(
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enable: bool = True,
) -> Any:
    """``aten.layer_norm``: an attribute holds its epsilon in float32."""
    if x.dtype != _DOUBLE:
        return core.aten_layer_norm(x, normalized_shape, weight, bias, eps)
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))
    apart = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    spread = op.ReduceMean(op.Mul(apart, apart), axes, keepdims=1)
    found = op.Div(apart, op.Sqrt(op.Add(spread, constant(eps, x.dtype))))
    found = found if weight is None else op.Mul(found, weight)
    return found if bias is None else op.Add(found, bias)


def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> Any:
    """``aten._native_batch_norm_legit_no_training``: the same of its epsilon."""
    if x.dtype != _DOUBLE:
        return core.aten__native_batch_norm_no_training(
            x, weight, bias, running_mean, running_var, momentum, eps
        )
    after = op.Constant(value_ints=list(range(1, len(x.shape) - 1)))

    def spread(value: Any) -> Any:
        return op.Unsqueeze(value, after) if len(x.shape) > 2 else value

    root = op.Sqrt(op.Add(running_var, constant(eps, x.dtype)))
    found = op.Div(op.Sub(x, spread(running_mean)), spread(root))
    found = found if weight is None else op.Mul(found, spread(weight))
    found = found if bias is None else op.Add(found, spread(bias))
    return found, op.Identity(running_mean), root


#: What the exporter would write otherwise.
DOUBLE: Mapping[Any, Any] = {
    _aten.log2.default: log2,
    _aten.log10.default: log10,
    _aten.isinf.default: isinf,
    _aten.gelu.default: gelu,
    _aten.leaky_relu.default: leaky_relu,
    _aten.log_softmax.int: log_softmax,
    _aten.layer_norm.default: layer_norm,
    _aten._native_batch_norm_legit_no_training.default: batch_norm,
}

#: Operators that ONNX Runtime has no kernel for in float64.
WITHOUT_KERNEL = frozenset(
    (
        *(_aten.acos.default, _aten.acosh.default, _aten.asin.default, _aten.asinh.default),
        *(_aten.atan.default, _aten.atanh.default, _aten.atan2.default, _aten.cosh.default),
        *(_aten.sinh.default, _aten.tan.default, _aten.erf.default, _aten.elu.default),
        *(_aten.selu.default, _aten.mish.default, _aten.softplus.default, _aten.prelu.default),
        *(_aten.hardsigmoid.default, _aten.convolution.default, _aten.group_norm.default),
        *(_aten.conv1d.default, _aten.conv2d.default),
    )
)


def without_kernel(node: fx.Node) -> str | None:
    """Why ONNX Runtime can't compute a node in float64; None if it can, or needn't."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype is not torch.float64:
        return None
    exact = node.target is _aten.gelu.default and node.kwargs.get("approximate") != "tanh"
    if node.target not in WITHOUT_KERNEL and not exact:
        return None
    return f"ONNX Runtime has no {node.target} of float64; compute it in float32, x.float()"
