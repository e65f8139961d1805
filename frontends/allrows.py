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
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from ..optimizer.errors import CaptureError


@contextlib.contextmanager
def all_rows() -> Iterator[None]:
    """While the model runs inside, rows a mask drops are kept and chosen at the end."""
    with contextlib.ExitStack() as stack:
        for name, instead in (
            ("pack_padded_sequence", _pack),
            ("pad_packed_sequence", _unpack),
        ):
            real = getattr(rnn, name)
            for module in list(sys.modules.values()):
                # Models import these by name, so that each module holds its own reference.
                if getattr(module, "__dict__", {}).get(name) is real:
                    stack.enter_context(mock.patch.object(module, name, instead))
        for kind in (nn.GRU, nn.RNN, nn.LSTM):
            stack.enter_context(mock.patch.object(kind, "forward", _recurrent(kind)))
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


class _Padded(tuple[Any, ...]):
    """Stands for a packed sequence's batch sizes: every row has all steps, and its length."""

    lengths: Tensor
    device = torch.device("cpu")


def _pack(
    input: Tensor,
    lengths: Any,
    batch_first: bool = False,
    enforce_sorted: bool = True,
) -> PackedSequence:
    steps = input.transpose(0, 1) if batch_first else input
    sizes = _Padded([steps.shape[1]] * int(steps.shape[0]))
    sizes.lengths = torch.as_tensor(lengths)
    return PackedSequence(_joined(steps), sizes, None, None)  # type: ignore[arg-type]


def _joined(steps: Tensor) -> Tensor:
    """Values ``[T, B, …]`` as ``[T·B, …]``; a copy, since a view would ask for the strides."""
    copy = steps.clone(memory_format=torch.contiguous_format)
    return copy.view(steps.shape[0] * steps.shape[1], *steps.shape[2:])


def _steps(packed: PackedSequence, sizes: _Padded) -> Tensor:
    """The values as ``[T, B, …]``."""
    rows = sizes.lengths.shape[0]
    return packed.data.view(len(sizes), rows, *packed.data.shape[1:])


def _unpack(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    sizes: Any = sequence.batch_sizes
    if total_length is None or total_length != len(sizes):
        raise CaptureError(
            "pad_packed_sequence gives as many steps as the longest row has, which differs from "
            "batch to batch. Pass total_length=x.shape[1]."
        )
    steps = _steps(sequence, sizes)
    inside = torch.arange(len(sizes))[:, None] < sizes.lengths[None, :]
    inside = inside.reshape(*inside.shape, *[1] * (steps.dim() - 2))
    padded = torch.where(inside, steps, torch.full_like(steps, padding_value))
    return (padded.transpose(0, 1) if batch_first else padded), sizes.lengths


def _recurrent(kind: Any) -> Callable[..., Any]:
    """The layer's ``forward`` that also takes what `_pack` makes."""
    real = kind.forward

    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
        if not isinstance(sizes, _Padded):
            return real(self, input, hx)
        if self.bidirectional or self.num_layers > 1:
            raise CaptureError(
                f"a packed sequence in a {kind.__name__} that is bidirectional or has several "
                "layers: its last states can't be read off the padded one. Run it on the padded "
                "sequence, one layer and one direction at a time."
            )
        steps = _steps(input, sizes)
        if self.batch_first:
            padded, _ = real(self, steps.transpose(0, 1).contiguous(), hx)
            padded = padded.transpose(0, 1)
        else:
            padded, _ = real(self, steps, hx)
        end = (sizes.lengths - 1).clamp(min=0).to(torch.int64)
        places = end[None, :, None].expand(1, end.shape[0], padded.shape[2])
        last = padded.gather(0, places)
        packed = PackedSequence(_joined(padded), sizes, None, None)
        # The last cell states of an LSTM are nowhere in its outputs.
        return packed, (last, None) if kind is nn.LSTM else last

    return forward
