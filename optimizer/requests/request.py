"""Requests: one user, many candidates. The user's features are given once, not once a candidate.

A *request program* is the program of a model whose shared features have one row. It still scores
flat rows, each with a user of its own: what is shared is broadcast, and a broadcast of as many rows
as there are is nothing. So one program is planned and judged, and built twice: for requests, and
for flat batches.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.arrays import array_of
from ..data.delimiters import ragged_of
from ..data.rows import Rows
from ..errors import DataError, SignatureError
from ..ir.ops import REQUEST_BROADCAST, REQUEST_MATMUL
from ..ir.program import Program
from ..ir.rewrite import Rewriter, sweep
from ..ir.signature import BATCH, Side, Signature
from ..ir.verifier import verify
from .entry import Entry, differing

_aten = torch.ops.aten


@dataclass(frozen=True)
class Request:
    """What the candidates of a request have in common.

    Attributes:
        shared: The features that are the same for all candidates of a request, by name;
            ``"user.age"`` is ``user_age``. When None, those whose side is the user or the context.
        precompute_items: Whether what depends on the candidate alone becomes a program of its own,
            to be run ahead; requests may then take its results in place of candidates' features.
    """

    shared: Sequence[str] | None = None
    precompute_items: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.shared, str):
            raise SignatureError(f"Request(shared=…) is a list of names, got {self.shared!r}.")
        if self.shared is not None:
            object.__setattr__(self, "shared", tuple(self.shared))

    def features(self, signature: Signature) -> tuple[str, ...]:
        """The names of the shared features, in the signature's order.

        Raises:
            SignatureError: An unknown name, a feature that can't be shared, none is shared, or all.
        """
        if self.shared is None:
            sides = (Side.USER, Side.CONTEXT)
            wanted = [f.name for f in signature if f.side in sides]
            if not wanted:
                raise SignatureError(
                    "no feature is known to be the user's or the context's; say which are: "
                    f"rankc.Request(shared=[…]), of {list(signature.names)}."
                )
        else:
            wanted = [_resolved(name, signature) for name in self.shared]
            if not wanted:
                raise SignatureError("Request(shared=[]) shares nothing; name features, or None.")
        found = tuple(name for name in signature.names if name in wanted)
        if len(found) == len(signature.names):
            raise SignatureError(
                f"all features are shared ({', '.join(found)}), so that the candidates of a "
                "request would not differ. Leave out those that describe the candidate."
            )
        _check_shareable(signature, found)
        return found


def _resolved(name: str, signature: Signature) -> str:
    plain = re.sub(r"\W+", "_", name).strip("_")
    for known in (name, plain):
        if known in signature.names:
            return known
    near = difflib.get_close_matches(plain, signature.names, n=3, cutoff=0.4)
    guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise SignatureError(
        f"Request: no feature is called {name!r}; there are {list(signature.names)}.{guess}"
    )


def _check_shareable(signature: Signature, shared: Collection[str]) -> None:
    for one in ragged_of(signature):
        for name in (one.delimiter, *one.values):
            if name in shared:
                raise SignatureError(
                    f"feature {name!r} can't be shared by a request: its rows hold different "
                    "numbers of ids. Pad them to one length, or leave it out of "
                    "Request(shared=…)."
                )
    for feature in signature:
        if feature.name in shared and feature.shape[:1] != (BATCH,):
            raise SignatureError(
                f"feature {feature.name!r} can't be shared by a request: it has no row per "
                f"candidate to begin with, but {list(feature.shape)}."
            )
    if not any(f.shape[:1] == (BATCH,) for f in signature if f.name not in shared):
        raise SignatureError(
            "no feature that isn't shared has a row per candidate, so the number of candidates "
            "can't be told."
        )


def as_request(program: Program, shared: Collection[str]) -> Program:
    """A copy of the program for one row of what is shared, if anything is; it is broadcast."""
    result = program.clone()
    if not shared:
        return result
    rw = Rewriter(result, "request")
    placeholders = result.graph.find_nodes(op="placeholder")
    rows = _counted(result, shared)
    for node in result.graph.find_nodes(op="call_function", target=_aten.view.default):
        node.target = _aten.reshape.default  # a broadcast has strides that no view takes
    with rw.before(placeholders[-1].next):
        for node in placeholders:
            if str(node.target) not in shared:
                continue
            value: Tensor = node.meta["val"]
            node.meta["val"] = value.new_empty((1, *value.shape[1:]), requires_grad=False)
            users = list(node.users)
            broadcast = rw.emit(REQUEST_BROADCAST.op, node, rows, like=node)
            for user in users:
                counted = user.target is _aten.sym_size.int and user.args[1] == 0
                user.replace_input_with(node, rows if counted else broadcast)
            rw.refresh([broadcast])
    result.signature = Entry(tuple(shared)).signature(result.signature)
    sweep(result)
    verify(result)
    return result


def as_flat(program: Program, shared: Collection[str]) -> Program:
    """A request program for flat rows again, as many of the shared features as of the others."""
    if not shared:
        return program
    result = program.clone()
    rw = Rewriter(result, "flat rows")
    batch = _counted(result, shared).meta["val"].shape[0]
    changed = []
    for node in result.graph.find_nodes(op="placeholder"):
        if str(node.target) in shared:
            value: Tensor = node.meta["val"]
            node.meta["val"] = value.new_empty((batch, *value.shape[1:]), requires_grad=False)
            changed += list(node.users)
    for node in result.graph.find_nodes(op="call_function", target=REQUEST_BROADCAST.op):
        changed += list(node.users)
        node.replace_all_uses_with(node.args[0])
    for node in result.graph.find_nodes(op="call_function", target=REQUEST_MATMUL.op):
        node.target = _aten.matmul.default
    rw.refresh(changed)
    for name in shared:
        shape = result.signature.feature(name).shape
        result.signature = result.signature.with_feature(name, shape=(BATCH, *shape[1:]))
    sweep(result)
    verify(result)
    return result


def _counted(program: Program, shared: Collection[str]) -> Any:
    """The input whose rows are the candidates."""
    pairs = zip(program.graph.find_nodes(op="placeholder"), program.signature, strict=True)
    return next(n for n, f in pairs if f.name not in shared and f.shape[:1] == (BATCH,))


def check_shared(rows: Rows, shared: Collection[str]) -> None:
    """Raises unless the shared features are the same in all rows of a group.

    Raises:
        DataError: Which feature differs, in which group and rows.
    """
    if rows.group is None:
        return
    order = np.argsort(rows.group, kind="stable")
    together = rows.group[order][1:] == rows.group[order][:-1]
    for name in shared:
        values = array_of(name, rows.features[name])[order]
        bad = together & differing(values[1:], values[:-1])
        if bad.any():
            place = int(bad.argmax())
            one, other = sorted((int(order[place]), int(order[place + 1])))
            raise DataError(
                f"feature {name!r} is called shared, but differs within request (group) "
                f"{rows.group[one]}: rows {rows.first + one} and {rows.first + other}. Leave it "
                "out of Request(shared=…), or give the request, not the user, as the group."
            )


def replicated(
    features: Mapping[str, Tensor], shared: Collection[str], candidates: int
) -> dict[str, Tensor]:
    """A request as flat rows: the shared features once a candidate."""
    return {
        name: value.expand(candidates, *value.shape[1:]).contiguous() if name in shared else value
        for name, value in features.items()
    }
