"""Packed sequences while a model is captured: every row keeps all its steps, and its length.

What a recurrent layer makes of the steps behind a row's end is never looked at: the last state of
a row is the one at its end, a layer that runs backwards gets each row's own steps turned around,
and the next layer reads the same steps again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..optimizer.errors import CaptureError


class _Padded(tuple[Any, ...]):
    """Stands for a packed sequence's batch sizes: every row has all steps, and its length."""

    lengths: Tensor
    device = torch.device("cpu")


def pack(
    input: Tensor,
    lengths: Any,
    batch_first: bool = False,
    enforce_sorted: bool = True,
) -> PackedSequence:
    """Instead of ``pack_padded_sequence``: all steps of every row, and the rows' lengths."""
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


def unpack(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Instead of ``pad_packed_sequence``: what lies behind a row's length is padding again.

    Raises:
        CaptureError: The number of steps is to be the longest row's.
    """
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


def recurrent(kind: type[nn.RNNBase]) -> Callable[..., Any]:
    """The layer's ``forward`` that also takes what `pack` makes."""
    real = kind.forward

    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
        if not isinstance(sizes, _Padded):
            return real(self, input, hx)
        states, lasts = _layers(self, _steps(input, sizes), sizes.lengths.to(torch.int64), hx)
        packed = PackedSequence(_joined(states), sizes, None, None)
        return packed, lasts if isinstance(self, nn.LSTM) else lasts[0]

    return forward


def _layers(
    layer: nn.RNNBase, steps: Tensor, lengths: Tensor, hx: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The states ``[T, B, D·H]`` of the last layer, and every layer's last states ``[L·D, B, H]``.

    Args:
        layer: The layer, in eval mode: nothing is dropped between its layers.
        steps: Its padded input ``[T, B, F]``.
        lengths: How many steps of each row count, ``[B]``.
        hx: The first states, or None for zeros.
    """
    turned = _turned(steps.shape[0], lengths)
    directions = 2 if layer.bidirectional else 1
    given = _first_states(layer, steps, hx)
    lasts: list[tuple[Tensor, ...]] = []
    for number in range(layer.num_layers):
        states = []
        for direction in range(directions):
            place = number * directions + direction
            first = tuple(state[place : place + 1] for state in given)
            there = steps if direction == 0 else _gathered(steps, turned)
            after = _run(layer, layer.all_weights[place], there, first)
            lasts.append(_ends(layer, layer.all_weights[place], there, after, first, lengths))
            states.append(after if direction == 0 else _gathered(after, turned))
        steps = torch.cat(states, 2) if directions == 2 else states[0]
    return steps, tuple(torch.stack(last) for last in zip(*lasts, strict=True))


def _turned(count: int, lengths: Tensor) -> Tensor:
    """Where each step goes when every row's own steps are turned around, ``[T, B]``."""
    steps = torch.arange(count)[:, None]
    return torch.where(steps < lengths[None, :], lengths[None, :] - 1 - steps, steps)


def _gathered(steps: Tensor, places: Tensor) -> Tensor:
    return steps.gather(0, places[:, :, None].expand(-1, -1, steps.shape[2]))


def _first_states(layer: nn.RNNBase, steps: Tensor, hx: Any) -> tuple[Tensor, ...]:
    """Hidden states, and of an LSTM cell states, ``[L·D, B, H]`` each."""
    if hx is not None:
        return tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [layer.proj_size or layer.hidden_size]
    if isinstance(layer, nn.LSTM):
        widths.append(layer.hidden_size)
    return tuple(steps.new_zeros(count, steps.shape[1], width) for width in widths)


def _run(
    layer: nn.RNNBase, weights: Sequence[Tensor], steps: Tensor, first: tuple[Tensor, ...]
) -> Tensor:
    """One layer in one direction: its states ``[T, B, H]``."""
    named: dict[str, Callable[..., Any]] = {
        "LSTM": torch.lstm,
        "GRU": torch.gru,
        "RNN_TANH": torch.rnn_tanh,
        "RNN_RELU": torch.rnn_relu,
    }
    start = first if isinstance(layer, nn.LSTM) else first[0]
    # One layer, no dropout, not in training, forwards, steps first.
    found = named[layer.mode](steps, start, weights, layer.bias, 1, 0.0, False, False, False)
    states: Tensor = found[0]
    return states


def _ends(
    layer: nn.RNNBase,
    weights: Sequence[Tensor],
    steps: Tensor,
    states: Tensor,
    first: tuple[Tensor, ...],
    lengths: Tensor,
) -> tuple[Tensor, ...]:
    """The state at the end of every row ``[B, H]``, and of an LSTM its cell state."""
    end = (lengths - 1).clamp(min=0)[None, :]
    last = _gathered(states, end)[0]
    if not isinstance(layer, nn.LSTM):
        return (last,)
    return last, _gathered(_cells(layer, weights, steps, states, first), end)[0]


def _cells(
    layer: nn.LSTM,
    weights: Sequence[Tensor],
    steps: Tensor,
    states: Tensor,
    first: tuple[Tensor, ...],
) -> Tensor:
    """The cell states ``[T, B, H]``, which no operator gives: from the gates, step by step.

    The gates need the hidden states alone, which are known. What isn't used of it is dropped.
    """
    hidden, cell = first[0], first[1][0]
    before = torch.cat([hidden, states[:-1]])
    biases = weights[2:4] if layer.bias else (None, None)
    gates = nn.functional.linear(steps, weights[0], biases[0])
    gates = gates + nn.functional.linear(before, weights[1], biases[1])
    into, kept, new, _ = gates.chunk(4, 2)
    kept, new = kept.sigmoid(), into.sigmoid() * new.tanh()
    cells = []
    for step in range(steps.shape[0]):
        cell = kept[step] * cell + new[step]
        cells.append(cell)
    return torch.stack(cells)
