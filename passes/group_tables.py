"""group-tables: lookups of equal width as one lookup in one stacked table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.operators import of_node
from ..optimizer.ir.ops import WRAPPED
from ..optimizer.ir.pattern import dtype_of, is_op, parameter_name, shape_of
from ..optimizer.ir.traits import OnRows
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext
from ..optimizer.report.report import readable_bytes

_aten = torch.ops.aten


@dataclass(frozen=True)
class GroupTables(Pass):
    """Replaces lookups of one width by one lookup in a table of all their rows.

    Method: table-batched embedding (Neo, 2104.05158): ids are shifted by where their table starts.

    Exact because: every id finds the same row; one beyond its own table would find a neighbour's,
    and is refused before the lookup (``optimizer/ir/bounds.py``). It is declared rounding since a
    slice of the grouped rows has other strides, and torch chooses its kernels by them.
    Pays because: every lookup is an operator. Rows taken out of the grouped ones again are copied,
    though: bags of 10 ids in each of 26 tables of width 64, one thread of ONNX Runtime,
    batch 1, 64, 512, pooled: 52, 1467, 20871 us grouped, 60, 864, 8985 apart; bags of 3 ids of
    width 16: 37, 315, 3519 and 47, 279, 2815.
    Requires: CANONICAL.
    Misses when: a table alone is larger than ``max_bytes`` (stacking copies it), an example's rows
    of one table are more than ``max_numbers`` numbers, or nothing else has its width and format.
    """

    name: ClassVar[str] = "group-tables"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_group: int = 2
    max_bytes: int = 256 * 2**20
    max_numbers: int = 128

    def run(self, program: Program, ctx: PassContext) -> None:
        """Groups by kind, width and the ids' dtype, in graph order."""
        rw = ctx.rewriter(program)
        groups: dict[Any, list[fx.Node]] = {}
        for node in program.graph.nodes:
            if _looks_up(node) and self._may_group(node, ctx):
                key = (node.target, shape_of(node)[-1], dtype_of(node), dtype_of(node.args[-1]))
                groups.setdefault(key, []).append(node)
        for lookups in groups.values():
            ready = _independent(lookups)
            chosen = [node for node in ready if rw.site(node)]
            if len(chosen) < self.min_group:
                if len(chosen) == 1 and len(lookups) == 1:
                    ctx.missed("no other table has its width and format", *chosen)
                continue
            sites = [site_of(node) for node in chosen]
            _group(rw, chosen)
            ctx.applied(f"grouped {len(sites)} tables into one lookup", *sites)

    def _may_group(self, node: fx.Node, ctx: PassContext) -> bool:
        tables = node.args[:-1]
        if any(parameter_name(table) is None for table in tables):
            return False
        if not 1 <= len(shape_of(node.args[-1])) <= 2 or not _has_width(node.args[-1]):
            return False
        columns = _columns(node.args[-1])
        if columns > 1 and columns * int(shape_of(node)[-1]) > self.max_numbers:
            ctx.missed("its rows would be copied out of those of all tables", node)
            return False
        size = sum(table.meta["val"].nbytes for table in tables)  # type: ignore[union-attr]
        if size > self.max_bytes:
            ctx.missed(f"its {readable_bytes(size)} would be copied", node)
            return False
        return True


def _has_width(ids: Any) -> bool:
    """Whether the ids are ``[B]``, or ``[B, L]`` with a fixed L."""
    shape = shape_of(ids)
    return len(shape) == 1 or isinstance(shape[1], int)


def _independent(lookups: list[fx.Node]) -> list[fx.Node]:
    """The lookups whose ids can all be had before the first of them, over the same rows."""
    first = lookups[0]
    # Compared as text: sizes that happen to be equal in the example compare as equal themselves.
    rows = str(shape_of(first.args[-1])[0])
    order = {node: index for index, node in enumerate(first.graph.nodes)}
    ready = []
    for node in lookups:
        ids = node.args[-1]
        assert isinstance(ids, fx.Node)
        if str(shape_of(ids)[0]) == rows and _before(ids, first, order):
            ready.append(node)
    return ready


def _before(ids: fx.Node, first: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether ``ids`` is computed before ``first``, or is a view of what is."""
    while is_op(ids, _aten.select.int, WRAPPED.op) and isinstance(ids.args[0], fx.Node):
        ids = ids.args[0]
    return order[ids] < order[first]


def _group(rw: Rewriter, lookups: list[fx.Node]) -> None:
    """Emits the one lookup before the first and hands every other its part."""
    first = lookups[0]
    owners = {node.args[0]: node for node in lookups}  # a table that is read twice, once
    start_of, total = {}, 0
    for table in owners:
        start_of[table] = total
        total += int(shape_of(table)[0])
    starts = [start_of[node.args[0]] for node in lookups]
    tables = [_stack(rw, list(owners.values()), index) for index in range(len(first.args) - 1)]
    with rw.before(first):
        ids = _join_ids(rw, lookups)
        widths = [_columns(node.args[-1]) for node in lookups]
        shifts = torch.tensor(starts).repeat_interleave(torch.tensor(widths))
        ids = _counted(rw, lookups, ids)
        shift = rw.parameter("table_starts", shifts.to(dtype_of(first.args[-1])))
        shifted = rw.emit(_aten.add.Tensor, ids, shift, like=lookups)
        grouped = rw.emit(first.target, *tables, shifted, like=lookups)
        parts = [
            _part(rw, node, grouped, sum(widths[:index]), width)
            for index, (node, width) in enumerate(zip(lookups, widths, strict=True))
        ]
    for node, part in zip(lookups, parts, strict=True):
        rw.replace(node, part)


def _as_given(ids: Any) -> Any:
    """The ids before negative ones were counted from their table's end."""
    return ids.args[0] if is_op(ids, WRAPPED.op) else ids


def _counted(rw: Rewriter, lookups: Sequence[fx.Node], ids: fx.Node) -> fx.Node:
    """All ids ``[B, columns]``, negative ones counted from the end where they were."""
    rows: list[int] = []
    for node in lookups:
        piece: Any = node.args[-1]
        size = int(piece.args[1]) if is_op(piece, WRAPPED.op) else 0
        rows += [size] * _columns(piece)
    if not any(rows):
        return ids
    sizes = rw.parameter("table_rows", torch.tensor(rows).to(dtype_of(ids)))
    negative = rw.emit(_aten.lt.Scalar, ids, 0, like=lookups)
    counted = rw.emit(_aten.add.Tensor, ids, sizes, like=lookups)
    return rw.emit(_aten.where.self, negative, counted, ids, like=lookups)


def _stack(rw: Rewriter, lookups: Sequence[fx.Node], index: int) -> fx.Node:
    """One parameter of the rows of every lookup's ``index``-th argument."""
    names = [str(node.args[index].target) for node in lookups]  # type: ignore[union-attr]
    stacked: Tensor = torch.cat([rw.program.tensor(name) for name in names])
    return rw.parameter(f"grouped_{names[0].replace('.', '_')}", stacked)


def _columns(ids: Any) -> int:
    shape = shape_of(ids)
    return 1 if len(shape) == 1 else int(shape[1])


def _join_ids(rw: Rewriter, lookups: Sequence[fx.Node]) -> fx.Node:
    """All ids as ``[B, columns]``: the input they are columns of, or their concatenation."""
    pieces = [_as_given(node.args[-1]) for node in lookups]
    whole = _all_columns(pieces)
    if whole is not None:
        return whole
    columns: list[fx.Node] = []
    for source, start, stop in _neighbours(pieces):
        ids = _early(rw, source)
        if stop is not None and stop - start < shape_of(ids)[1]:
            ids = rw.emit(_aten.slice.Tensor, ids, 1, start, stop, like=lookups)
        elif len(shape_of(ids)) == 1:
            ids = rw.emit(_aten.unsqueeze.default, ids, 1, like=lookups)
        columns.append(ids)
    return rw.emit(_aten.cat.default, columns, 1, like=lookups) if len(columns) > 1 else columns[0]


def _neighbours(pieces: Sequence[Any]) -> list[tuple[fx.Node, int, int | None]]:
    """The pieces, with columns of one input that follow one another joined to a range of it."""
    runs: list[tuple[fx.Node, int, int | None]] = []
    for piece in pieces:
        column = is_op(piece, _aten.select.int) and piece.args[1] == 1
        if not column or len(shape_of(piece.args[0])) != 2:
            runs.append((piece, 0, None))
            continue
        source, index = piece.args[0], piece.args[2]
        if runs and runs[-1][0] is source and runs[-1][2] == index:
            runs[-1] = (source, runs[-1][1], index + 1)
        else:
            runs.append((source, index, index + 1))
    return runs


def _early(rw: Rewriter, piece: Any) -> fx.Node:
    """The ids themselves, or a copy of the selects that may come too late in the graph."""
    assert isinstance(piece, fx.Node)
    if is_op(piece, _aten.select.int):
        source = _early(rw, piece.args[0])
        return rw.emit(_aten.select.int, source, *piece.args[1:], like=piece)
    return piece


def _all_columns(pieces: Sequence[Any]) -> fx.Node | None:
    """The ``[B, F]`` tensor of which the pieces are columns 0 to F-1, in order."""
    if not all(is_op(piece, _aten.select.int) and piece.args[1] == 1 for piece in pieces):
        return None
    source = pieces[0].args[0]
    if any(piece.args[0] is not source for piece in pieces) or len(shape_of(source)) != 2:
        return None
    in_order = [piece.args[2] for piece in pieces] == list(range(len(pieces)))
    return source if in_order and shape_of(source)[1] == len(pieces) else None


def _part(rw: Rewriter, node: fx.Node, grouped: fx.Node, start: int, width: int) -> fx.Node:
    if len(shape_of(node.args[-1])) == 1:
        return rw.emit(_aten.select.int, grouped, 1, start, like=node)
    return rw.emit(_aten.slice.Tensor, grouped, 1, start, start + width, like=node)


def _looks_up(node: fx.Node) -> bool:
    traits = of_node(node)
    return traits is not None and traits.rows is OnRows.LOOKUP
