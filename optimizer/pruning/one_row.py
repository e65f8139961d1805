"""Every value of a program for a single row: concrete shapes, and where views take elements from.

At one row the batch is a dimension of size 1, so a value's elements are what belongs to one row,
also where a model merges the batch with its heads or tokens.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..data.synthetic import synthesize
from ..ir.operators import moves
from ..ir.pattern import is_op
from ..ir.program import Program
from ..ir.traits import Move

_aten = torch.ops.aten
_MOVES = Move.VIEW | Move.PART | Move.EXPAND | Move.ITEM | Move.JOIN | Move.PICK


@dataclass(frozen=True)
class Moves:
    """A value whose every element is an element of other values.

    Attributes:
        sources: The other values.
        index: ``[*shape]``, positions in the flattened sources one after another.
    """

    sources: tuple[fx.Node, ...]
    index: Tensor


class OneRow(fx.Interpreter):
    """A program run on one made-up row, every value kept.

    Attributes:
        values: By node; lists for splits.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.garbage_collect_values = False
        self.values: dict[fx.Node, Any] = {}
        self._moves: dict[fx.Node, Moves | None] = {}
        rows = synthesize(program.signature, 1).features
        with torch.no_grad():
            self.run(*program.ordered(rows))

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and keeps its value."""
        self.values[n] = value = super().run_node(n)
        return value

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The sizes of a node's value for one row; empty if it is no tensor."""
        value = self.values[node]
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def argument(self, value: Any) -> Any:
        """An argument with nodes replaced by their values."""
        return fx.map_arg(value, self.values.__getitem__)

    def moves(self, node: fx.Node) -> Moves | None:
        """Where each element of a view, selection or join comes from; None for what computes."""
        if node not in self._moves:
            self._moves[node] = self._traced(node)
        return self._moves[node]

    def _traced(self, node: fx.Node) -> Moves | None:
        if not moves(node, _MOVES):
            return None
        if node.target is operator.getitem:
            split = node.args[0]
            if not moves(split, Move.SPLIT):
                return None
            assert isinstance(split, fx.Node)
            parts = self._numbered(split)
            return parts and Moves(parts[0], parts[1][node.args[1]])
        if moves(node, Move.PICK) and not self._constant_index(node):
            return None
        found = self._numbered(node)
        return found and Moves(*found)

    def _constant_index(self, node: fx.Node) -> bool:
        """Whether the positions that are picked are lists in parameters, the same every row."""
        given = node.args[1] if is_op(node, _aten.index.Tensor) else [node.args[2]]
        assert isinstance(given, (list, tuple))
        places = [place for place, index in enumerate(given) if index is not None]
        side_by_side = places == list(range(places[0], places[0] + len(places)))
        return side_by_side and all(
            isinstance(i, fx.Node)
            and i.op == "get_attr"
            and self.values[i].dtype in (torch.int32, torch.int64)
            and self.values[i].dim() == 1
            for i in given[places[0] :][: len(places)]
        )

    def _numbered(self, node: fx.Node) -> tuple[tuple[fx.Node, ...], Any] | None:
        """What the operator gives when each element of what it moves is its own number."""
        joined = moves(node, Move.JOIN)
        given = node.args[0] if joined else [node.args[0]]
        assert isinstance(given, (list, tuple))
        sources = tuple(item for item in given if isinstance(item, fx.Node))
        if len(sources) < len(given) or not all(self.shape(s) for s in sources):
            return None
        numbers, start = [], 0
        for source in sources:
            count = self.values[source].numel()
            numbers.append(torch.arange(start, start + count).view(self.shape(source)))
            start += count
        rest = self.argument(node.args[1:])
        first = numbers if joined else numbers[0]
        assert callable(node.target)
        return sources, node.target(first, *rest, **self.argument(node.kwargs))


def picked_dim(node: fx.Node) -> int:
    """The dimension along which an index picks: the first one picked by, of the result too."""
    if is_op(node, _aten.index.Tensor):
        given = node.args[1]
        assert isinstance(given, (list, tuple))
        return next(place for place, index in enumerate(given) if index is not None)
    return int(node.args[1]) % node.meta["val"].dim()  # type: ignore[arg-type, no-any-return]
