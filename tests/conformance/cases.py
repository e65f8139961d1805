"""Every operator a captured program may hold, as the smallest models that use it.

A case is a function of made-up rows; the operators that its capture must hold are its keys. Inputs
are drawn for each kind of value:

* floats: ``x``, ``y`` ``[B, 6]`` of anything, ``p`` ``[B, 6]`` and ``v`` ``[B, 3, 4]`` of ordinary
  size, ``i`` ``[B, 6]`` int64 in 0..5, ``m`` ``[B, 6]`` bool.
* integers: ``x``, ``y`` ``[B, 6]`` of anything, ``d`` ``[B, 6]`` without 0, ``s`` ``[B, 6]`` in
  -40..40, ``k`` in 0..30, ``i``, ``m``.
* truths: ``a``, ``b`` ``[B, 6]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Rows: TypeAlias = SimpleNamespace
Case: TypeAlias = Callable[[Rows], Tensor]
_aten = torch.ops.aten
_W = torch.linspace(-1.0, 1.0, 24).reshape(4, 6)
_B = torch.linspace(-0.5, 0.5, 4)
_SORTED = torch.tensor([-3.0, -0.5, 0.0, 0.0, 0.25, 1.0, 1.0, 7.0])


def _scattered(reduce: str, include: bool) -> Case:
    return lambda t: torch.full_like(t.p, 0.5).scatter_reduce(
        1, t.i, t.p, reduce, include_self=include
    )


def _small(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-2, 0.0, x.clamp(-1e3, 1e3))


def _other_than_back(t: Rows) -> Tensor:
    """Divisors without -1 of the least number: eager's ``trunc`` ends the process there."""
    return torch.where((t.x == torch.iinfo(t.x.dtype).min) & (t.d == -1), 3, t.d)


def _near(x: Tensor, limit: float = 1e18) -> Tensor:
    """Numbers whose square is finite, and NaN."""
    return torch.where(x.abs() > limit, 3.0, x)


def _w(t: Rows) -> Tensor:
    return _W.to(t.p.dtype)


#: Of floats.
FLOATS: Mapping[str, Mapping[str, Case]] = {
    "abs": {"": lambda t: t.x.abs()},
    "acos": {"": lambda t: t.x.acos()},
    "acosh": {"": lambda t: t.x.acosh()},
    "asin": {"": lambda t: t.x.asin()},
    "asinh": {"": lambda t: t.p.asinh()},
    "atan": {"": lambda t: t.x.atan()},
    "atanh": {"": lambda t: t.x.atanh()},
    "atan2": {"": lambda t: torch.atan2(t.x, t.y)},
    "cos": {"": lambda t: t.p.cos()},
    "cosh": {"": lambda t: t.x.cosh()},
    "sin": {"": lambda t: t.p.sin()},
    "sinh": {"": lambda t: t.x.sinh()},
    "tan": {"": lambda t: t.p.tan()},
    "tanh": {"": lambda t: t.x.tanh()},
    "exp": {"": lambda t: t.x.exp()},
    "expm1": {"": lambda t: t.x.expm1()},
    "log": {"": lambda t: t.x.log()},
    "log1p": {"": lambda t: t.x.log1p()},
    "log2": {"": lambda t: t.x.log2()},
    "log10": {"": lambda t: t.x.log10()},
    "sqrt": {"": lambda t: t.x.sqrt()},
    "rsqrt": {"": lambda t: t.x.rsqrt()},
    "reciprocal": {"": lambda t: t.x.reciprocal()},
    "erf": {"": lambda t: t.x.erf()},
    "sigmoid": {"": lambda t: t.x.sigmoid()},
    "neg": {"": lambda t: -t.x},
    "sign": {"": lambda t: t.x.sign()},
    "ceil": {"": lambda t: t.x.ceil()},
    "floor": {"": lambda t: t.x.floor()},
    "trunc": {"": lambda t: t.x.trunc()},
    "round": {
        "": lambda t: t.x.round(),
        "of halves": lambda t: (t.i.to(t.p.dtype) - 2.5).round(),
        "decimals": lambda t: t.p.round(decimals=2),
    },
    "relu": {"": lambda t: t.x.relu()},
    "relu6": {"": lambda t: F.relu6(t.x)},
    "elu": {"": lambda t: F.elu(t.x), "alpha": lambda t: F.elu(t.x, 0.3)},
    "selu": {"": lambda t: F.selu(t.x)},
    "gelu": {
        "": lambda t: F.gelu(_near(t.x)),
        "at the edge": lambda t: F.gelu(t.x),
        "tanh": lambda t: F.gelu(t.x, approximate="tanh"),
    },
    "silu": {"": lambda t: F.silu(t.x)},
    "mish": {"": lambda t: F.mish(t.x)},
    "softplus": {"": lambda t: F.softplus(t.x), "beta": lambda t: F.softplus(t.x, 3.0, 5.0)},
    "hardtanh": {"": lambda t: F.hardtanh(t.x, -0.5, 2.0)},
    "hardsigmoid": {"": lambda t: F.hardsigmoid(t.x)},
    "hardswish": {"": lambda t: F.hardswish(t.x)},
    "leaky_relu": {"": lambda t: F.leaky_relu(t.x, 0.2)},
    "prelu": {"": lambda t: F.prelu(t.x, torch.tensor([0.25], dtype=t.x.dtype))},
    "log_sigmoid_forward": {"": lambda t: F.logsigmoid(t.x)},
    "square": {"": lambda t: t.x.square()},
    "add": {
        "": lambda t: t.x + t.y,
        "alpha": lambda t: torch.add(t.p, t.p.flip(1), alpha=-3),
        "of a number": lambda t: t.x + 1e-9,
        "of integers": lambda t: t.p + t.i,
    },
    "sub": {
        "": lambda t: t.x - t.y,
        "from a number": lambda t: 1.0 - t.x,
        "of a number": lambda t: t.x - 1e-9,
    },
    "mul": {"": lambda t: t.x * t.y, "by a number": lambda t: t.x * 1.000001},
    "div": {
        "": lambda t: t.x / t.y,
        "by a number": lambda t: t.x / 3.0,
        "floor": lambda t: torch.div(t.x, t.y, rounding_mode="floor"),
        "trunc": lambda t: torch.div(t.x, t.y, rounding_mode="trunc"),
        "floor by a number": lambda t: t.x // 0.1,
        "floor of multiples": lambda t: (t.i.to(t.p.dtype) * 0.1) // 0.1,
        "trunc by a number": lambda t: torch.div(t.x, -0.3, rounding_mode="trunc"),
    },
    "floor_divide": {"": lambda t: torch.floor_divide(t.x, t.y)},
    # Of ordinary numbers: of large quotients PyTorch's own kernels differ from one another.
    "remainder": {
        "": lambda t: torch.remainder(_small(t.x), _small(t.y)),
        "by a number": lambda t: _small(t.x) % 0.1,
        "by a negative": lambda t: t.p % -3.0,
        "of a number": lambda t: torch.remainder(5.0, _small(t.x)),
    },
    "fmod": {
        "": lambda t: torch.fmod(_small(t.x), _small(t.y)),
        "by a number": lambda t: torch.fmod(_small(t.x), 0.7),
    },
    "pow": {
        "": lambda t: torch.pow(t.x, t.y),
        "2": lambda t: t.x**2,
        "3": lambda t: t.x**3,
        "half": lambda t: t.x**0.5,
        "minus half": lambda t: t.x**-0.5,
        "a third": lambda t: t.x ** (1 / 3),
        "minus one": lambda t: t.x**-1,
        "of a number": lambda t: 2.0**t.x,
    },
    "maximum": {"": lambda t: torch.maximum(t.x, t.y)},
    "minimum": {"": lambda t: torch.minimum(t.x, t.y)},
    "fmax": {"": lambda t: torch.fmax(t.x, t.y)},
    "fmin": {"": lambda t: torch.fmin(t.x, t.y)},
    "clamp": {
        "": lambda t: t.x.clamp(-1.0, 2.0),
        "min": lambda t: t.x.clamp(min=0.0),
        "max": lambda t: t.x.clamp(max=1.5),
        "crossed": lambda t: t.x.clamp(2.0, -1.0),
        "by tensors": lambda t: t.x.clamp(t.y, t.y.abs()),
    },
    "eq": {"": lambda t: t.x == t.y, "0": lambda t: t.x == 0},
    "ne": {"": lambda t: t.x != t.y, "0": lambda t: t.x != 0},
    "lt": {"": lambda t: t.x < t.y, "0": lambda t: t.x < 0},
    "le": {"": lambda t: t.x <= t.y},
    "gt": {"": lambda t: t.x > t.y},
    "ge": {"": lambda t: t.x >= t.y, "0": lambda t: t.x >= 0},
    "isnan": {"": lambda t: t.x.isnan()},
    "isinf": {"": lambda t: t.x.isinf()},
    "isfinite": {"": lambda t: t.x.isfinite()},
    "nan_to_num": {
        "": lambda t: t.x.nan_to_num(),
        "given": lambda t: t.x.nan_to_num(1.5, 7.0, -7.0),
    },
    "logical_not": {"": lambda t: t.x.logical_not()},
    "logical_and": {"": lambda t: torch.logical_and(t.x, t.y)},
    "logical_or": {"": lambda t: torch.logical_or(t.x, t.y)},
    "logical_xor": {"": lambda t: torch.logical_xor(t.x, t.y)},
    "where": {
        "": lambda t: torch.where(t.m, t.x, t.y),
        "a number": lambda t: torch.where(t.x.isnan(), 0.0, t.x),
    },
    "masked_fill": {"": lambda t: t.x.masked_fill(t.m, -1e9)},
    "lerp": {"": lambda t: torch.lerp(t.p, t.p.flip(1), 0.3)},
    "addcmul": {
        "": lambda t: torch.addcmul(t.x, _near(t.x), _near(t.y), value=0.5),
        "at the edge": lambda t: torch.addcmul(t.x, t.x, t.y, value=0.5),
    },
    "addcdiv": {"": lambda t: torch.addcdiv(t.p, t.p, t.x, value=0.5)},
    "mse_loss": {"": lambda t: F.mse_loss(t.x, t.y, reduction="none")},
    # casts
    "_to_copy": {
        "float64": lambda t: t.x.double(),
        "float32": lambda t: t.x.float(),
        "float16": lambda t: t.x.half().float(),
        "bfloat16": lambda t: t.x.bfloat16().float(),
        "int64": lambda t: t.p.long(),
        "int32": lambda t: t.p.int(),
        "bool": lambda t: t.x.bool(),
        "int64 of anything": lambda t: t.x.long(),
        "int32 of anything": lambda t: t.x.int(),
    },
    # reductions
    "sum": {
        "": lambda t: t.p.sum(1),
        "of anything": lambda t: t.x.sum(1),
        "of nothing": lambda t: t.p[:, :0].sum(1),
        "two": lambda t: t.v.sum((1, 2), keepdim=True),
    },
    "mean": {"": lambda t: t.x.mean(1), "of nothing": lambda t: t.p[:, :0].mean(1)},
    "prod": {"": lambda t: t.x.prod(1), "of nothing": lambda t: t.p[:, :0].prod(1)},
    "var": {"": lambda t: t.p.var(1), "biased": lambda t: t.x.var(1, unbiased=False)},
    "amax": {"": lambda t: t.x.amax(1)},
    "amin": {"": lambda t: t.x.amin(1, keepdim=True)},
    "max": {"values": lambda t: t.x.max(1).values, "places": lambda t: t.x.max(1).indices},
    "min": {"values": lambda t: t.x.min(1).values, "places": lambda t: t.x.min(1).indices},
    "argmax": {"": lambda t: t.x.argmax(1), "ties": lambda t: t.p.round().argmax(1)},
    "argmin": {"": lambda t: t.x.argmin(1), "ties": lambda t: t.p.round().argmin(1)},
    "any": {"": lambda t: t.x.any(1), "of nothing": lambda t: t.x[:, :0].any(1)},
    "all": {"": lambda t: t.x.all(1), "of nothing": lambda t: t.x[:, :0].all(1)},
    "cumsum": {"": lambda t: t.p.cumsum(1), "of anything": lambda t: t.x.cumsum(1)},
    "logsumexp": {
        "": lambda t: t.x.logsumexp(1),
        "nothing": lambda t: torch.full_like(t.p, -torch.inf).logsumexp(1),
    },
    "linalg_vector_norm": {
        "": lambda t: torch.linalg.vector_norm(t.x, dim=1),
        "1": lambda t: torch.linalg.vector_norm(t.x, 1, dim=1),
    },
    "softmax": {
        "": lambda t: t.p.softmax(1),
        "of anything": lambda t: t.x.softmax(1),
        "all masked": lambda t: t.p.masked_fill(t.m, -torch.inf).softmax(1),
    },
    "log_softmax": {
        "": lambda t: t.p.log_softmax(1),
        "of anything": lambda t: t.x.log_softmax(1),
        "all masked": lambda t: t.p.masked_fill(t.m, -torch.inf).log_softmax(1),
    },
    # sorts
    "topk": {
        "values": lambda t: t.x.topk(3, 1).values,
        "places": lambda t: t.p.topk(3, 1).indices,
        "smallest": lambda t: t.x.topk(2, 1, largest=False).values,
    },
    "sort": {
        "values": lambda t: t.x.sort(1).values,
        "descending": lambda t: t.x.sort(1, descending=True).values,
        "places": lambda t: torch.sort(t.p.round(), dim=1, stable=True).indices,
    },
    "argsort": {"stable": lambda t: torch.argsort(t.p.round(), dim=1, stable=True)},
    "searchsorted": {
        "": lambda t: torch.searchsorted(_SORTED.to(t.x.dtype), t.x.contiguous()),
        "right": lambda t: torch.searchsorted(_SORTED.to(t.x.dtype), t.x, right=True),
        "a row each": lambda t: torch.searchsorted(t.p.sort(1).values, t.x),
    },
    "bucketize": {
        "": lambda t: torch.bucketize(t.x, _SORTED.to(t.x.dtype)),
        "right": lambda t: torch.bucketize(t.x, _SORTED.to(t.x.dtype), right=True),
    },
    # products
    "mm": {"": lambda t: t.p @ _w(t).T},
    "addmm": {"": lambda t: torch.addmm(_B.to(t.p.dtype), t.p, _w(t).T, beta=0.5, alpha=2.0)},
    "bmm": {"": lambda t: torch.bmm(t.v, t.v.transpose(1, 2))},
    "baddbmm": {"": lambda t: torch.baddbmm(t.v[:, :, :3], t.v, t.v.transpose(1, 2))},
    "matmul": {
        "": lambda t: torch.matmul(t.v, t.v.transpose(1, 2)),
        "of anything": lambda t: t.x[:, None] @ t.y[:, :, None],
    },
    "linear": {
        "": lambda t: F.linear(t.p, _w(t), _B.to(t.p.dtype)),
        "plain": lambda t: F.linear(t.v, torch.eye(4, dtype=t.v.dtype)[:2]),
    },
    "einsum": {"": lambda t: torch.einsum("bij,bkj->bik", t.v, t.v)},
    "convolution": {"": lambda t: F.conv1d(t.v, torch.ones(2, 3, 2, dtype=t.v.dtype), padding=1)},
    "scaled_dot_product_attention": {
        "3-D": lambda t: F.scaled_dot_product_attention(t.v, t.v, t.v),
        "4-D": lambda t: F.scaled_dot_product_attention(*[t.v[:, None]] * 3),
        "mask": lambda t: F.scaled_dot_product_attention(
            t.v, t.v, t.v, attn_mask=t.m[:, None, :3].expand(-1, 3, 3)
        ),
        "added mask": lambda t: F.scaled_dot_product_attention(
            *[t.v[:, None]] * 3, attn_mask=t.p[:, None, None, :3].expand(-1, 1, 3, 3)
        ),
        "causal": lambda t: F.scaled_dot_product_attention(*[t.v[:, None]] * 3, is_causal=True),
        "scale": lambda t: F.scaled_dot_product_attention(*[t.v[:, None]] * 3, scale=0.3),
    },
    # norms
    "layer_norm": {
        "": lambda t: F.layer_norm(t.v, [4]),
        "of equals": lambda t: F.layer_norm(torch.ones_like(t.v), [4]),
        "of anything": lambda t: F.layer_norm(_near(t.x), [6]),
        "at the edge": lambda t: F.layer_norm(t.x, [6]),
    },
    "rms_norm": {"": lambda t: F.rms_norm(t.v, [4])},
    "group_norm": {"": lambda t: F.group_norm(t.v.transpose(1, 2), 2)},
    "_native_batch_norm_legit_no_training": {
        "": lambda t: F.batch_norm(
            t.x, torch.zeros(6, dtype=t.x.dtype), torch.ones(6, dtype=t.x.dtype)
        )
    },
    "normalize": {"": lambda t: F.normalize(t.x, dim=1)},
    "cosine_similarity": {"": lambda t: F.cosine_similarity(t.v, t.v.flip(1), dim=2)},
    # moves
    "cat": {"": lambda t: torch.cat([t.x, t.y], 1)},
    "stack": {"": lambda t: torch.stack([t.x, t.y], 1)},
    "expand": {"": lambda t: t.x[:, :1].expand(-1, 4)},
    "expand_as": {"": lambda t: t.x[:, :1].expand_as(t.y)},
    "repeat": {"": lambda t: t.x.repeat(1, 2)},
    "flip": {"": lambda t: t.x.flip(1)},
    "roll": {"": lambda t: t.x.roll(2, 1)},
    "permute": {"": lambda t: t.v.permute(0, 2, 1)},
    "transpose": {"": lambda t: t.v.transpose(1, 2)},
    "view": {"": lambda t: t.x.view(-1, 2, 3)},
    "reshape": {"": lambda t: t.v.transpose(1, 2).reshape(-1, 12)},
    "select": {"": lambda t: t.x.select(1, -2)},
    "slice": {
        "": lambda t: t.x[:, 1:-1:2],
        "beyond": lambda t: t.x[:, 2:100],
        "nothing": lambda t: t.x[:, 4:2],
    },
    "split": {"": lambda t: t.x.split(4, 1)[1]},
    "split_with_sizes": {"": lambda t: t.x.split([1, 3, 2], 1)[1]},
    "chunk": {"": lambda t: t.x.chunk(4, 1)[0]},
    "unbind": {"": lambda t: t.x.unbind(1)[3]},
    "squeeze": {"": lambda t: t.x[:, :, None].squeeze(2)},
    "unsqueeze": {"": lambda t: t.x.unsqueeze(1)},
    "diagonal": {"": lambda t: t.v.diagonal(0, 1, 2)},
    "unfold": {"": lambda t: t.x.unfold(1, 3, 2)},
    "constant_pad_nd": {"": lambda t: F.pad(t.x, (1, 2), value=0.5)},
    "tril": {"": lambda t: t.v.tril(), "below": lambda t: t.v.tril(-1)},
    "triu": {"": lambda t: t.v.triu(1)},
    "full_like": {"": lambda t: torch.full_like(t.x, 3.0) + t.x},
    "slice_scatter": {"": lambda t: torch.slice_scatter(t.x, t.y[:, :2], 1, 2, 4)},
    "select_scatter": {"": lambda t: torch.select_scatter(t.x, t.y[:, 0], 1, 2)},
    "masked_scatter": {},
    # by index
    "gather": {
        "": lambda t: t.x.gather(1, t.i),
    },
    "index_select": {"": lambda t: t.x.index_select(1, torch.tensor([5, 0, 0]))},
    "index": {
        "": lambda t: t.x[:, torch.tensor([1, -1])],
        "two": lambda t: t.v[:, torch.tensor([0, 2]), torch.tensor([-1, 1])],
        "negative": lambda t: _SORTED.to(t.x.dtype)[t.i - 6],
    },
    "index_put": {
        "": lambda t: torch.index_put(
            t.p, [torch.arange(t.p.shape[0])[:, None], t.i[:, :1]], t.p[:, :1] * 2
        ),
        "accumulate": lambda t: torch.index_put(
            t.p, [torch.arange(t.p.shape[0])[:, None], t.i], t.p * 2, accumulate=True
        ),
    },
    "embedding": {"": lambda t: F.embedding(t.i, _W.T.to(t.p.dtype).contiguous())},
    "scatter": {
        "": lambda t: t.x.scatter(1, t.i[:, :1], t.y[:, :1]),
        "a number": lambda t: t.x.scatter(1, t.i, 2.0),
        "add": lambda t: t.p.scatter(1, t.i, t.p, reduce="add"),
        "multiply": lambda t: t.p.scatter(1, t.i, t.p, reduce="multiply"),
    },
    "scatter_add": {"": lambda t: torch.zeros_like(t.p).scatter_add(1, t.i, t.p)},
    "scatter_reduce": {
        f"{reduce}, {'on' if include else 'without'} what is there": _scattered(reduce, include)
        for reduce in ("sum", "mean", "prod", "amax", "amin")
        for include in (True, False)
    },
}

#: Of int64 and int32.
INTEGERS: Mapping[str, Mapping[str, Case]] = {
    "add": {"": lambda t: t.x + t.y, "a number": lambda t: t.x + 16_777_217},
    "sub": {"": lambda t: t.x - t.y, "from a number": lambda t: 1 - t.x},
    "mul": {"": lambda t: t.x * t.y, "by a number": lambda t: t.x * 1_000_003},
    "neg": {"": lambda t: -t.x},
    "abs": {"": lambda t: t.x.abs()},
    "sign": {"": lambda t: t.x.sign()},
    "div": {
        "true": lambda t: t.x / t.d,
        "true by a number": lambda t: t.x / 7,
        "floor": lambda t: torch.div(t.x, t.d, rounding_mode="floor"),
        "trunc": lambda t: torch.div(t.x, _other_than_back(t), rounding_mode="trunc"),
        "floor by a number": lambda t: t.x // 3600,
        "floor by a negative": lambda t: t.x // -7,
        "trunc by a number": lambda t: torch.div(t.x, -7, rounding_mode="trunc"),
        "floor by a float": lambda t: t.k // 2.5,
    },
    "floor_divide": {"": lambda t: torch.floor_divide(t.x, t.d)},
    "remainder": {
        "": lambda t: torch.remainder(t.x, t.d),
        "by a number": lambda t: t.x % 24,
        "by a negative": lambda t: t.x % -24,
        "of a quotient": lambda t: t.x // 3600 % 24,
        "of a number": lambda t: torch.remainder(1000, t.d),
    },
    "fmod": {"": lambda t: torch.fmod(t.x, t.d), "by a number": lambda t: torch.fmod(t.x, -24)},
    "pow": {
        "2": lambda t: t.x**2,
        "3": lambda t: t.k**3,
        "": lambda t: t.k.clamp(max=6) ** t.i,
        "half": lambda t: t.k**0.5,
        "a float": lambda t: t.k**1.5,
        "floats": lambda t: t.k ** (t.i * 0.5),
        "by integers": lambda t: (t.k * 0.5) ** t.i,
        "of a float": lambda t: 1.5**t.k,
    },
    "bitwise_and": {"": lambda t: t.x & t.y, "number": lambda t: t.x & 1023},
    "bitwise_or": {"": lambda t: t.x | t.y},
    "bitwise_xor": {"": lambda t: t.x ^ t.y},
    "bitwise_not": {"": lambda t: ~t.x},
    "bitwise_left_shift": {
        "": lambda t: torch.bitwise_left_shift(t.x, t.k),
        "a number": lambda t: t.x << 3,
        "of negatives": lambda t: t.s << 2,
    },
    "bitwise_right_shift": {
        "": lambda t: torch.bitwise_right_shift(t.x, t.k),
        "a number": lambda t: t.x >> 3,
        "of negatives": lambda t: t.s >> 2,
    },
    "maximum": {"": lambda t: torch.maximum(t.x, t.y)},
    "minimum": {"": lambda t: torch.minimum(t.x, t.y)},
    "clamp": {
        "": lambda t: t.x.clamp(-5, 1000),
        "min": lambda t: t.x.clamp(min=0),
        "max": lambda t: t.x.clamp(max=16_777_217),
        "by tensors": lambda t: t.x.clamp(t.y, t.d),
    },
    "relu": {"": lambda t: t.x.relu()},
    "eq": {"": lambda t: t.x == t.y, "number": lambda t: t.x == 16_777_217},
    "ne": {"": lambda t: t.x != t.y},
    "lt": {"": lambda t: t.x < t.y, "number": lambda t: t.x < 16_777_217},
    "le": {"": lambda t: t.x <= t.y},
    "gt": {"": lambda t: t.x > t.y},
    "ge": {"": lambda t: t.x >= t.y},
    "logical_not": {"": lambda t: t.x.logical_not()},
    "logical_and": {"": lambda t: torch.logical_and(t.x, t.y)},
    "logical_or": {"": lambda t: torch.logical_or(t.x, t.y)},
    "where": {
        "": lambda t: torch.where(t.m, t.x, t.y),
        "a number": lambda t: torch.where(t.x < 0, 0, t.x),
    },
    "masked_fill": {"": lambda t: t.x.masked_fill(t.m, -1)},
    "_to_copy": {
        "float32": lambda t: t.x.float(),
        "float64": lambda t: t.x.double(),
        "int32": lambda t: t.x.int(),
        "int64": lambda t: t.x.long(),
        "int8": lambda t: t.x.to(torch.int8),
        "uint8": lambda t: t.x.to(torch.uint8),
        "int16": lambda t: t.x.to(torch.int16),
        "bool": lambda t: t.x.bool(),
    },
    "sqrt": {"": lambda t: t.k.sqrt()},
    "exp": {"": lambda t: t.k.exp()},
    "log": {"": lambda t: t.k.log()},
    "log1p": {"": lambda t: t.k.log1p()},
    "sigmoid": {"": lambda t: t.s.sigmoid()},
    "sum": {"": lambda t: t.x.sum(1), "of nothing": lambda t: t.x[:, :0].sum(1)},
    "mean": {"": lambda t: t.k.float().mean(1)},
    "prod": {"": lambda t: t.i.prod(1), "wraps": lambda t: t.x.prod(1)},
    "amax": {"": lambda t: t.x.amax(1)},
    "amin": {"": lambda t: t.x.amin(1)},
    "max": {"values": lambda t: t.x.max(1).values, "places": lambda t: t.i.max(1).indices},
    "min": {"values": lambda t: t.x.min(1).values, "places": lambda t: t.i.min(1).indices},
    "argmax": {"": lambda t: t.x.argmax(1), "ties": lambda t: t.i.argmax(1)},
    "argmin": {"": lambda t: t.i.argmin(1)},
    "any": {"": lambda t: t.i.any(1)},
    "all": {"": lambda t: t.i.all(1)},
    "cumsum": {"": lambda t: t.x.cumsum(1)},
    "topk": {"values": lambda t: t.x.topk(3, 1).values},
    "sort": {"values": lambda t: t.x.sort(1).values},
    "argsort": {"stable": lambda t: torch.argsort(t.i, dim=1, stable=True)},
    "searchsorted": {
        "": lambda t: torch.searchsorted(torch.tensor([0, 7, 7, 16_777_216]).to(t.x.dtype), t.x)
    },
    "bucketize": {
        "": lambda t: torch.bucketize(
            t.x, torch.tensor([0, 7, 16_777_216, 2**31 - 1]).to(t.x.dtype)
        ),
        "right": lambda t: torch.bucketize(
            t.x, torch.tensor([0, 7, 16_777_216, 2**31 - 1]).to(t.x.dtype), right=True
        ),
    },
    "gather": {"": lambda t: t.x.gather(1, t.i)},
    "cat": {"": lambda t: torch.cat([t.x, t.y], 1)},
    "scatter": {"": lambda t: t.x.scatter(1, t.i[:, :1], t.y[:, :1])},
    "scatter_add": {"": lambda t: t.x.scatter_add(1, t.i, t.y)},
    "scatter_reduce": {
        f"{reduce}, {'on' if include else 'without'} what is there": (
            lambda t, r=reduce, n=include: t.k.scatter_reduce(
                1, t.i, t.i.to(t.k.dtype), r, include_self=n
            )
        )
        for reduce in ("sum", "mean", "prod", "amax", "amin")
        for include in (True, False)
    },
    "index_put": {
        "accumulate": lambda t: torch.index_put(
            t.x, [torch.arange(t.x.shape[0])[:, None], t.i], t.y, accumulate=True
        ),
    },
    "one_hot": {"": lambda t: F.one_hot(t.i, 6)},
}

#: Of truths.
TRUTHS: Mapping[str, Mapping[str, Case]] = {
    "logical_and": {"": lambda t: t.a & t.b},
    "logical_or": {"": lambda t: t.a | t.b},
    "logical_xor": {"": lambda t: t.a ^ t.b},
    "logical_not": {"": lambda t: ~t.a},
    "eq": {"": lambda t: t.a == t.b},
    "ne": {"": lambda t: t.a != t.b},
    "add": {"": lambda t: t.a + t.b, "a number": lambda t: t.a + 2},
    "mul": {"": lambda t: t.a * t.b, "by a number": lambda t: t.a * 2.5},
    "sum": {"": lambda t: t.a.sum(1), "of nothing": lambda t: t.a[:, :0].sum(1)},
    "any": {"": lambda t: t.a.any(1)},
    "all": {"": lambda t: t.a.all(1)},
    "cumsum": {"": lambda t: t.a.cumsum(1)},
    "maximum": {"": lambda t: torch.maximum(t.a, t.b)},
    "minimum": {"": lambda t: torch.minimum(t.a, t.b)},
    "amax": {"": lambda t: t.a.amax(1)},
    "lt": {"": lambda t: t.a < t.b},
    "ge": {"": lambda t: t.a >= t.b},
    "argmax": {"": lambda t: t.a.int().argmax(1)},
    "_to_copy": {"float32": lambda t: t.a.float(), "int64": lambda t: t.a.long()},
    "where": {"": lambda t: torch.where(t.a, t.b, ~t.b)},
    "cat": {"": lambda t: torch.cat([t.a, t.b], 1)},
    "gather": {"": lambda t: t.a.gather(1, t.i)},
    "masked_fill": {"": lambda t: t.a.masked_fill(t.b, True)},
}
GROUPS: Mapping[str, Any] = {"floats": FLOATS, "integers": INTEGERS, "truths": TRUTHS}
