"""How an artifact takes requests: one user, many candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..data.arrays import Array, array_of
from ..errors import DataError
from ..ir.signature import BATCH, Signature

#: The names of the entry for requests, and of that which computes candidates ahead.
REQUEST, ITEMS = "request", "items"
#: A tensor or a numpy array.
Value = TypeVar("Value", bound=Any)


@dataclass(frozen=True)
class Entry:
    """How an artifact takes requests.

    Attributes:
        shared: The features of which a request has one row.
        ahead: What requests take of the candidates when that is computed ahead; empty where they
            take the candidates' own features.
    """

    shared: tuple[str, ...]
    ahead: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back."""
        return {"shared": list(self.shared), "ahead": list(self.ahead)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` wrote."""
        return cls(tuple(data["shared"]), tuple(data["ahead"]))

    def made_ahead(
        self, items: Callable[[Mapping[str, Any]], Mapping[str, Any]], features: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What is computed ahead, and the features that requests need as they are."""
        made = {**features, **items(features)}
        return {name: made[name] for name in self.ahead}

    def signature(self, signature: Signature) -> Signature:
        """The signature of requests, from that of flat batches."""
        for name in self.shared:
            shape = signature.feature(name).shape
            signature = signature.with_feature(name, shape=(1, *shape[1:]))
        return signature


def differing(values: Array, others: Array) -> Array:
    """Which rows differ, ``[n]``; a missing value is like another."""
    differs: Array = values != others
    if values.dtype.kind not in "biu":
        differs &= ~(np.isnan(values) & np.isnan(others))
    width = math.prod(values.shape[1:])
    return np.asarray(differs.reshape(len(values), width).any(axis=1))


def one_user(features: Mapping[str, Value], shared: Collection[str]) -> dict[str, Value]:
    """Rows as one request: the first row of the shared features, all of the others'."""
    return {name: value[:1] if name in shared else value for name, value in features.items()}


def without_copies(
    signature: Signature, features: Mapping[str, Value], shared: Collection[str]
) -> dict[str, Value]:
    """A request's features with one row of what is shared, which may be given once a candidate.

    Raises:
        DataError: No candidate, or a shared feature that varies: which, and in which row first.
    """
    found = dict(features)
    candidates = candidates_in(signature, features, shared)
    if candidates == 0:
        raise DataError("a request without candidates: give at least one row of their features.")
    for name in signature.names:
        if name not in shared or name not in features:
            continue
        value = array_of(name, features[name])
        if value.ndim == 0 or len(value) != candidates:
            continue
        differs = differing(value, value[:1])
        if differs.any():
            raise DataError(
                f"feature {name!r} is shared by the candidates of a request, but row "
                f"{int(differs.argmax())} differs from row 0. Score each user's "
                "candidates as a request of their own, or all of them as a flat batch."
            )
        found[name] = features[name][:1]
    return found


def candidates_in(
    signature: Signature, features: Mapping[str, Any], shared: Collection[str]
) -> int:
    """How many candidates a request has."""
    (first, *_) = (f for f in signature if f.name not in shared and f.shape[:1] == (BATCH,))
    given = features.get(first.name)
    return len(given) if given is not None and given.shape else 0
