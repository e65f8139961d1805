"""What goes from a program: all chosen units together, as `channels.py` finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx

from ..ir.pattern import is_op
from .branches import REPLACED_IN
from .channels import Group
from .dependence import Scene

_aten = torch.ops.aten
K = TypeVar("K")


@dataclass(frozen=True)
class Removal:
    """What goes, all chosen units together.

    Attributes:
        values: By a node's name, ``[*shape]`` at one row: the elements that go.
        vectors: By a parameter's name and the name of the node that reads it, ``[n]``.
        small: By a parameter's name, ``[*shape]``.
        sides: By a weight's name and dimension, ``[size]``.
    """

    values: Mapping[str, Tensor]
    vectors: Mapping[tuple[str, str], Tensor]
    small: Mapping[str, Tensor]
    sides: Mapping[tuple[str, int], Tensor]

    @classmethod
    def of(cls, chosen: Sequence[tuple[Group, Sequence[int]]]) -> Removal:
        """Some units of some groups."""
        values: dict[str, Tensor] = {}
        vectors: dict[tuple[str, str], Tensor] = {}
        small: dict[str, Tensor] = {}
        sides: dict[tuple[str, int], Tensor] = {}
        for group, units in chosen:
            picked = torch.tensor(units, dtype=torch.int64)
            for key, mask in group.masks.items():
                gone = mask[picked].any(0)
                if isinstance(key, fx.Node):
                    values[key.name] = gone | values.get(key.name, gone)
                elif isinstance(key, tuple):
                    place = (key[0], key[1].name)
                    vectors[place] = gone | vectors.get(place, gone)
                else:
                    small[key] = gone | small.get(key, gone)
            for side, mask in group.sides.items():
                gone = mask[picked].any(0)
                sides[side] = gone | sides.get(side, gone)
        return cls(values, vectors, small, sides)

    def __or__(self, other: Removal) -> Removal:
        return Removal(
            _merged(self.values, other.values),
            _merged(self.vectors, other.vectors),
            _merged(self.small, other.small),
            _merged(self.sides, other.sides),
        )

    def __bool__(self) -> bool:
        return any(bool(mask.any()) for mask in (*self.values.values(), *self.sides.values()))


def _merged(left: Mapping[K, Tensor], right: Mapping[K, Tensor]) -> dict[K, Tensor]:
    return {**left, **{key: mask | left.get(key, mask) for key, mask in right.items()}}


def emptied(scene: Scene, removal: Removal) -> fx.Node | None:
    """A node that would be left with nothing to read, though its own value stays; or None."""
    for node in scene.program.graph.nodes:
        out = removal.values.get(node.name)
        if node.op != "call_function" or (out is not None and bool(out.all())):
            continue
        inputs = [removal.values.get(n.name) for n in node.all_input_nodes if scene.row.shape(n)]
        gone = [mask is not None and bool(mask.all()) for mask in inputs]
        if (all(gone) if is_op(node, *REPLACED_IN) else any(gone)) and gone:
            return node  # type: ignore[no-any-return]
    return None
