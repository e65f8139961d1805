"""Whether tensors fit the signature: shapes, dtypes, values and ids."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DataError, SignatureError
from ..ir.signature import Feature, FeatureKind, Signature
from .delimiters import check_delimiters
from .limits import id_limits, id_lows, taken

_DELIMITERS = (FeatureKind.OFFSETS, FeatureKind.LENGTHS)


def check_features(
    signature: Signature, features: Mapping[str, Tensor], first_row: int = 0
) -> None:
    """Raises unless the tensors fit the signature.

    Raises:
        SignatureError: Which feature has which wrong dtype, shape or ids.
        DataError: Which feature is NaN or Inf, and in which row first.
    """
    batch: int | None = None
    for feature in signature:
        value = features[feature.name]
        _check_shape(feature, value)
        if feature.shape and feature.shape[0] == "batch":
            if batch is not None and len(value) != batch:
                raise SignatureError(
                    f"feature {feature.name!r} has {len(value)} rows, the others have {batch}."
                )
            batch = len(value)
        _check_values(feature, value, first_row)
    check_delimiters(signature, features, batch)


def _check_shape(feature: Feature, value: Tensor) -> None:
    dtype = str(value.dtype).removeprefix("torch.")
    fits = dtype == feature.dtype
    if not fits:
        raise SignatureError(
            f"feature {feature.name!r} is {dtype}, expected {feature.dtype}. "
            f"Convert it, as in {feature.name}.to(torch.{feature.dtype})."
        )
    if value.dim() != len(feature.shape) or any(
        isinstance(expected, int) and expected != size
        for expected, size in zip(feature.shape, value.shape, strict=True)
    ):
        shape = ", ".join(map(str, feature.shape))
        raise SignatureError(
            f"feature {feature.name!r} has shape {list(value.shape)}, expected [{shape}]."
        )


def _check_values(feature: Feature, value: Tensor, first_row: int) -> None:
    if value.numel() == 0:
        return
    if value.is_floating_point():
        bad = ~torch.isfinite(value)
        if bool(bad.any()) and feature.missing:
            bad &= ~taken(feature, value)
        if bool(bad.any()):
            rows = bad.reshape(len(value), -1).any(1).nonzero().flatten()
            raise DataError(
                f"feature {feature.name!r} has NaN or Inf in {len(rows):,} rows, first in row "
                f"{first_row + int(rows[0])}. Fill missing values as in training, before scoring "
                "or in the model's forward: its own scores of them are NaN or Inf."
            )
    if feature.bounds is not None:
        low, high = feature.bounds
        outside = (value < low) | (value > high)
        if bool(outside.any()):
            row = int(outside.reshape(len(value), -1).any(1).to(torch.int8).argmax())
            raise SignatureError(
                f"feature {feature.name!r} is {float(value[outside].flatten()[0]):g} in row "
                f"{first_row + row}, outside of {low:g} to {high:g}, beyond which nothing is known."
            )
    if feature.cardinalities and feature.kind not in _DELIMITERS:
        _check_ids(feature, value.to(torch.int64), first_row)


def _check_ids(feature: Feature, ids: Tensor, first_row: int) -> None:
    lows, limits = id_lows(feature), id_limits(feature)
    bad = ((ids >= limits) | (ids < lows)) & (limits > 0)
    if not bool(bad.any()):
        return
    rows = bad.reshape(len(ids), -1).any(1).nonzero().flatten()
    first = 0
    if len(feature.cardinalities) > 1:
        first = int(bad.movedim(feature.axis, 0).flatten(1).any(1).nonzero()[0])
        bad = bad & (torch.arange(len(feature.cardinalities)) == first).reshape(limits.shape)
        rows = bad.reshape(len(ids), -1).any(1).nonzero().flatten()
    column = f", column {first}" if len(feature.cardinalities) > 1 else ""
    low, limit = feature.least[first], feature.cardinalities[first]
    table = f"its table of {limit:,} rows" if low == 0 else f"{low:,} to {limit - 1:,}"
    raise SignatureError(
        f"feature {feature.name!r}{column} has ids beyond {table} in "
        f"{len(rows):,} rows: from {int(ids[bad].min())} to {int(ids[bad].max())}, first in row "
        f"{first_row + int(rows[0])}. Map unknown ids to a known row, or hash them into the table."
    )
