"""Inputs whose rows hold different numbers of ids: what delimits them, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from ..errors import SignatureError
from ..ir.signature import FeatureKind, Signature
from .arrays import Array, array_of

_NOUGHT = np.zeros(1, np.int64)


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

    def rows(self, features: Mapping[str, Any]) -> int:
        """How many rows there are."""
        return len(features[self.delimiter]) - (self.delimits is Delimits.BOUNDS)

    def bounds(self, features: Mapping[str, Any]) -> Array:
        """Where each row begins, and the end, int64 ``[B + 1]``."""
        given = array_of(self.delimiter, features[self.delimiter]).astype(np.int64)
        if self.delimits is Delimits.BOUNDS:
            return given
        if self.delimits is Delimits.LENGTHS:
            return np.concatenate([_NOUGHT, given.cumsum()])
        return np.append(given, len(features[self.values[0]]))

    def delimiter_of(self, lengths: Array) -> Array:
        """The delimiter of rows of these lengths, int64."""
        lengths = lengths.astype(np.int64)
        if self.delimits is Delimits.LENGTHS:
            return lengths
        bounds = np.concatenate([_NOUGHT, lengths.cumsum()])
        return bounds if self.delimits is Delimits.BOUNDS else bounds[:-1]


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


def row_count(features: Mapping[str, Any], ragged: Sequence[Ragged]) -> int:
    """How many rows the features have."""
    if ragged:
        return ragged[0].rows(features)
    return len(next(iter(features.values()))) if features else 0


def check_delimiter(one: Ragged, arrays: Mapping[str, Array], batch: int | None = None) -> None:
    """Raises unless offsets or lengths fit the rows and the values they delimit.

    Args:
        one: What delimits what.
        arrays: By name.
        batch: The rows of the other features, where there are any.

    Raises:
        SignatureError: Which feature doesn't, and from which row on.
    """
    rows = one.rows(arrays)
    if rows < 0 or (batch is not None and rows != batch):
        raise SignatureError(
            f"feature {one.delimiter!r} delimits {rows} rows, the others have {batch}."
        )
    bounds = one.bounds(arrays)
    if rows == 0 and one.delimits is Delimits.STARTS:
        return  # values that no row has are looked at by nothing
    falls = np.diff(bounds) < 0
    if bounds[0] != 0 or falls.any():
        row = int(falls.argmax())
        raise SignatureError(
            f"feature {one.delimiter!r} isn't rising from 0: row {row} would begin at "
            f"{int(bounds[row])} and end at {int(bounds[row + 1])} of "
            f"{len(arrays[one.values[0]]):,} values."
        )
    for name in one.values:
        if len(arrays[name]) != bounds[-1]:
            raise SignatureError(
                f"feature {name!r} has {len(arrays[name])} values, and {one.delimiter!r} "
                f"delimits {int(bounds[-1])}."
            )
