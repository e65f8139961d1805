"""What else must go when part of a value goes: a closure over the graph, many parts at once.

Removing a hidden unit takes its row of one weight, its column of the next, its bias, its place in
every concatenation, sum and view between them. The rules here say, operator by operator, how a
removal on one side forces one on another. They work on single elements of values (at one row of
the batch, `analysis/onerow.py`), so that views, joins and selections need no rule each: whatever
the model wrote is run on the elements' numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.facts import site_of
from ..ir.operators import gives, moves, of_node
from ..ir.pattern import argument, is_op, parameter_name, size_at
from ..ir.program import Program
from ..ir.traits import Move, OnRows, Values
from .one_row import OneRow, picked_dim

_aten = torch.ops.aten
#: Their second argument is the result's sizes.
_SIZED = Move.RESHAPE | Move.EXPAND

#: A value, a matrix by its name, or a vector by its name and the node that reads it.
Key = fx.Node | str | tuple[str, fx.Node]


class Scene:
    """What the closures over one program share.

    Attributes:
        program: The program.
        row: Its values for one row.
        weights: Names of the parameters that are multiplied by or looked up in, ``[N, K]``.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.row = OneRow(program)
        self.weights = {
            name
            for node in program.graph.nodes
            for position in _weight_places(node)
            if (name := parameter_name(node.args[position])) is not None
        }
        self.readers: dict[str, list[fx.Node]] = {}
        for node in program.graph.find_nodes(op="get_attr"):
            self.readers.setdefault(str(node.target), []).extend(node.users)

    def key(self, operand: fx.Node, user: fx.Node) -> Key:
        """Under what an operand's removals are kept.

        Vectors are kept apart for every reader: equal ones were made one by `eliminate`, which
        doesn't tie what they belong to.
        """
        name = parameter_name(operand)
        if name is None:
            return operand
        return (name, user) if len(self.row.shape(operand)) == 1 else name

    def frozen(self, node: fx.Node) -> list[int]:
        """Dimensions whose size is computed: from the data, or when the program runs."""
        value, shape = node.meta.get("val"), self.row.shape(node)
        if not isinstance(value, Tensor):
            return []
        sizes = node.args[1] if moves(node, _SIZED) else ()
        assert isinstance(sizes, (list, tuple))
        return [
            d
            for d, (size, found) in enumerate(zip(value.shape, shape, strict=True))
            if (not isinstance(size, int) and size_at(size, 1) != found)
            or (d < len(sizes) and isinstance(sizes[d], fx.Node))
        ]


def _weight_places(node: fx.Node) -> tuple[int, ...]:
    if gives(node, Values.LINEAR, Values.PRODUCT):
        return (1,)
    if is_op(node, _aten.embedding.default):
        return (0,)
    return ()


class Closure:
    """Several removals, each with all that it takes along.

    Attributes:
        masks: ``{value: [U, *shape]}``, ``{vector: [U, n]}``, ``{small parameter: [U, *shape]}``.
        sides: ``{(weight, dimension): [U, size]}``.
        why: Per removal, why it can't be, or empty.
        culprit: Per removal, the node that stands in its way.
    """

    def __init__(
        self, scene: Scene, seed: fx.Node, mask: Tensor, *, whole_columns: bool = False
    ) -> None:
        self.scene = scene
        self.count = len(mask)
        self.masks: dict[Key, Tensor] = {}
        self.sides: dict[tuple[str, int], Tensor] = {}
        self.why = [""] * self.count
        self.culprit: list[fx.Node | None] = [None] * self.count
        self._live = torch.ones(self.count, dtype=torch.bool)
        self._pending: deque[fx.Node] = deque()
        self._queued: set[fx.Node] = set()
        self._put(seed, mask)
        self._settle()
        while whole_columns and self._fill_columns():
            self._settle()
        self._check_whole()

    @property
    def live(self) -> Tensor:
        """``[U]``: the removals that nothing stands in the way of."""
        return self._live

    # --- state ------------------------------------------------------------------------------------

    def _get(self, operand: fx.Node, user: fx.Node) -> Tensor:
        key = self.scene.key(operand, user)
        if key in self.masks:
            return self.masks[key]
        return torch.zeros((self.count, *self.scene.row.shape(operand)), dtype=torch.bool)

    def _of(self, node: fx.Node) -> Tensor:
        return self._get(node, node)

    def _put(self, key: Key, mask: Tensor) -> None:
        mask = mask & _lined_up(self._live, mask)
        known = self.masks.get(key)
        if known is not None:
            mask = mask | known
        if not bool(mask.any()) or (known is not None and torch.equal(mask, known)):
            return
        self.masks[key] = mask
        if isinstance(key, fx.Node):
            self._queue([key, *key.users])
        else:
            self._queue([key[1]] if isinstance(key, tuple) else self.scene.readers[key])

    def _put_operand(self, operand: fx.Node, user: fx.Node, mask: Tensor) -> None:
        if not bool(mask.any()):
            return
        key = self.scene.key(operand, user)
        if isinstance(key, str) and key in self.scene.weights:
            self._block(mask, user, "reads a weight in another way too")
            return
        self._put(key, mask)

    def _side(self, weight: fx.Node, dim: int) -> Tensor:
        size = self.scene.row.shape(weight)[dim]
        default = torch.zeros((self.count, size), dtype=torch.bool)
        return self.sides.get((str(weight.target), dim), default)

    def _put_side(self, weight: fx.Node, dim: int, mask: Tensor) -> None:
        key = (str(weight.target), dim)
        mask = mask & _lined_up(self._live, mask)
        known = self._side(weight, dim)
        mask = mask | known
        if torch.equal(mask, known):
            return
        self.sides[key] = mask
        self._queue(self.scene.readers[key[0]])

    def _queue(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node not in self._queued and node.op != "get_attr":
                self._queued.add(node)
                self._pending.append(node)

    def _block(self, mask: Tensor, node: fx.Node, why: str) -> None:
        """Gives up the removals that touch ``mask``."""
        hit = mask.flatten(1).any(1) & self._live
        for unit in hit.nonzero().flatten().tolist():
            self.why[unit] = f"{site_of(node)} {why}"
            self.culprit[unit] = node
        self._live = self._live & ~hit

    # --- rules ------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return
        if node.op == "output":
            for score in node.all_input_nodes:
                self._block(self._of(score), score, "is what the model returns")
            return
        if moves(node, Move.SPLIT):
            self._queue(node.users)  # its parts are traced to what it splits
            return
        operands = [n for n in node.all_input_nodes if self.scene.row.shape(n)]
        if is_op(node, _aten.linear.default) and parameter_name(node.args[1]) is not None:
            self._linear(node)
        elif gives(node, Values.PRODUCT) and all(
            len(self.scene.row.shape(n)) > 1 for n in operands
        ):
            self._product(node)
        elif is_op(node, _aten.embedding.default) and parameter_name(node.args[0]) is not None:
            self._lookup(node)
        elif gives(node, Values.SUM, Values.MEAN) and isinstance(node.args[1], (list, tuple)):
            self._sum(node)
        elif is_op(node, _aten.layer_norm.default) and len(node.args[1]) == 1:  # type: ignore[arg-type]
            self._norm(node)
        elif is_op(node, _aten.scaled_dot_product_attention.default) and len(node.args) == 3:
            self._attention(node)
        elif is_op(node, torch.ops.rankc.dot_interaction.default):
            self._dots(node)
        elif self.scene.row.moves(node) is not None:
            self._moves(node)
        elif _is_elementwise(node):
            self._elementwise(node, operands)
        else:
            for operand in operands:
                self._block(self._get(operand, node), node, "reads all of it")
            if self.scene.row.shape(node):
                self._block(self._of(node), node, "makes all of it")

    def _elementwise(self, node: fx.Node, operands: list[fx.Node]) -> None:
        shape = self.scene.row.shape(node)
        given = self._of(node)
        for operand in operands:
            given = given | _spread(self._get(operand, node), shape)
        self._put(node, given)
        back = _partly(given)
        for operand in operands:
            self._put_operand(operand, node, _narrowed(back, self.scene.row.shape(operand)))

    def _moves(self, node: fx.Node) -> None:
        moved = self.scene.row.moves(node)
        assert moved is not None
        flat = torch.cat([self._get(source, node).flatten(1) for source in moved.sources], 1)
        given = self._of(node) | flat[:, moved.index]
        self._put(node, given)
        places = moved.index.flatten()
        copies = torch.bincount(places, minlength=flat.shape[1])
        part = _partly(given)
        gone = torch.zeros(flat.shape, dtype=torch.int64)
        gone.index_add_(1, places, part.flatten(1).long())
        back = (gone == copies) & (copies > 0)
        if moves(node, Move.PICK):
            # A position that is picked no more leaves what it was picked from as it is.
            part = part & ~whole_lines(part)[picked_dim(node)]
            others = torch.zeros(flat.shape, dtype=torch.int64)
            back = back & (others.index_add_(1, places, part.flatten(1).long()) > 0)
        start = 0
        for source in moved.sources:
            shape = self.scene.row.shape(source)
            count = self.scene.row.values[source].numel()
            self._put_operand(source, node, back[:, start : start + count].view(-1, *shape))
            start += count

    def _linear(self, node: fx.Node) -> None:
        x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        given, out = self._get(x, node), self._of(node)
        columns = self._side(weight, 1) | _along(_partly(given), -1)
        rows = self._side(weight, 0) | _along(_partly(out), -1)
        if isinstance(bias, fx.Node):
            rows = rows | self._get(bias, node)
            self._put_operand(bias, node, rows)
        self._put_side(weight, 1, columns)
        self._put_side(weight, 0, rows)
        places = given.all(-1, keepdim=True)
        self._put(node, out | _lined_up(rows, out, last=True) | places)
        back = _partly(out).all(-1, keepdim=True)
        self._put_operand(x, node, given | _lined_up(columns, given, last=True) | back)

    def _product(self, node: fx.Node) -> None:
        left, right = node.args[0], node.args[1]
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        a, out = self._get(left, node), self._of(node)
        shape = self.scene.row.shape(node)
        weight = parameter_name(right) in self.scene.weights
        if weight and len(self.scene.row.shape(right)) > 2:
            for mask in (a, out):
                self._block(mask, node, "multiplies by several matrices at once")
            return
        b = torch.zeros((self.count, *self.scene.row.shape(right)), dtype=torch.bool)
        if weight:
            b = b | self._side(right, 0)[:, :, None] | self._side(right, 1)[:, None, :]
        else:
            b = self._get(right, node)
        inner = _along(_partly(a), -1) | _along(_partly(b), -2)
        rows, columns = a.all(-1, keepdim=True), b.all(-2, keepdim=True)
        self._put(node, out | _spread(rows, shape) | _spread(columns, shape))
        back = _partly(out)
        rows = _narrowed(back.all(-1, keepdim=True), rows.shape[1:])
        columns = _narrowed(back.all(-2, keepdim=True), columns.shape[1:])
        self._put_operand(left, node, a | rows | _lined_up(inner, a, last=True))
        if weight:
            self._put_side(right, 0, inner)
            self._put_side(right, 1, columns[:, 0])
            return
        across = inner.view(self.count, *[1] * (b.dim() - 3), -1, 1)
        self._put_operand(right, node, b | columns | across)

    def _lookup(self, node: fx.Node) -> None:
        table, ids = node.args[0], node.args[1]
        assert isinstance(table, fx.Node)
        assert isinstance(ids, fx.Node)
        out, given = self._of(node), self._get(ids, node)
        columns = self._side(table, 1) | _along(_partly(out), -1)
        self._put_side(table, 1, columns)
        self._put(node, out | _lined_up(columns, out, last=True) | given[..., None])
        self._put_operand(ids, node, _partly(out).all(-1))

    def _sum(self, node: fx.Node) -> None:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        given, out = self._get(x, node), self._of(node)
        dims = sorted(int(d) % (given.dim() - 1) + 1 for d in node.args[1])  # type: ignore[union-attr, arg-type]
        kept = bool(argument(node, 2, "keepdim", False))
        gone = given
        for dim in reversed(dims):
            gone = gone.all(dim, keepdim=kept)
        self._put(node, out | gone)
        back = _partly(out)
        for dim in () if kept else dims:
            back = back.unsqueeze(dim)
        self._put_operand(x, node, _spread(back, self.scene.row.shape(x)))

    def _norm(self, node: fx.Node) -> None:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        given, out = self._get(x, node), self._of(node)
        both = given | out
        lines = _along(_partly(both), -1)
        vectors = [v for v in node.args[2:4] if isinstance(v, fx.Node)]
        for vector in vectors:
            lines = lines | self._get(vector, node)
        both = both | _lined_up(lines, both, last=True)
        self._put(node, both)
        self._put_operand(x, node, _partly(both))
        for vector in vectors:
            self._put_operand(vector, node, lines)

    def _attention(self, node: fx.Node) -> None:
        """Heads, and columns of queries with keys and of values; never a token."""
        query, key, value = node.args
        assert isinstance(query, fx.Node)
        assert isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        q, k, v = (self._get(n, node) for n in (query, key, value))
        out = self._of(node)
        heads = [m.all(-1).all(-1)[..., None, None] for m in (q, k, v)]
        gone = heads[0] | heads[1] | heads[2] | _partly(out).all(-1).all(-1)[..., None, None]
        shared = q.all(-2, keepdim=True) | k.all(-2, keepdim=True)
        columns = v.all(-2, keepdim=True) | _partly(out).all(-2, keepdim=True)
        tokens = [m.all(-1) & ~m.all(-1).all(-1, keepdim=True) for m in (q, k, v, out)]
        for mask in tokens:
            self._block(mask, node, "attends to all of them")
        self._put_operand(query, node, q | gone | shared)
        self._put_operand(key, node, k | gone | shared)
        self._put_operand(value, node, v | gone | columns)
        self._put(node, out | gone | columns)

    def _dots(self, node: fx.Node) -> None:
        x, rows, columns = node.args
        assert isinstance(x, fx.Node)
        vectors = self._get(x, node).all(-1)
        pairs = [self.scene.row.values[n] for n in (rows, columns)]  # type: ignore[index]
        self._put(node, self._of(node) | vectors[..., pairs[0]] | vectors[..., pairs[1]])

    # --- the end ----------------------------------------------------------------------------------

    def _settle(self) -> None:
        while self._pending and bool(self._live.any()):
            node = self._pending.popleft()
            self._queued.discard(node)
            self._visit(node)

    def _fill_columns(self) -> bool:
        """Where a value would be left with holes, lets the whole columns go; whether any were.

        In the first such value of the graph: it may be transposed further down.
        """
        for key in self.scene.program.graph.nodes:
            mask = self.masks.get(key)
            hole = None if mask is None else self._hole(mask) & _lined_up(self._live, mask)
            if mask is not None and hole is not None and bool(hole.any()):
                for dim in range(1, mask.dim() - 1):
                    hole = hole.any(dim, keepdim=True)
                self._put(key, mask | hole)
                return True
        return False

    def _check_whole(self) -> None:
        """Gives up removals that leave a value with holes: each must be whole rows or columns."""
        for key, mask in list(self.masks.items()):
            node = key if isinstance(key, fx.Node) else None
            at = node or (key[1] if isinstance(key, tuple) else self.scene.readers[str(key)][0])
            why = "would be left with a hole: only a part of a row goes"
            self._block(self._hole(mask), at, why)
            if node is not None:
                for dim in self.scene.frozen(node):
                    lines = _along(_partly(mask), dim + 1)
                    self._block(lines, node, "has a size that is computed when it runs")

    @staticmethod
    def _hole(mask: Tensor) -> Tensor:
        """What goes without its row, column or other line going as a whole."""
        return mask & ~_united(whole_lines(mask))


def whole_lines(mask: Tensor) -> list[Tensor]:
    """Per dimension of ``[U, *shape]``, the indices all of whose elements go, to broadcast."""
    found = []
    for dim in range(1, mask.dim()):
        line = mask
        for other in range(1, mask.dim()):
            line = line.all(other, keepdim=True) if other != dim else line
        found.append(line)
    return found


def _united(lines: list[Tensor]) -> Tensor:
    united = lines[0]
    for line in lines[1:]:
        united = united | line
    return united


def _is_elementwise(node: fx.Node) -> bool:
    """Elementwise, or a softmax, which has the shape of its operand."""
    traits = of_node(node)
    if traits is None:
        return False
    same = traits.move is Move.CAST or traits.values is Values.CONSTANT_LIKE
    apart = traits.rows is OnRows.APART or traits.move is Move.COPY
    return same or apart or traits.values in (Values.WEIGHTS, Values.LOG_WEIGHTS)


def _partly(mask: Tensor) -> Tensor:
    """The mask less the removals that take all of a value: whoever makes it is dead anyway."""
    return mask & ~_lined_up(mask.flatten(1).all(1), mask)


def _lined_up(values: Tensor, like: Tensor, *, last: bool = False) -> Tensor:
    """``[U]``, or ``[U, n]`` along the last dimension, shaped to broadcast against a mask."""
    middle = [1] * (like.dim() - values.dim())
    return (
        values.view(len(values), *middle, -1) if last else values.view(-1, *[1] * (like.dim() - 1))
    )


def _along(mask: Tensor, dim: int) -> Tensor:
    """``[U, size]``: the indices of one dimension all of whose elements go."""
    return mask.movedim(dim, -1).flatten(1, -2).all(1) if mask.dim() > 2 else mask


def _spread(mask: Tensor, shape: Any) -> Tensor:
    """A mask of an operand, broadcast to the result's shape."""
    missing = len(shape) - (mask.dim() - 1)
    return mask.view(len(mask), *[1] * missing, *mask.shape[1:]).expand(len(mask), *shape)


def _narrowed(mask: Tensor, shape: Any) -> Tensor:
    """A mask of the result, reduced to an operand that was broadcast: what goes everywhere."""
    missing = mask.dim() - 1 - len(shape)
    for _ in range(missing):
        mask = mask.all(1)
    for dim, size in enumerate(shape, start=1):
        if size == 1 and mask.shape[dim] != 1:
            mask = mask.all(dim, keepdim=True)
    return mask
