"""Functions that torch.export records wrongly or for one batch size, in operators it does record.

Their C++ compares sizes as numbers, which fixes the batch, or their decomposition computes
something else than they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..optimizer.ir.torchapi import weight_norm


class Recordable(TorchFunctionMode):
    """Inside, these functions are computed by operators that are recorded for any batch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        instead = _INSTEAD.get(func, func)
        return instead(*args, **(kwargs or {}))


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """A gather in which the other dimensions spread."""
    if dim is None:
        return input.reshape(-1).gather(0, indices.reshape(-1))
    if input.dim() != indices.dim():
        return torch.take_along_dim(input, indices, dim)  # which says what is wrong
    dim %= input.dim()
    spread = [_wider(here, there) for here, there in zip(input.shape, indices.shape, strict=True)]
    inputs, places = list(spread), list(spread)
    inputs[dim], places[dim] = input.shape[dim], indices.shape[dim]
    return input.expand(inputs).gather(dim, indices.expand(places))


def _wider(here: Any, there: Any) -> Any:
    """The size that two dimensions spread to; that of the batch is no number."""
    return there if isinstance(here, int) and here == 1 else here


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weights scaled to lengths ``g``; torch's decomposition takes a vector's length whole."""
    if v.dim() == 1 and dim == 0:
        return v * (g / v.abs())
    return weight_norm(v, g, dim)


_INSTEAD: dict[Any, Callable[..., Any]] = {
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    weight_norm: _weight_norm,
}
