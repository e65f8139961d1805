"""Lineage: what of a program depends on the request alone, on the candidate alone, or on both."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import torch
from torch import fx

from ..ir.ops import REQUEST_BROADCAST
from ..ir.program import Program
from ..ir.signature import Signature


class Lineage(Enum):
    """A lattice: constant below user and item, both above them."""

    CONSTANT = 0
    USER = 1
    ITEM = 2
    BOTH = 3

    def __or__(self, other: Lineage) -> Lineage:
        return Lineage(self.value | other.value)


def shared_features(signature: Signature) -> tuple[str, ...]:
    """The features a program takes one row of, whatever the number of candidates."""
    return tuple(f.name for f in signature if f.shape and f.shape[0] == 1)


def lineage(program: Program, shared: Collection[str]) -> dict[fx.Node, Lineage]:
    """What each node depends on, given the features that a request shares.

    A number of rows is constant: how many candidates there are is no property of any of them.
    """
    found: dict[fx.Node, Lineage] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            found[node] = Lineage.USER if str(node.target) in shared else Lineage.ITEM
            continue
        joined = Lineage.CONSTANT
        for source in _sources(node):
            joined = joined | found[source]
        found[node] = joined
    return found


def _sources(node: fx.Node) -> list[fx.Node]:
    """The nodes a value depends on beyond their number of rows."""
    if node.target is torch.ops.aten.sym_size.int:
        return []
    if node.target is REQUEST_BROADCAST.op:
        return node.all_input_nodes[:1]
    return node.all_input_nodes
