"""Inputs whose rows hold different numbers of ids, during capture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..optimizer.data.delimiters import Delimits, Ragged
from ..optimizer.ir import FeatureKind, Signature
from ..optimizer.ir.signature import BATCH
from ..optimizer.ir.structure import Branch, Leaf, Structure, Template

#: What an input of a jagged feature consists of, where it has names.
_PARTS = {"values", "lengths", "weights"}


def named_ragged(structure: Structure, leaves: Mapping[str, Tensor]) -> tuple[Ragged, ...]:
    """The jagged features that are called so: ``{"values": …, "lengths": …}``, and torchrec's.

    Their names say it even where the example has one id in every row, so that nothing can be told
    from the sizes.
    """
    return tuple(
        Ragged(parts["lengths"], Delimits.LENGTHS, tuple(names))
        for parts in _jagged_branches(structure.template)
        if _fits(leaves, parts, names := [n for part, n in parts.items() if part != "lengths"])
    )


def _jagged_branches(template: Template) -> Iterator[dict[str, str]]:
    """The names of the leaves of every branch of values and lengths, by what they are."""
    if not isinstance(template, Branch):
        return
    if {"values", "lengths"} <= set(template.keys) <= _PARTS:
        pairs = list(zip(template.keys, template.items, strict=True))
        if all(isinstance(item, Leaf) for _, item in pairs):
            yield {str(key): item.name for key, item in pairs if isinstance(item, Leaf)}
        return
    for item in template.items:
        yield from _jagged_branches(item)


def _fits(leaves: Mapping[str, Tensor], parts: Mapping[str, str], values: Sequence[str]) -> bool:
    """Whether the lengths add up to the number of values; padded lists have lengths as well."""
    lengths = leaves[parts["lengths"]]
    if lengths.dim() != 1 or lengths.is_floating_point() or leaves[parts["values"]].dim() != 1:
        return False
    return all(len(leaves[name]) == int(lengths.sum()) for name in values)


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
        if all(
            signature.feature(n).kind is FeatureKind.UNUSED for n in (one.delimiter, *one.values)
        ):
            continue
        bounds = one.delimits is Delimits.BOUNDS
        signature = signature.with_feature(
            one.delimiter,
            kind=FeatureKind.LENGTHS if one.delimits is Delimits.LENGTHS else FeatureKind.OFFSETS,
            shape=(f"{BATCH} + 1" if bounds else BATCH, *delimiter.shape[1:]),
            tables=(),
            cardinalities=(),
            default=None,
        )
        for name in one.values:
            feature = signature.feature(name)
            looked_up = feature.tables or feature.kind is FeatureKind.JAGGED
            changed = replace(
                feature,
                kind=FeatureKind.JAGGED if looked_up else feature.kind,
                shape=(f"ids of {one.delimiter}", *feature.shape[1:]),
                delimiter=one.delimiter,
                default=None,
            )
            signature = replace(
                signature,
                features=tuple(changed if f.name == name else f for f in signature.features),
            )
    return signature
