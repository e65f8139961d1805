"""``scaled_dot_product_attention`` in standard ONNX, of any rank and with rows nothing is left of.

The exporter takes four dimensions alone, and masks with the least number in place of minus
infinity: a row whose whole history is masked gets the mean of all values, where PyTorch gives 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ...optimizer.errors import UnsupportedError
from .arithmetic import constant, op


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``aten.scaled_dot_product_attention``; dropout is refused.

    Args:
        query: ``[..., L, E]``.
        key: ``[..., S, E]``.
        value: ``[..., S, Ev]``.
        attn_mask: Truths, True to attend, or numbers to add; spreads to ``[..., L, S]``.
        dropout_p: 0.
        is_causal: Whether a row attends only to itself and what is before it.
        scale: Of the products; 1 / sqrt(E) when None.
        enable_gqa: Whether keys have fewer heads, at dimension -3, than queries.
    """
    if dropout_p:
        raise UnsupportedError("attention with dropout; call model.eval() before")
    dtype, rank = query.dtype, len(key.shape)
    if enable_gqa:
        key, value = (_repeated(x, query.shape[-3]) for x in (key, value))
    if scale is None:
        scale = 1.0 / math.sqrt(_fixed(query.shape[-1], "the width of the queries"))
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, constant(scale, dtype)), turned)
    least = constant(-np.inf, dtype)
    if is_causal:
        attn_mask = _causal(query, key)
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if is_causal or attn_mask.dtype == ir.DataType.BOOL:
        scores = op.Where(attn_mask, scores, least)
    else:
        scores = op.Add(scores, attn_mask)
    highest = op.ReduceMax(scores, op.Constant(value_ints=[-1]), keepdims=1)
    weights = op.Softmax(scores, axis=-1)
    weights = op.Where(op.Equal(highest, least), constant(0.0, dtype), weights)
    return op.MatMul(weights, value)


def _repeated(x: Any, heads: Any) -> Any:
    own, heads = _fixed(x.shape[-3], "the number of heads"), _fixed(heads, "the number of heads")
    places = [head // (heads // own) for head in range(heads)]
    return op.Gather(x, op.Constant(value_ints=places), axis=len(x.shape) - 3)


def _causal(query: Any, key: Any) -> Any:
    rows = _fixed(query.shape[-2], "the length of the queries")
    columns = _fixed(key.shape[-2], "the length of the keys")
    mask = np.tril(np.ones((rows, columns), dtype=bool))
    return op.Constant(value=ir.tensor(mask, ir.DataType.BOOL))


def _fixed(size: Any, what: str) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(f"attention where {what} isn't fixed")
    return size


ATTENTION: dict[Any, Any] = {torch.ops.aten.scaled_dot_product_attention.default: attention}
