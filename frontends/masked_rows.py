"""Capture of models that drop rows by a mask, compute on the rest, and put them back.

``x[mask]``, ``masked_select`` and packed sequences give as many rows as the values say, which no
graph of fixed operators has. What comes of the dropped rows is never looked at, so that computing
on all of them and choosing with ``where`` at the end gives the same scores. That holds only where
nothing in between mixes rows: the captured program is held against the model itself, on the
example's rows together and alone, as after every route.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode

from .packed import pack, recurrent, unpack


@contextlib.contextmanager
def all_rows() -> Iterator[None]:
    """While the model runs inside, rows a mask drops are kept and chosen at the end."""
    with contextlib.ExitStack() as stack:
        for name, instead in (
            ("pack_padded_sequence", pack),
            ("pad_packed_sequence", unpack),
        ):
            real = getattr(rnn, name)
            for module in list(sys.modules.values()):
                # Models import these by name, so that each module holds its own reference.
                if getattr(module, "__dict__", {}).get(name) is real:
                    stack.enter_context(mock.patch.object(module, name, instead))
        for kind in (nn.GRU, nn.RNN, nn.LSTM):
            stack.enter_context(mock.patch.object(kind, "forward", recurrent(kind)))
        stack.enter_context(_KeepRows())
        yield


class _KeepRows(TorchFunctionMode):
    """Selections by a mask over the rows keep all rows."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kept: Any = None
        if func is Tensor.__getitem__ and _masks(*args[:2]):
            kept = _selected(*args)
        elif func is Tensor.__setitem__ and _masks(*args[:2]) and isinstance(args[2], Tensor):
            kept = _put(*args)
        elif func in (torch.masked_select, Tensor.masked_select):
            mask: Any = args[1] if len(args) > 1 else (kwargs or {}).get("mask")
            if _masks(args[0], mask) and all(size == 1 for size in mask.shape[1:]):
                kept = args[0].reshape(-1)
        elif func in (torch.any, Tensor.any) and len(args) == 1 and not kwargs:
            kept = True if args[0].dim() == 1 and _masks(args[0], args[0]) else None
        return func(*args, **(kwargs or {})) if kept is None else kept


def _masks(value: Any, mask: Any) -> bool:
    """Whether ``mask`` tells which rows of ``value`` count."""
    return (
        isinstance(value, Tensor)
        and isinstance(mask, Tensor)
        and mask.dtype is torch.bool
        and 0 < mask.dim() <= value.dim()
        and isinstance(value.shape[0], torch.SymInt)
        and bool(mask.shape[0] == value.shape[0])
    )


def _selected(value: Tensor, mask: Tensor) -> Tensor | None:
    """All rows for a mask over rows; for one over positions, the one position of each row."""
    if mask.dim() == 1:
        return value
    if mask.dim() > 2:
        return None
    # One row each can come of it only if each row has one position, such as the last one.
    weights = mask.reshape(*mask.shape, *[1] * (value.dim() - 2))
    return torch.where(weights, value, torch.zeros_like(value)).sum(1)


def _put(into: Tensor, mask: Tensor, values: Tensor) -> Tensor | None:
    """``into[mask] = values`` where values has all rows."""
    if mask.dim() != 1 or values.dim() != into.dim():
        return None
    rows = mask.reshape(-1, *[1] * (into.dim() - 1))
    return into.copy_(torch.where(rows, values.to(into.dtype), into))
