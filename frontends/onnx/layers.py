"""ONNX operators with weights: products, norms, convolutions; and quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import DTYPES, Call

_Function = Callable[[Call], Any]


def _linear_weight(call: Call, index: int, flipped: bool) -> Tensor | None:
    """The second factor as a linear's weight ``[outputs, inputs]``, where it is one."""
    source = call.node.inputs[index]
    if flipped:
        found = call.tensor(index)
        return found if found.dim() == 2 else None
    if source is not None and source in call.transposed:
        return call.transposed[source]
    plain, order = call.untransposed.get(index), source.producer() if source is not None else None
    if plain is None or plain.dim() != 2 or order is None:
        return None
    # Of two activations a product is no linear; codes that are decoded are a weight.
    before = order.inputs[0]
    origin = before.producer() if before is not None else None
    decoded = origin is not None and origin.op_type == "DequantizeLinear"
    swapped = list(order.attributes["perm"].as_ints()) == [1, 0]
    return plain if swapped and (before in call.weights or decoded) else None


def _matmul(call: Call) -> Tensor:
    weight = _linear_weight(call, 1, flipped=False)
    if weight is not None:
        return F.linear(call.tensor(0), weight, call.bias)
    left, right = call.tensor(0), call.tensor(1)
    alike = left.dim() == right.dim() == 3 and str(left.shape[0]) == str(right.shape[0])
    # Spelled as torch's models spell it, so that interactions are recognised.
    product = torch.bmm(left, right) if alike else torch.matmul(left, right)
    return product if call.bias is None else product + call.bias


def _gemm(call: Call) -> Tensor:
    x = call.tensor(0).t() if call.attr("transA", 0) else call.tensor(0)
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    weight = _linear_weight(call, 1, flipped=bool(call.attr("transB", 0)))
    offset = call.tensor(2) if call.has(2) else None
    fits = offset is None or (offset.dim() == 1 and weight is not None and _spans(offset, weight))
    if weight is not None and alpha == 1.0 and beta == 1.0 and fits:
        return F.linear(x, weight, offset)
    right = call.tensor(1).t() if call.attr("transB", 0) else call.tensor(1)
    product = torch.matmul(x, right)
    if alpha != 1.0:
        product = product * alpha
    if offset is None:
        return product
    return product + (offset if beta == 1.0 else offset * beta)


def _spans(offset: Tensor, weight: Tensor) -> bool:
    return bool(offset.shape[0] == weight.shape[0])


def _fused_matmul(call: Call) -> Tensor:
    if call.attr("transBatchA", 0) or call.attr("transBatchB", 0):
        call.refuse("transposed batches have no form")
    left, right = call.tensor(0), call.tensor(1)
    left = left.transpose(-1, -2) if call.attr("transA", 0) else left
    right = right.transpose(-1, -2) if call.attr("transB", 0) else right
    product = torch.matmul(left, right)
    alpha = call.attr("alpha", 1.0)
    return product if alpha == 1.0 else product * alpha


def _matmul_integer(call: Call) -> Tensor:
    factors = []
    for index in (0, 1):
        # Sums of products of bytes are exact in fp64, which is faster than whole numbers.
        factor = call.tensor(index).double()
        if call.has(index + 2):
            zero = call.tensor(index + 2).double()
            # One for each row of the first factor, or for each column of the second.
            factor = factor - (zero.unsqueeze(-1) if zero.dim() and index == 0 else zero)
        factors.append(factor)
    return torch.matmul(*factors).to(torch.int32)


def _matmul_integer_to_float(call: Call) -> Tensor:
    """ONNX Runtime's product of codes, as the linear of decoded values that it stands for."""
    decoded = []
    for index in (0, 1):
        codes, scale = call.tensor(index), call.tensor(index + 2)
        zero = call.tensor(index + 4) if call.has(index + 4) else None
        # One for all, or one for each column of the second factor.
        scale = scale.reshape(()) if scale.numel() == 1 else scale
        like = torch.zeros(scale.shape, dtype=codes.dtype)
        zero = like if zero is None else zero.reshape(scale.shape)
        decoded.append(torch.ops.rankc.dequantize(codes, scale, zero, codes.dim() - 1))
    bias = call.tensor(6) if call.has(6) else None
    if decoded[1].dim() == 2:
        return F.linear(decoded[0], decoded[1].t(), bias)
    product = torch.matmul(decoded[0], decoded[1])
    return product if bias is None else product + bias


def _einsum(call: Call) -> Tensor:
    tensors = [call.tensor(index) for index in range(len(call.inputs))]
    return torch.einsum(call.attr("equation"), *tensors)


def _batch_norm(call: Call) -> Tensor:
    if call.attr("training_mode", 0):
        call.refuse("it is in training mode; export the model after model.eval()")
    weight, bias, mean, variance = (call.tensor(index) for index in range(1, 5))
    epsilon = call.attr("epsilon", 1e-5)
    return F.batch_norm(call.tensor(0), mean, variance, weight, bias, False, 0.0, epsilon)


def _layer_norm(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.attr("axis", -1) % x.dim()
    bias = call.tensor(2) if call.has(2) else None
    if sum(output.uses() != () for output in call.node.outputs[1:]):
        call.refuse("its mean or deviation is read")
    return F.layer_norm(x, x.shape[axis:], call.tensor(1), bias, call.attr("epsilon", 1e-5))


def _rms_norm(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.attr("axis", -1) % x.dim()
    return F.rms_norm(x, list(x.shape[axis:]), call.tensor(1), call.attr("epsilon", 1e-5))


def _conv(call: Call) -> Tensor:
    x, weight = call.tensor(0), call.tensor(1)
    bias = call.tensor(2) if call.has(2) else None
    rank = weight.dim() - 2
    if rank not in (1, 2) or call.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        call.refuse("only one and two dimensions and explicit padding have a form")
    pads = call.attr("pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:
        x = F.pad(x, [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])])
        pads = [0] * 2 * rank
    options = (call.attr("strides", [1] * rank), pads[:rank], call.attr("dilations", [1] * rank))
    if rank == 1:
        return F.conv1d(x, weight, bias, *options, call.attr("group", 1))
    return F.conv2d(x, weight, bias, *options, call.attr("group", 1))


def _codes(call: Call) -> tuple[Tensor, Tensor | None, int]:
    """Scale, zero point and axis of a quantization; single values have no dimension."""
    scale = call.tensor(1)
    zero = call.tensor(2) if call.has(2) else None
    if call.attr("block_size", 0):
        call.refuse("quantization by blocks has no form")
    if scale.numel() == 1:
        scale = scale.reshape(())
        zero = None if zero is None else zero.reshape(())
    axis = call.attr("axis", 1)
    return scale, zero, axis % max(call.tensor(0).dim(), 1) if scale.dim() else 0


def _quantize(call: Call) -> Tensor:
    scale, zero, axis = _codes(call)
    named = DTYPES.get(call.attr("output_dtype", 0), torch.uint8)
    zero = torch.zeros(scale.shape, dtype=named) if zero is None else zero
    made: Tensor = torch.ops.rankc.quantize(call.tensor(0), scale, zero, axis, zero.dtype)
    return made


def _dequantize(call: Call) -> Tensor:
    scale, zero, axis = _codes(call)
    codes = call.tensor(0)
    zero = torch.zeros(scale.shape, dtype=codes.dtype) if zero is None else zero
    made: Tensor = torch.ops.rankc.dequantize(codes, scale, zero, axis)
    return made


LAYERS: dict[str, _Function] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "QuantizeLinear": _quantize,
    "RMSNormalization": _rms_norm,
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.MatMulIntegerToFloat": _matmul_integer_to_float,
}
