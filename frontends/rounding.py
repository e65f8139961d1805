"""Telling rounding from a real difference: what differs in fp32 alone is rounding.

Scores can be ill-conditioned: the difference of two large sums, the weights of a norm that is
nearly zero. Then they move with the order in which a kernel adds, from batch to batch and from
operator to operator, while in fp64 they stay where they are, or move a million times less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..optimizer.ir.torchapi import TorchDispatchMode

#: How many times less a score moves in fp64 if fp32's rounding is what moves it. Rounding shrinks
#: by 2²⁹, a real difference stays.
_SHRINKS = 1000.0
#: How far a score may be off without a word, as a share of the largest.
SAME = 1e-4


def same_scores(got: Tensor, want: Tensor) -> bool:
    """The same shape, and within 1e-4 of the largest score; NaN is close to NaN alone."""
    return largest_difference(got, want) <= SAME


def largest_difference(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest finite score; infinite if shapes or NaN differ."""
    if got.shape != want.shape:
        return math.inf
    wide, other = got.double(), want.double()
    known = wide[wide.isfinite()]
    scale = max(float(known.abs().max()), 1e-6) if known.numel() else 1e-6
    apart = (wide - other).abs().masked_fill((wide == other) | (wide.isnan() & other.isnan()), 0.0)
    return float(apart.nan_to_num(math.inf).max()) / scale if apart.numel() else 0.0


def is_rounding(moved: float, moved_in_fp64: float) -> bool:
    """Whether a difference comes of fp32's rounding.

    Args:
        moved: By how much scores differ.
        moved_in_fp64: By how much the same two computations differ in fp64.
    """
    return moved_in_fp64 * _SHRINKS <= moved


def in_fp64(call: Callable[..., tuple[Tensor, ...]], leaves: Mapping[str, Tensor]) -> Any:
    """What a model gives when every float32 value in it is float64; None if it doesn't run so."""
    try:
        with _Wide():  # type: ignore[no-untyped-call]
            return call({name: _wide(leaf) for name, leaf in leaves.items()})
    except Exception:  # whatever it is: the model insists on float32, and nothing can be told
        return None


class _Wide(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator gets float64 for float32, and makes it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable and any(map(_is_narrow, args)):
            raise TypeError(f"{func} writes into float32")
        return _wide(func(*_wide(args), **_wide(kwargs or {})))


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _wide(value: Any) -> Any:
    if value is torch.float32:
        return torch.float64
    if _is_narrow(value):
        return value.double()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wide, value))
    if isinstance(value, dict):
        return {key: _wide(item) for key, item in value.items()}
    return value
