"""share-user-side: what depends on the request alone is computed once, and broadcast late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.batch_axis import (
    FIRST,
    Found,
    Lost,
    Place,
    batch_symbol,
    row_places,
    squeezed,
)
from ..optimizer.analysis.lineage import Lineage, lineage, shared_features
from ..optimizer.ir import Program, Rewriter
from ..optimizer.ir.operators import moves, of_node
from ..optimizer.ir.ops import REQUEST_BROADCAST
from ..optimizer.ir.pattern import is_op, shape_of
from ..optimizer.ir.traits import Move, OnRows
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_BROADCAST = REQUEST_BROADCAST.op


@dataclass(frozen=True)
class ShareUserSide(Pass):
    """Replaces what each candidate computes of the request alone by one row, broadcast late.

    Method: request-only optimization (2508.05640) and in-kernel broadcast (FBGEMM's IKBO): which
    values depend on the request alone is read off the graph; their sub-graph runs on one row. Where
    it meets a candidate's value in an elementwise operator or a batched product, that one
    broadcasts by itself.
    Exact because: rows that are alike give results that are alike, where rows are computed apart
    (`optimizer/analysis/batch_axis.py` follows them). Kernels may sum one row in another order than
    many.
    Requires: CANONICAL.
    Misses when: a value mixes rows, or moves them where they can't be followed; what needs it is
    then computed for each candidate.
    """

    name: ClassVar[str] = "share-user-side"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Hoists what reaches a candidate, then lets operators broadcast."""
        if not program.graph.find_nodes(op="call_function", target=_BROADCAST):
            return
        hoist = _Hoist(program, ctx.rewriter(program))
        for lost in hoist.barriers():
            ctx.missed(f"it is computed for each candidate: {lost.reason}", lost.node)
        hoisted = hoist.run()
        implicit = _broadcast_implicitly(hoist.rw)
        if hoisted:
            ctx.applied(f"computed {hoisted} operators once a request", *hoist.sites)
        if implicit:
            ctx.applied(f"let {implicit} operators broadcast what is shared by themselves")


class _Hoist:
    """Computes user-only values on one row, where a candidate's value needs them."""

    def __init__(self, program: Program, rw: Rewriter) -> None:
        self.program, self.rw = program, rw
        shared = shared_features(program.signature)
        self.lineage = lineage(program, shared)
        self.places: dict[fx.Node, Found] = row_places(program)
        self.symbol = batch_symbol(program)
        self.user = next(
            n for n in program.graph.find_nodes(op="placeholder") if str(n.target) in shared
        )
        self.sites: list[fx.Node] = []
        self._one: dict[fx.Node, fx.Node] = {}
        # Decided before anything is rewritten, inputs first and uses last.
        self._can: dict[fx.Node, bool] = {}
        self._kept: dict[fx.Node, bool] = {}
        for node in program.graph.nodes:
            self._can[node] = self._has_form(node)
        for node in reversed(program.graph.nodes):
            self._kept[node] = self._is_kept(node)

    def barriers(self) -> list[Lost]:
        """User-only values whose rows couldn't be followed, where they were lost first."""
        lost = [found for node, found in self.places.items() if self._is_users(node)]
        return list(dict.fromkeys(found for found in lost if isinstance(found, Lost)))

    def run(self) -> int:
        """Replaces what is shared by broadcasts of one row; returns how many operators that was."""
        for node in list(self.program.graph.nodes):
            if is_op(node, _BROADCAST) or self.places[node] != FIRST or self._outside(node):
                continue
            if not self._reaches_rows(node) or not self.rw.site(node):
                continue
            one = self.one(node)
            with self.rw.before(node):
                broadcast = self.rw.emit(_BROADCAST, one, self._rows(), like=node)
            self.rw.replace(node, broadcast)
        return len(self.sites)

    def one(self, node: fx.Node) -> fx.Node:
        """The node's form for one row."""
        if is_op(node, _BROADCAST):
            return node.all_input_nodes[0]
        if node not in self._one:
            with self.rw.before(node):
                self._one[node] = self._emit(node)
            if self._is_users(node):
                self.sites.append(node)
        return self._one[node]

    def _is_users(self, node: fx.Node) -> bool:
        return self.lineage[node] is Lineage.USER

    def _outside(self, node: fx.Node) -> bool:
        """Whether a node is computed for all rows, whatever needs it."""
        return node.op == "output" or not self._is_users(node) or not self._can[node]

    def _reaches_rows(self, node: fx.Node) -> bool:
        return any(self._outside(user) or self._kept[user] for user in node.users)

    def _is_kept(self, node: fx.Node) -> bool:
        """Whether a node stays for all rows beside its form for one.

        Its own rows aren't where a broadcast would put them, and something needs them there.
        """
        moved = not self._outside(node) and self.places[node] != FIRST
        return moved and self._reaches_rows(node)

    def _has_form(self, node: fx.Node) -> bool:
        if is_op(node, _BROADCAST):
            return True
        if node.op != "call_function" or isinstance(self.places[node], (Lost, type(None))):
            return False
        if self.lineage[node] in (Lineage.ITEM, Lineage.BOTH):
            return False
        sizes = [n for n in node.all_input_nodes if not isinstance(n.meta["val"], (Tensor, tuple))]
        if sizes and not self._rebuilds(node):
            return False
        held = [n for n in node.all_input_nodes if isinstance(self.places[n], (Place, tuple))]
        return all(self._can[n] for n in held)

    def _rebuilds(self, node: fx.Node) -> bool:
        """Whether the sizes among the node's arguments can be told from its shape."""
        value, place = node.meta["val"], self.places[node]
        if not isinstance(value, Tensor) or not isinstance(place, Place):
            return False
        rest = [size for axis, size in enumerate(value.shape) if axis != place.axis]
        return _is_sized(node) and all(isinstance(size, int) for size in rest)

    def _emit(self, node: fx.Node) -> fx.Node:
        def mapped(source: fx.Node) -> fx.Node:
            held = isinstance(self.places.get(source), (Place, tuple))
            return self.one(source) if held or is_op(source, _BROADCAST) else source

        if self._rebuilds(node):
            return self._rebuilt(node, mapped)
        if moves(node, Move.SQUEEZE):
            source = mapped(node.all_input_nodes[0])
            return self.rw.emit(_aten.squeeze.dims, source, squeezed(node), like=node)
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), mapped)
        return self.rw.emit(node.target, *args, like=node, **kwargs)

    def _rebuilt(self, node: fx.Node, mapped: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A view, or what is made row by row, with the number of rows left open."""
        place = self.places[node]
        assert isinstance(place, Place)
        sizes: list[Any] = list(shape_of(node))
        sizes[place.axis] = -1
        if moves(node, Move.RESHAPE):
            source = mapped(node.all_input_nodes[0])
            return self.rw.emit(_aten.reshape.default, source, sizes, like=node)
        kwargs = dict(node.kwargs)
        if is_op(node, _aten.expand.default):
            source = node.all_input_nodes[0]
            if not isinstance(self.places.get(source, FIRST), Place):
                sizes[place.axis] = self._count()
            return self.rw.emit(_aten.expand.default, mapped(source), sizes, like=node, **kwargs)
        sizes[place.axis] = self._count()
        return self.rw.emit(node.target, sizes, *node.args[1:], like=node, **kwargs)

    def _count(self) -> fx.Node:
        """How many rows there are of what is shared."""
        return self.rw.emit(_aten.sym_size.int, self.user, 0, like=self.user)

    def _rows(self) -> fx.Node:
        """What has a row per candidate."""
        broadcasts = self.program.graph.find_nodes(op="call_function", target=_BROADCAST)
        rows: fx.Node = broadcasts[0].all_input_nodes[1]
        return rows


def _is_sized(node: fx.Node) -> bool:
    """Whether the sizes of a node's value are among its arguments, or follow from them."""
    traits = of_node(node)
    made = traits is not None and traits.rows is OnRows.MADE
    return made or moves(node, Move.RESHAPE | Move.EXPAND)


def _broadcast_implicitly(rw: Rewriter) -> int:
    """Hands what repeats to operators that broadcast by themselves; returns how many there were."""
    changed = 0
    for node in list(rw.program.graph.nodes):
        kinds = _repeating(node)
        repeated = {n: n.args[0] for n in node.all_input_nodes if is_op(n, *kinds)}
        if not repeated or not _keeps_shape(node, repeated) or not rw.site(node):
            continue
        for old, new in repeated.items():
            assert isinstance(new, fx.Node)
            node.replace_input_with(old, new)
        rw.refresh([node])
        changed += 1
    return changed


def _repeating(node: fx.Node) -> tuple[Any, ...]:
    """The operators whose repetition a node would do by itself."""
    if is_op(node, _aten.matmul.default):
        ranks = {len(shape_of(operand)) for operand in node.args}
        return (_BROADCAST,) if len(ranks) == 1 and min(ranks) > 2 else ()
    tags = getattr(node.target, "tags", ())
    pointwise = torch.Tag.pointwise in tags and isinstance(node.meta["val"], Tensor)
    return (_BROADCAST, _aten.expand.default) if pointwise else ()


def _keeps_shape(node: fx.Node, repeated: Mapping[fx.Node, Any]) -> bool:
    """Whether the other operands have the sizes that are repeated no more."""
    shape = [str(size) for size in shape_of(node)]
    batched = shape[:-2] if is_op(node, _aten.matmul.default) else shape
    found = ["1"] * len(batched)
    for operand in node.all_input_nodes:
        own = [str(size) for size in shape_of(repeated.get(operand, operand))]
        missing = [""] * (len(shape) - len(own))
        for axis, size in enumerate((*missing, *own)[: len(batched)]):
            found[axis] = size if size not in ("", "1") else found[axis]
    return found == batched
