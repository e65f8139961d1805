"""Whether what callers give fits the signature: a plan made once, over numpy arrays.

The first look is a comparison a feature, with all that it takes looked up before. Only where it
fails is what is wrong found out, by row and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DataError, SignatureError
from ..ir.signature import BATCH, Feature, FeatureKind, Signature
from .arrays import Array, array_of, arrays_of, dtype_called
from .delimiters import check_delimiter, ragged_of
from .limits import id_limits, id_lows, taken

_DELIMITERS = (FeatureKind.OFFSETS, FeatureKind.LENGTHS)
_FLOAT32 = np.dtype(np.float32)
_HALVES = ("float16", "bfloat16")


def check_features(signature: Signature, features: Mapping[str, Any], first_row: int = 0) -> None:
    """Raises unless the tensors or arrays fit the signature.

    Raises:
        SignatureError: Which feature has which wrong dtype, shape or ids.
        DataError: Which feature is NaN or Inf, and in which row first.
    """
    Plan(signature).check(arrays_of(features), first_row)


class Plan:
    """How what a caller gives becomes arrays that fit a signature.

    Args:
        signature: Of flat batches, or of requests.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self._columns = {feature.name: Column(feature) for feature in signature}
        self._all = tuple(self._columns.values())
        self._limited = tuple(column for column in self._all if column.limited)
        self._unused = frozenset(signature.unused)
        self._optional = signature.optional
        self._ragged = ragged_of(signature)
        self._delimited = tuple(n for one in self._ragged for n in (one.delimiter, *one.values))

    def arrays(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """What was given as arrays by feature name, less what nothing reads.

        Half precision is widened, which is exact, where the program computes in float32.

        Raises:
            SignatureError: A feature is neither an array nor a tensor nor numbers.
        """
        found = {}
        for name, value in given.items():
            if name in self._unused:
                continue
            column = self._columns.get(name)
            if column is None or type(value) is not np.ndarray or value.dtype != column.dtype:
                value = array_of(name, value)
                if column is not None and column.widens(value):
                    value = value.astype(np.float32)
            found[name] = value
        return found

    def filled(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The features, with the default in every row of those that were left out."""
        if all(name in arrays for name in self._optional):
            return dict(arrays)
        made = {
            feature.name: np.full(shape, feature.default, dtype_called(feature.dtype))
            for feature, shape in self.signature.left_out(arrays)
        }
        return {**arrays, **made}

    def check(self, arrays: Mapping[str, Array], first_row: int = 0) -> None:
        """Raises unless the arrays fit.

        Args:
            arrays: All features by name.
            first_row: What messages call their first row.

        Raises:
            SignatureError: Which feature has which wrong dtype, shape or ids.
            DataError: Which feature is NaN or Inf, and in which row first.
        """
        batch: int | None = None
        for column in self._all:
            value = arrays[column.name]
            if not column.fits(value):
                raise column.misfit(value)
            if column.by_row:
                if batch is not None and len(value) != batch:
                    raise SignatureError(
                        f"feature {column.name!r} has {len(value)} rows, the others have {batch}."
                    )
                batch = len(value)
            if value.size:
                column.check(value, first_row)
        for one in self._ragged:
            check_delimiter(one, arrays, batch)

    def bounds_fit(self, arrays: Mapping[str, Any]) -> bool:
        """Whether no id is beyond its table; a feature that isn't there fits."""
        return not any(
            column.name in arrays and column.beyond(np.asarray(arrays[column.name]))
            for column in self._limited
        )

    def check_delimiters(self, arrays: Mapping[str, Any]) -> None:
        """Raises unless offsets and lengths, if all are there, fit the values they delimit.

        Raises:
            SignatureError: Which feature doesn't, and from which row on.
        """
        if self._delimited and all(name in arrays for name in self._delimited):
            given = arrays_of({name: arrays[name] for name in self._delimited})
            for one in self._ragged:
                check_delimiter(one, given)


class Column:
    """What is looked at in one feature.

    Args:
        feature: The feature.
    """

    def __init__(self, feature: Feature) -> None:
        self.name = feature.name
        self.dtype = dtype_called(feature.dtype)
        self.by_row = feature.shape[:1] == (BATCH,)
        self.limited = any(feature.cardinalities) and feature.kind not in _DELIMITERS
        self._feature = feature
        self._rank = len(feature.shape)
        self._sizes = tuple((d, n) for d, n in enumerate(feature.shape) if isinstance(n, int))
        self._floating = not feature.is_integer
        self._limits = _limits(feature) if self.limited else (0, 0)

    def widens(self, value: Array) -> bool:
        """Whether it is of half precision, and read in float32."""
        return self.dtype == _FLOAT32 and value.dtype.name in _HALVES

    def fits(self, value: Array) -> bool:
        """Whether it has the dtype and the shape."""
        shape = value.shape
        return (
            value.dtype == self.dtype
            and len(shape) == self._rank
            and all(shape[d] == size for d, size in self._sizes)
        )

    def misfit(self, value: Array) -> SignatureError:
        """What is wrong with its dtype or shape."""
        name, dtype = self.name, self._feature.dtype
        if value.dtype != self.dtype:
            return SignatureError(
                f"feature {name!r} is {value.dtype.name}, expected {dtype}. Convert it, as in "
                f'{name}.to(torch.{dtype}) of a tensor or {name}.astype("{dtype}") of an array.'
            )
        shape = ", ".join(map(str, self._feature.shape))
        return SignatureError(
            f"feature {name!r} has shape {list(value.shape)}, expected [{shape}]."
        )

    def check(self, value: Array, first_row: int) -> None:
        """Raises unless the values, of which there are some, can be.

        Raises:
            SignatureError: Values outside of the bounds, or ids beyond their table.
            DataError: NaN or Inf.
        """
        if self._floating and not np.isfinite(value).all():
            self._check_finite(value, first_row)
        if self._feature.bounds is not None:
            self._check_bounds(value, *self._feature.bounds, first_row)
        if self.limited and self.beyond(value):
            raise self._beyond(_whole(value), first_row)

    def beyond(self, value: Array) -> bool:
        """Whether there are ids beyond their tables."""
        if not value.size:
            return False
        ids, (low, high) = _whole(value), self._limits
        if isinstance(low, int):
            return bool(ids.min() < low or ids.max() > high)
        return bool(np.less(ids, low).any() or np.greater(ids, high).any())

    def _check_finite(self, value: Array, first_row: int) -> None:
        bad = ~np.isfinite(value)
        if self._feature.missing:
            bad &= ~taken(self._feature, value)
        if not bad.any():
            return
        rows = np.flatnonzero(_rows(bad))
        raise DataError(
            f"feature {self.name!r} has NaN or Inf in {len(rows):,} rows, first in row "
            f"{first_row + int(rows[0])}. Fill missing values as in training, before scoring "
            "or in the model's forward: its own scores of them are NaN or Inf."
        )

    def _check_bounds(self, value: Array, low: float, high: float, first_row: int) -> None:
        outside = (value < low) | (value > high)
        if outside.any():
            row = int(_rows(outside).argmax())
            raise SignatureError(
                f"feature {self.name!r} is {float(value[outside].flat[0]):g} in row "
                f"{first_row + row}, outside of {low:g} to {high:g}, beyond which nothing is known."
            )

    def _beyond(self, ids: Array, first_row: int) -> SignatureError:
        feature, first, column = self._feature, 0, ""
        lows, limits = id_lows(feature), id_limits(feature)
        bad = ((ids >= limits) | (ids < lows)) & (limits > 0)
        if len(feature.cardinalities) > 1:
            by_column = np.moveaxis(bad, feature.axis, 0)
            first = int(by_column.reshape(len(by_column), -1).any(1).argmax())
            here = np.arange(len(feature.cardinalities)) == first
            bad = bad & here.reshape(limits.shape)
            column = f", column {first}"
        rows = np.flatnonzero(_rows(bad))
        low, limit = feature.least[first], feature.cardinalities[first]
        table = f"its table of {limit:,} rows" if low == 0 else f"{low:,} to {limit - 1:,}"
        return SignatureError(
            f"feature {self.name!r}{column} has ids beyond {table} in "
            f"{len(rows):,} rows: from {int(ids[bad].min())} to {int(ids[bad].max())}, first in "
            f"row {first_row + int(rows[0])}. Map unknown ids to a known row, or hash them into "
            "the table."
        )


def _limits(feature: Feature) -> tuple[Any, Any]:
    """The least and the largest id: numbers, or arrays that broadcast over ids."""
    if len(feature.cardinalities) == 1:
        return feature.least[0], feature.cardinalities[0] - 1
    whole = np.iinfo(np.int64)
    lows, limits = id_lows(feature), id_limits(feature)
    return np.where(limits > 0, lows, whole.min), np.where(limits > 0, limits - 1, whole.max)


def _whole(value: Array) -> Array:
    """Ids as integers, which columns of floats hold as well."""
    if value.dtype.kind in "iu":
        return value
    with np.errstate(invalid="ignore"):  # NaN becomes an id that no table has
        return value.astype(np.int64)


def _rows(bad: Array) -> Array:
    """Which rows have something bad."""
    return np.asarray(bad.reshape(len(bad) if bad.ndim else 1, -1).any(axis=1))
