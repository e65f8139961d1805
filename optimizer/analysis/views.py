"""Where the elements of a value come from, through whatever views lie in between.

Every element of a computed value is given a number, and the model's own views are run on the
numbers: transposes, reshapes, splits, selections and joins all come out as positions, without a
pattern for each. They are run at two numbers of rows; what holds at both is taken to hold at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import moves
from ..ir.pattern import size_at
from ..ir.program import Program
from ..ir.traits import Move

_aten = torch.ops.aten
#: Two numbers of rows that no width is likely to be.
BATCHES = (2, 3)
#: Operators that give elements of their inputs, unchanged.
MOVES = Move.VIEW | Move.PART | Move.EXPAND | Move.SPLIT | Move.ITEM | Move.JOIN | Move.PICK
_LARGEST = 1 << 22
_MAX_RANK = 5


@dataclass(frozen=True)
class Source:
    """What a value is a view of.

    Attributes:
        base: The value that was computed.
        sizes: The base's shape at each of `BATCHES`.
        numbers: In the view's shape, which element of the flat base each element is, at each.
    """

    base: fx.Node
    sizes: tuple[tuple[int, ...], ...]
    numbers: tuple[Tensor, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the view has as many elements as the base."""
        return all(n.numel() == math.prod(s) for n, s in zip(self.numbers, self.sizes, strict=True))

    @property
    def order(self) -> tuple[int, ...] | None:
        """How to permute the base so that a reshape gives the view; None if that isn't enough."""
        return arrangement(self.numbers, self.sizes)

    def map(self, change: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
        """The numbers at each batch, changed; the second argument is the batch."""
        return tuple(change(n, b) for n, b in zip(self.numbers, BATCHES, strict=True))


class ViewTracer:
    """Traces the values of one program as it stands; make a new one after a rewrite."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._found: dict[fx.Node, tuple[fx.Node, tuple[Any, ...]] | None] = {}

    def source(self, node: Any) -> Source | None:
        """What ``node`` is a view of, itself if it is computed; None if its sizes aren't known."""
        found = self._traced(node) if isinstance(node, fx.Node) else None
        if found is None or not all(isinstance(value, Tensor) for value in found[1]):
            return None
        base, numbers = found
        sizes = tuple(_shape(base.meta["val"], batch) for batch in BATCHES)
        return Source(base, sizes, numbers)

    def ends(self, node: fx.Node) -> list[fx.Node]:
        """The last views of a value, which something computes with; itself if it is read so."""
        ends, seen = [], [node]
        for view in seen:
            later = [user for user in view.users if self._is_view(user, node)]
            seen += [user for user in later if user not in seen]
            if len(later) < len(view.users) and isinstance(view.meta.get("val"), Tensor):
                ends.append(view)
        return ends

    def within(self, node: fx.Node, ancestor: fx.Node) -> Source | None:
        """A value as a view of one of the views it is made of; None if it isn't."""
        source, other = self.source(node), self.source(ancestor)
        if source is None or other is None or source.base is not other.base:
            return None
        numbers = []
        for whole, own, size in zip(other.numbers, source.numbers, other.sizes, strict=True):
            inverse = torch.full((math.prod(size),), -1)
            inverse[whole.flatten()] = torch.arange(whole.numel())
            numbers.append(inverse[own])
        if any(bool((n < 0).any()) for n in numbers):
            return None
        sizes = tuple(tuple(whole.shape) for whole in other.numbers)
        return Source(ancestor, sizes, tuple(numbers))

    def behind(self, node: Any) -> list[fx.Node]:
        """The views from a value, which counts, back to what it is a view of."""
        found = self._traced(node) if isinstance(node, fx.Node) else None
        chain: list[fx.Node] = []
        while found is not None and node is not found[0]:
            chain.append(node)
            node = node.all_input_nodes[0]
        return chain

    def transposes(self, node: Any) -> int:
        """How many transposes there are among them."""
        return sum(moves(view, Move.TRANSPOSE) for view in self.behind(node))

    def _is_view(self, node: fx.Node, base: fx.Node) -> bool:
        found = self._traced(node)
        return found is not None and found[0] is base

    def _traced(self, node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
        if node not in self._found:
            self._found[node] = self._through(node) or _leaf(node)
        return self._found[node]

    def _through(self, node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
        """The node's source through its own operator; None if it computes or joins several."""
        if not moves(node, MOVES):
            return None
        first: Any = node.args[0]
        inputs = list(first) if isinstance(first, (list, tuple)) else [first]
        found = [self._traced(i) if isinstance(i, fx.Node) else None for i in inputs]
        bases = {each[0] for each in found if each is not None}
        if len(bases) != 1 or None in found:
            return None
        known: dict[Any, Any] = dict(zip(inputs, found, strict=True))
        values = tuple(
            self._run(node, {i: f[1][at] for i, f in known.items()}, batch)
            for at, batch in enumerate(BATCHES)
        )
        return None if any(value is None for value in values) else (bases.pop(), values)

    def _run(self, node: fx.Node, known: dict[Any, Any], batch: int) -> Any:
        """The node's own operator on numbers; None if it can't be run on them."""

        def put(source: fx.Node) -> Any:
            if source in known:
                return known[source]
            value = source.meta.get("val")
            if isinstance(value, (int, torch.SymInt)):
                return int(size_at(value, batch))
            return self._program.tensor(str(source.target)) if source.op == "get_attr" else None

        args: Any = fx.node.map_arg(node.args, put)
        kwargs: Any = fx.node.map_arg(node.kwargs, put)
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, IndexError, TypeError):
            return None


def _leaf(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or len(_symbols(value)) > 1:
        return None
    shapes = [_shape(value, batch) for batch in BATCHES]
    if max(math.prod(shape) for shape in shapes) > _LARGEST:
        return None
    return node, tuple(torch.arange(math.prod(shape)).view(shape) for shape in shapes)


def _symbols(value: Tensor) -> set[Any]:
    sizes: list[Any] = [size for size in value.shape if not isinstance(size, int)]
    return set().union(*(size.node.expr.free_symbols for size in sizes))


def _shape(value: Tensor, batch: int) -> tuple[int, ...]:
    return tuple(int(size_at(size, batch)) for size in value.shape)


def arrangement(
    numbers: Sequence[Tensor], sizes: Sequence[Sequence[int]]
) -> tuple[int, ...] | None:
    """The permutation of dimensions of ``sizes`` that, reshaped, has these flat positions.

    Args:
        numbers: Positions in a value of these sizes, at each of `BATCHES`.
        sizes: The value's sizes at each.
    """
    if len(sizes[0]) > _MAX_RANK or any(
        n.numel() != math.prod(s) for n, s in zip(numbers, sizes, strict=True)
    ):
        return None
    flat = [torch.arange(math.prod(size)).view(tuple(size)) for size in sizes]
    for order in permutations(range(len(sizes[0]))):
        if all(
            torch.equal(whole.permute(order).flatten(), found.flatten())
            for whole, found in zip(flat, numbers, strict=True)
        ):
            return order
    return None
