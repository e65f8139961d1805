"""Rows that translations are tried on: what a value of each kind can be at worst."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import SimpleNamespace

import torch
from torch import Tensor

_FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 0.1, 0.3, -0.7, 7.0, 88.0, -88.0),
    *(20.0, -20.0, 1e-6, 1e-8, -1e-8, 16_777_217.0, 1e9, -1e9, 3e9, 1e19, 1e30, -1e30),
    *(float("inf"), -float("inf"), float("nan")),
)
_INTEGERS = (
    *(0, 1, -1, 2, -2, 3, 7, -7, 23, 24, 25, 3599, 3600, 3601, -3600, 127, 128, 255, 256),
    *(65_535, 16_777_216, 16_777_217, -16_777_217, 33_554_435, 1_700_000_000, 2**31 - 1, -(2**31)),
)
_LARGE = (2**31, 2**40 + 1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63))


#: Ordinary integers are below it: products of two fit in 32 bits.
_WIDE = 2**15


class Values(Enum):
    """Which values rows are made of.

    ``HOSTILE`` has NaN, infinity, denormals, the ends of each dtype; ``ORDINARY`` only what a model
    is trained on, with its zeros, halves, ties, boundaries and multiples.
    """

    HOSTILE = "hostile"
    ORDINARY = "ordinary"


#: Of ordinary integers, what a signature would say.
BOUNDS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("x", "y", "d"), (-_WIDE, _WIDE)),
    "i": (0, 5),
    "s": (-40, 40),
    "k": (0, 30),
}


def worst(dtype: torch.dtype, values: Values = Values.HOSTILE) -> Tensor:
    """The values that a translation is most likely wrong for, of those asked for."""
    found = hostile(dtype)
    if values is Values.HOSTILE or dtype is torch.bool:
        return found
    if not dtype.is_floating_point:
        return found[(found > -_WIDE) & (found < _WIDE)]
    size = found.abs()
    return found[(found == 0) | ((size >= 1e-8) & (size <= 1e9))]


def hostile(dtype: torch.dtype) -> Tensor:
    """The values that a translation is most likely wrong for."""
    if dtype is torch.bool:
        return torch.tensor([False, True])
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        edges = (info.max, info.min, info.tiny, -info.tiny, info.tiny / 4, -info.tiny / 8, info.eps)
        return torch.tensor([*_FLOATS, *edges], dtype=torch.float64).to(dtype)
    large = _LARGE if dtype is torch.int64 else ()
    return torch.tensor([*_INTEGERS, *large], dtype=dtype)


def rows(
    dtype: torch.dtype, count: int, seed: int, values: Values = Values.HOSTILE
) -> SimpleNamespace:
    """Rows of every input of the kind (see `cases`), each drawn by itself; ties are frequent."""
    draw = torch.Generator().manual_seed(seed)
    drawn = worst(dtype, values)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (count, *shape), generator=draw)

    def any_of(values: Tensor) -> Tensor:
        return values[whole(0, len(values), 6)]

    made = {"x": any_of(drawn), "y": any_of(drawn), "i": whole(0, 6, 6), "m": whole(0, 2, 6).bool()}
    if count > 8:
        made["i"][0], made["m"][0], made["m"][1] = 3, True, False
    if dtype is torch.bool:
        return SimpleNamespace(a=made["x"], b=made["y"], i=made["i"])
    if dtype.is_floating_point:
        made["p"] = (torch.randn(count, 6, generator=draw) * 3).to(dtype)
        made["v"] = torch.randn(count, 3, 4, generator=draw).to(dtype)
        return SimpleNamespace(**made)
    made["d"] = any_of(drawn[drawn != 0])
    if count > 8 and values is Values.HOSTILE:
        made["x"][0, 0], made["d"][0, 0] = torch.iinfo(dtype).min, -1
    made["s"] = whole(-40, 41, 6).to(dtype)
    made["k"] = whole(0, 31, 6).to(dtype)
    return SimpleNamespace(**made)
