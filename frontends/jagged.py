"""Inputs whose rows hold different numbers of ids, during capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..optimizer.ir import FeatureKind, Signature
from ..optimizer.ir.signature import BATCH
from ..optimizer.ragged import Delimits, Ragged


def first_dims(leaves: Mapping[str, Tensor], ragged: Sequence[Ragged], batch: Any) -> list[Any]:
    """The dynamic first dimension of every input: rows, bounds of rows, or ids."""
    dims = dict.fromkeys(leaves, batch)
    for one in ragged:
        ids = torch.export.Dim(f"ids_of_{one.delimiter}", min=0)
        if batch is torch.export.Dim.AUTO:
            ids = batch
        dims |= dict.fromkeys(one.values, ids)
        if one.delimits is Delimits.BOUNDS:
            dims[one.delimiter] = batch if batch is torch.export.Dim.AUTO else batch + 1
    return list(dims.values())


def with_delimiters(signature: Signature, ragged: Sequence[Ragged]) -> Signature:
    """The signature with what delimits what, and with the names of the sizes."""
    for one in ragged:
        delimiter = signature.feature(one.delimiter)
        bounds = one.delimits is Delimits.BOUNDS
        signature = signature.with_feature(
            one.delimiter,
            kind=FeatureKind.LENGTHS if one.delimits is Delimits.LENGTHS else FeatureKind.OFFSETS,
            shape=(f"{BATCH} + 1" if bounds else BATCH, *delimiter.shape[1:]),
            tables=(),
            cardinalities=(),
        )
        for name in one.values:
            feature = signature.feature(name)
            looked_up = feature.tables or feature.kind is FeatureKind.JAGGED
            changed = replace(
                feature,
                kind=FeatureKind.JAGGED if looked_up else feature.kind,
                shape=(f"ids of {one.delimiter}", *feature.shape[1:]),
                delimiter=one.delimiter,
            )
            signature = replace(
                signature,
                features=tuple(changed if f.name == name else f for f in signature.features),
            )
    return signature
