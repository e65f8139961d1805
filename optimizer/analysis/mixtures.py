"""Which values are mixtures: experts' outputs added up, each weighted by its column of a gate.

Public code writes a mixture in many ways: a stack times an unsqueezed gate, summed; a product of
two matrices per row; an einsum; a loop. Every element of a gate and of an expert is given a number
that says where it comes from, and the model's own views are run on those numbers, so that all of
them come out alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import moves
from ..ir.pattern import argument, dtype_of, is_op, shape_of
from ..ir.program import Program
from ..ir.traits import Move

_aten = torch.ops.aten
_VIEWS = Move.VIEW | Move.SELECT
_MOVES = _VIEWS | Move.SLICE | Move.SPLIT | Move.ITEM | Move.JOIN | Move.EXPAND | Move.REPEAT
#: An element is numbered by its batch, its value and its column. Two batches show whether a view
#: mixes them; what is larger isn't traced.
_BATCH, _WIDTH, _VALUES, _LARGEST = 2, 1 << 20, 1 << 20, 1 << 22


@dataclass(frozen=True)
class Expert:
    """Some neighbouring columns of a value ``[B, W]``."""

    value: fx.Node
    start: int


@dataclass(frozen=True)
class Mixture:
    """``Σ_e gate[:, e] · expert_e``.

    Attributes:
        root: The node that adds up.
        gate: The weights ``[B, E]``, a column per expert.
        experts: What is added up.
        width: Columns of an expert, and of the mixture.
        outputs: The nodes ``[B, width]`` that only view the root, or the root itself.
        region: The nodes that make the root of gate and experts, less those that only move.
    """

    root: fx.Node
    gate: fx.Node
    experts: tuple[Expert, ...]
    width: int
    outputs: tuple[fx.Node, ...]
    region: frozenset[fx.Node]

    @property
    def is_shared(self) -> bool:
        """Whether something else needs the weighted experts before they are added up."""
        inside = self.region | {self.root}
        return any(user not in inside for node in self.region for user in node.users)

    @property
    def owns_gate(self) -> bool:
        """Whether nothing else needs the gate."""
        inside = self.region | {self.root}
        pending = list(self.gate.users)
        while pending:
            user = pending.pop()
            if user in inside:
                continue
            if not moves(user, _MOVES):
                return False
            pending += user.users
        return True


def find_mixtures(program: Program) -> list[Mixture]:
    """The mixtures of a program, in graph order."""
    tracer = _Tracer()
    found = (tracer.mixture(node) for node in program.graph.nodes)
    return [mixture for mixture in found if mixture is not None]


@dataclass(frozen=True)
class _Products:
    """Products of two numbered elements each, and the nodes that make them."""

    left: Tensor
    right: Tensor
    region: frozenset[fx.Node]

    def moved(self, move: Callable[[Tensor], Tensor]) -> _Products:
        return _Products(move(self.left), move(self.right), self.region)


class _Tracer:
    def __init__(self) -> None:
        self._values: list[fx.Node] = []
        self._known: dict[fx.Node, Any] = {}

    def mixture(self, node: fx.Node) -> Mixture | None:
        """The mixture that ``node`` adds up, or None."""
        summed = self._summed(node)
        if summed is None or summed.left.numel() > _LARGEST:
            return None
        flat = summed.moved(lambda side: side.reshape(_BATCH, -1, side.shape[-1]))
        for gate, experts in ((flat.left, flat.right), (flat.right, flat.left)):
            read = self._read(gate, experts)
            if read is not None:
                width = gate.shape[1]
                outputs = _viewed(node, width) or (node,)
                return Mixture(node, *read, width, outputs, summed.region)
        return None

    def _read(self, gate: Tensor, experts: Tensor) -> tuple[fx.Node, tuple[Expert, ...]] | None:
        """Gate and experts, from numbers ``[2, width, E]`` of what is multiplied."""
        size = _VALUES * _WIDTH
        step = torch.arange(_BATCH)[:, None, None] * size
        if not all(torch.equal(side // size * size, step + 0 * side) for side in (gate, experts)):
            return None
        weights, columns = gate[0], experts[0]
        if not torch.equal(gate[1] - size, weights) or not torch.equal(experts[1] - size, columns):
            return None
        values = self._values[int(weights[0, 0]) // _WIDTH], weights[0] % _WIDTH
        number = int(weights[0, 0]) // _WIDTH * _WIDTH
        order = torch.argsort(values[1])
        whole = number + torch.arange(int(shape_of(values[0])[1]))
        if weights.shape[1] < 2 or not torch.equal(weights, weights[:1] + 0 * weights):
            return None
        if not torch.equal(weights[0][order], whole):
            return None
        if not torch.equal(columns, columns[:1] + torch.arange(len(columns))[:, None]):
            return None
        firsts = [int(first) for first in columns[0][order]]
        if len(set(firsts)) < 2:
            return None  # one value, broadcast over the gate's columns
        return values[0], tuple(
            Expert(self._values[first // _WIDTH], first % _WIDTH) for first in firsts
        )

    def _summed(self, node: fx.Node) -> _Products | None:
        """What a node adds up, its terms along a last dimension of their own."""
        if is_op(node, _aten.sum.dim_IntList):
            dims = argument(node, 1, "dim")
            products = self._products(node.args[0])
            if products is None or len(dims) != 1 or "dtype" in node.kwargs:
                return None
            return products.moved(lambda side: side.movedim(dims[0], -1))
        if is_op(node, _aten.bmm.default, _aten.matmul.default):
            return self._per_row(node)
        if is_op(node, _aten.add.Tensor) and not any(
            is_op(user, _aten.add.Tensor) for user in node.users
        ):
            return self._added(node)
        return None

    def _per_row(self, node: fx.Node) -> _Products | None:
        """A product of two matrices per row, one of which has one row or one column."""
        left, right = (self._numbers(side) for side in node.args[:2])
        if left is None or right is None or left.dim() != 3 or right.dim() != 3:
            return None
        if 1 not in (left.shape[1], right.shape[2]):
            return None
        shape = (_BATCH, left.shape[1], right.shape[2], left.shape[2])
        if torch.Size(shape).numel() > _LARGEST:
            return None
        wide = left[:, :, None, :].expand(shape), right.transpose(1, 2)[:, None].expand(shape)
        return _Products(*wide, frozenset())

    def _added(self, node: fx.Node) -> _Products | None:
        """A chain of additions of products, such as a loop over the experts makes."""
        terms, chain = _terms(node)
        products = [self._products(term) for term in terms]
        found = [product for product in products if product is not None]
        if len(found) < max(2, len(products)) or len({p.left.shape for p in found}) > 1:
            return None
        region = frozenset(chain - {node}).union(*(p.region for p in found))
        left = torch.stack([product.left for product in found], -1)
        right = torch.stack([product.right for product in found], -1)
        return _Products(left, right, region)

    def _products(self, node: Any) -> _Products | None:
        """Elementwise products, seen through views, stacks and concatenations of them."""
        if is_op(node, _aten.mul.Tensor):
            sides = [self._numbers(side) for side in node.args]
            if any(side is None for side in sides):
                return None
            # A gate's columns are fewer than those of the experts.
            gate, expert = sorted(sides, key=lambda side: len(side.unique()))
            return _Products(gate + 0 * expert, expert + 0 * gate, frozenset({node}))
        if not moves(node, _MOVES):
            return None
        parts = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
        found = {part: self._products(part) for part in parts if isinstance(part, fx.Node)}
        products = [product for product in found.values() if product is not None]
        if len(products) < len(found) or not products:
            return None
        left = _run(node, lambda n: found[n].left if found.get(n) else None)  # type: ignore[union-attr]
        right = _run(node, lambda n: found[n].right if found.get(n) else None)  # type: ignore[union-attr]
        if not isinstance(left, Tensor) or not isinstance(right, Tensor):
            return None
        return _Products(left, right, frozenset({node}).union(*(p.region for p in products)))

    def _numbers(self, node: Any) -> Any:
        """Where each element of a value comes from; None where it isn't known."""
        if not isinstance(node, fx.Node):
            return None
        if node not in self._known:
            traced = moves(node, _MOVES) and _elements(node) <= _LARGEST
            self._known[node] = _run(node, self._numbers) if traced else self._leaf(node)
        return self._known[node]

    def _leaf(self, node: fx.Node) -> Tensor | None:
        """New numbers for a value ``[B, W]`` that something computes."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() != 2 or node.op == "get_attr":
            return None
        batch, width = shape_of(node)
        if isinstance(batch, int) or not isinstance(width, int):
            return None
        if not dtype_of(node).is_floating_point or width >= _WIDTH or len(self._values) >= _VALUES:
            return None
        self._values.append(node)
        first = (len(self._values) - 1) * _WIDTH
        return torch.arange(_BATCH)[:, None] * _VALUES * _WIDTH + first + torch.arange(width)


def _elements(node: fx.Node) -> int:
    """How many numbers a value of two rows has; a list of values has those of its source."""
    value = node.meta["val"]
    sizes = value.shape if isinstance(value, Tensor) else ()
    return _BATCH * math.prod(size for size in sizes if isinstance(size, int))


def _terms(node: fx.Node) -> tuple[list[fx.Node], set[fx.Node]]:
    """The terms of a chain of additions, in order, and the additions; a zero is no term."""
    terms: list[fx.Node] = []
    chain: set[fx.Node] = set()
    pending: list[Any] = [node]
    while pending:
        term = pending.pop()
        if is_op(term, _aten.add.Tensor) and term.kwargs.get("alpha", 1) == 1:
            chain.add(term)
            pending += reversed(term.args)
        elif isinstance(term, fx.Node):
            terms.append(term)
        elif term != 0:
            return [], chain
    return terms, chain


def _run(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """The node's own operator on numbers; None if it can't be run on them."""
    known = True

    def put(source: fx.Node) -> Any:
        nonlocal known
        is_batch = is_op(source, _aten.sym_size.int) and source.args[1] == 0
        found = _BATCH if is_batch else value(source)
        known = known and found is not None
        return found

    args: Any = fx.node.map_arg(node.args, put)
    if not known:
        return None
    try:
        return node.target(*args, **node.kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError, TypeError):
        return None


def _viewed(node: fx.Node, width: int) -> tuple[fx.Node, ...]:
    """The nodes ``[B, width]`` that users see of a node of as many elements; none if not all do."""
    if len(shape_of(node)) == 2:
        return (node,)
    ends = list(_ends(node, width))
    return tuple(end for end in ends if end is not None) if None not in ends else ()


def _ends(node: fx.Node, width: int) -> Iterator[fx.Node | None]:
    for user in node.users:
        shape = shape_of(user) if moves(user, _VIEWS) else ()
        if len(shape) == 2 and shape[1] == width:
            yield user
        elif len(shape) == 3 and 1 in shape[1:] and width in shape[1:]:
            yield from _ends(user, width)
        else:
            yield None
