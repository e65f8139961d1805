"""Functions that torch.export records wrongly or for one batch size, in operators it does record.

Their C++ compares sizes as numbers, which fixes the batch, or their decomposition computes
something else than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..optimizer.ir.torchapi import weight_norm


class Recordable(TorchFunctionMode):
    """Inside, these functions are computed by operators that are recorded for any batch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") == "lstm" and _is_projected(args):
            return _projected_lstm(*args)
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


def _is_projected(args: tuple[Any, ...]) -> bool:
    """Whether the hidden states of an LSTM are narrower than its cells, for which ONNX has no form.

    Packed sequences come with another second argument.
    """
    states = args[1]
    return isinstance(states, (list, tuple)) and bool(states[0].shape[-1] != states[1].shape[-1])


def _projected_lstm(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.lstm`` with ``proj_size`` in eval mode, step by step."""
    steps = input.transpose(0, 1) if batch_first else input
    count = 5 if has_biases else 3
    hidden: list[Tensor] = []
    cells: list[Tensor] = []
    for _ in range(layers):
        outputs = []
        for backwards in (False, True)[: 1 + bidirectional]:
            place = len(hidden)
            own = weights[place * count : (place + 1) * count]
            biases = own[2:4] if has_biases else (None, None)
            gates = functional.linear(steps, own[0], biases[0])
            order = range(steps.shape[0])
            h, c, made = states[0][place], states[1][place], [states[0][place]] * len(order)
            for step in reversed(order) if backwards else order:
                now = gates[step] + functional.linear(h, own[1], biases[1])
                into, kept, new, out = now.chunk(4, 1)
                c = kept.sigmoid() * c + into.sigmoid() * new.tanh()
                h = made[step] = functional.linear(out.sigmoid() * c.tanh(), own[-1])
            hidden.append(h)
            cells.append(c)
            outputs.append(torch.stack(made))
        steps = torch.cat(outputs, 2)
    output = steps.transpose(0, 1) if batch_first else steps
    return output, torch.stack(hidden), torch.stack(cells)


_INSTEAD: dict[Any, Callable[..., Any]] = {
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    weight_norm: _weight_norm,
}
