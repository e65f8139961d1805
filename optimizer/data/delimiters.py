"""Inputs whose rows hold different numbers of ids: what delimits them, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ..errors import SignatureError
from ..ir.signature import FeatureKind, Signature

Features = Mapping[str, Tensor]


class Delimits(StrEnum):
    """What an input says of the rows of others."""

    STARTS = "starts"
    BOUNDS = "starts and the end"
    LENGTHS = "lengths"


@dataclass(frozen=True)
class Ragged:
    """One input that delimits the rows of others.

    Attributes:
        delimiter: Its name: integers ``[B]``, or ``[B + 1]`` for bounds.
        delimits: What it holds.
        values: The inputs it delimits, ``[N, …]`` each: ids, and weights of ids.
    """

    delimiter: str
    delimits: Delimits
    values: tuple[str, ...]

    def rows(self, features: Features) -> int:
        """How many rows there are."""
        return len(features[self.delimiter]) - (self.delimits is Delimits.BOUNDS)

    def bounds(self, features: Features) -> Tensor:
        """Where each row begins, and the end, ``[B + 1]``."""
        given = features[self.delimiter].to(torch.int64)
        if self.delimits is Delimits.BOUNDS:
            return given
        if self.delimits is Delimits.LENGTHS:
            return torch.cat([given.new_zeros(1), given.cumsum(0)])
        end = len(features[self.values[0]])
        return torch.cat([given, given.new_full((1,), end)])

    def delimiter_of(self, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        """The delimiter of rows of these lengths."""
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        made = {
            Delimits.LENGTHS: lengths,
            Delimits.BOUNDS: bounds,
            Delimits.STARTS: bounds[:-1],
        }
        return made[self.delimits].to(dtype)


def ragged_of(signature: Signature) -> tuple[Ragged, ...]:
    """The delimiters of a signature's features."""
    values: dict[str, list[str]] = {}
    for feature in signature:
        if feature.delimiter:
            values.setdefault(feature.delimiter, []).append(feature.name)
    found = []
    for name, delimited in values.items():
        feature = signature.feature(name)
        bounds = feature.shape[0] != "batch"
        delimits = Delimits.BOUNDS if bounds else Delimits.STARTS
        if feature.kind is FeatureKind.LENGTHS:
            delimits = Delimits.LENGTHS
        found.append(Ragged(name, delimits, tuple(delimited)))
    return tuple(found)


def row_count(features: Features, ragged: Sequence[Ragged]) -> int:
    """How many rows the features have."""
    if ragged:
        return ragged[0].rows(features)
    return len(next(iter(features.values()))) if features else 0


def check_delimiters(signature: Signature, features: Features, batch: int | None = None) -> None:
    """Raises unless offsets and lengths fit the rows and the values they delimit.

    Raises:
        SignatureError: Which feature doesn't, and from which row on.
    """
    for one in ragged_of(signature):
        _check_delimiter(one, features, batch)


def _check_delimiter(one: Ragged, features: Features, batch: int | None) -> None:
    """Raises unless a delimiter fits the rows and the values it delimits."""
    rows = one.rows(features)
    if rows < 0 or (batch is not None and rows != batch):
        raise SignatureError(
            f"feature {one.delimiter!r} delimits {rows} rows, the others have {batch}."
        )
    bounds = one.bounds(features)
    if rows == 0 and one.delimits is Delimits.STARTS:
        return  # values that no row has are looked at by nothing
    if int(bounds[0]) != 0 or bool((bounds.diff() < 0).any()):
        row = int((bounds.diff() < 0).to(torch.int8).argmax())
        raise SignatureError(
            f"feature {one.delimiter!r} isn't rising from 0: row {row} would begin at "
            f"{int(bounds[row])} and end at {int(bounds[row + 1])} of "
            f"{len(features[one.values[0]]):,} values."
        )
    for name in one.values:
        if len(features[name]) != int(bounds[-1]):
            raise SignatureError(
                f"feature {name!r} has {len(features[name])} values, and {one.delimiter!r} "
                f"delimits {int(bounds[-1])}."
            )
