"""torchrec's jagged and keyed tensors as nested plain tensors; torchrec itself is never imported.

Torch is, only where torchrec was. A ``KeyedJaggedTensor`` is taken apart into
``{key: {values, lengths}}``, key by key, so that each feature has ids of its own; a
``JaggedTensor`` into ``{values, lengths}``; a ``KeyedTensor`` into ``{key: rows}``. Plain dicts of
that form are taken in their place, so that an artifact can be called without torchrec.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SignatureError

if TYPE_CHECKING:
    from torch import Tensor

_MODULE = "torchrec.sparse.jagged_tensor"
_KEYED_JAGGED = f"{_MODULE}:KeyedJaggedTensor"
_JAGGED = f"{_MODULE}:JaggedTensor"
_KEYED = f"{_MODULE}:KeyedTensor"
KINDS = (_KEYED_JAGGED, _JAGGED, _KEYED)


def taken_apart(value: Any) -> tuple[str, tuple[str, ...], list[Any]] | None:
    """Kind, keys and items of one of torchrec's tensors; None for anything else.

    Raises:
        SignatureError: Its features have different numbers of rows.
    """
    classes = sys.modules.get(_MODULE)
    if classes is None:
        return None
    if isinstance(value, classes.KeyedJaggedTensor):
        if value.variable_stride_per_key():
            raise SignatureError(
                "a KeyedJaggedTensor has a different number of rows per key (variable stride, "
                "inverse indices). Give every key the whole batch's rows."
            )
        return _KEYED_JAGGED, tuple(value.keys()), _by_key(value)
    if isinstance(value, classes.JaggedTensor):
        parts = _parts(value.values(), value.lengths(), value.weights_or_none())
        return _JAGGED, tuple(parts), list(parts.values())
    if isinstance(value, classes.KeyedTensor):
        rows = value.to_dict()
        return _KEYED, tuple(rows), list(rows.values())
    return None


def _by_key(value: Any) -> list[dict[str, Tensor]]:
    keys, lengths = value.keys(), value.lengths()
    if not keys:
        return []
    lengths = lengths.reshape(len(keys), -1)
    sizes = [int(size) for size in lengths.sum(1)]
    # What lies behind the last id is no key's: a loader may reuse a longer buffer.
    values = value.values()[: sum(sizes)].split(sizes)
    weights: Sequence[Tensor | None] = [None] * len(keys)
    if value.weights_or_none() is not None:
        weights = value.weights()[: sum(sizes)].split(sizes)
    return [_parts(*parts) for parts in zip(values, lengths, weights, strict=True)]


def _parts(values: Tensor, lengths: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
    parts = {"values": values, "lengths": lengths}
    return parts if weights is None else {**parts, "weights": weights}


def put_together(kind: str, keys: Sequence[Any], items: Sequence[Any]) -> Any:
    """The tensor again; None where torchrec isn't loaded, or where numpy arrays are asked for."""
    classes: Any = sys.modules.get(_MODULE)
    flat = [
        part for item in items for part in (item.values() if isinstance(item, Mapping) else [item])
    ]
    if classes is None:
        return None
    from torch import Tensor

    if not all(isinstance(part, Tensor) for part in flat):
        return None
    if kind == _KEYED:
        return classes.KeyedTensor.from_tensor_list(list(keys), list(items))
    if kind == _JAGGED:
        return jagged(dict(zip(keys, items, strict=True)))
    return keyed_jagged([(str(key), jagged(item)) for key, item in zip(keys, items, strict=True)])


def jagged(parts: Mapping[str, Tensor]) -> Any:
    """A ``JaggedTensor`` of values, lengths and maybe weights."""
    import torch

    classes: Any = sys.modules[_MODULE]
    lengths = parts["lengths"]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
    return classes.JaggedTensor(
        parts["values"], lengths=lengths, offsets=offsets, weights=parts.get("weights")
    )


def keyed_jagged(features: Sequence[tuple[str, Any]]) -> Any:
    """A ``KeyedJaggedTensor`` of a ``JaggedTensor`` per key.

    It remembers its parts and their sizes: torchrec would read them off the lengths' values, which
    no graph can.
    """
    import torch

    classes: Any = sys.modules[_MODULE]
    parts = [part for _, part in features]
    weighted = [part.weights() for part in parts if part.weights_or_none() is not None]
    return classes.KeyedJaggedTensor(
        keys=[key for key, _ in features],
        values=torch.cat([part.values() for part in parts]),
        weights=torch.cat(weighted) if weighted else None,
        lengths=torch.cat([part.lengths() for part in parts]),
        stride=parts[0].lengths().shape[0],
        length_per_key=[part.values().shape[0] for part in parts],
        jt_dict=dict(features),
    )
