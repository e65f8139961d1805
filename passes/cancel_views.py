"""cancel-views: transposes and reshapes that undo one another, also with a linear in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.analysis.views import (
    MOVES,
    Source,
    ViewTracer,
    arrangement,
)
from ..optimizer.ir import Program, Rewriter, facts_of, set_precision
from ..optimizer.ir.operators import moves
from ..optimizer.ir.pattern import shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class CancelViews(Pass):
    """Replaces a chain of views by at most a transpose and a reshape, linears in it moved ahead.

    A linear works on rows, in whatever order they come: ``linear(x.transpose(0, 1))`` is
    ``linear(x).transpose(0, 1)``, so that a transpose before it cancels with one behind it.

    Exact because: the same values are read in the same places. It is declared rounding since a
    value has other strides then, and torch chooses its kernels by them.
    Requires: CANONICAL.
    Misses when: the views pick a part, or don't get fewer.
    """

    name: ClassVar[str] = "cancel-views"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Shortens chains in graph order, once linears stand ahead of them."""
        rw = ctx.rewriter(program)
        moved = sum(_move_ahead(rw, node) for node in _linears(program))
        views = ViewTracer(program)
        shortened = 0
        for node in list(program.graph.nodes):
            if moves(node, MOVES) and not node._erased and _shorten(rw, views, node):
                views = ViewTracer(program)
                shortened += 1
        if moved or shortened:
            ctx.applied(f"shortened {shortened} chains of views and moved {moved} linears ahead")


def _linears(program: Program) -> list[fx.Node]:
    found = program.graph.find_nodes(op="call_function", target=_aten.linear.default)
    return [node for node in found if is_plain_linear(node)]


def _shorten(rw: Rewriter, views: ViewTracer, node: fx.Node) -> bool:
    """Whether a view became fewer operators on what was computed."""
    count = len(views.behind(node))
    source = views.source(node) if count > 1 else None
    order = source and source.order
    if source is None or not order:
        return False
    turned = list(order) != sorted(order)
    reshaped = [str(s) for s in shape_of(source.base)] != [str(s) for s in shape_of(node)]
    now = (views.transposes(node), count)
    if (int(turned), turned + reshaped) >= now or not rw.site(node):
        return False
    with rw.before(node):
        rw.replace(node, rw.arrange(source.base, order, node))
    return True


def _move_ahead(rw: Rewriter, linear: fx.Node) -> bool:
    """Whether a linear was put before the views ahead of it, which left fewer transposes."""
    views = ViewTracer(rw.program)
    source = views.source(linear.args[0])
    rows = source and _rows(source)
    if source is None or not rows:
        return False
    width = int(shape_of(linear)[-1])
    sizes = [(*size[:-1], width) for size in source.sizes]
    ends: list[tuple[fx.Node, tuple[int, ...]]] = []
    transposes = views.transposes(linear.args[0])
    for end in views.ends(linear):
        found = views.source(end)
        assert found is not None
        places = [
            r[n // width] * width + n % width for r, n in zip(rows, found.numbers, strict=True)
        ]
        order = arrangement(places, sizes)
        if order is None:
            return False
        ends.append((end, order))
        transposes += views.transposes(end)
    if sum(list(order) != sorted(order) for _, order in ends) >= transposes or not rw.site(linear):
        return False
    with rw.before(linear):
        made = rw.emit(_aten.linear.default, source.base, *linear.args[1:], like=linear)
        set_precision(made, facts_of(linear).precision)
    for end, order in ends:
        with rw.before(end):
            rw.replace(end, rw.arrange(made, order, end))
    return True


def _rows(source: Source) -> tuple[Tensor, ...] | None:
    """Which row of the base each row of a view is; None if they aren't all its rows, whole."""
    width = source.sizes[0][-1]
    if not source.is_whole or any(numbers.shape[-1] != width for numbers in source.numbers):
        return None
    found = []
    for numbers in source.numbers:
        rows = numbers.reshape(-1, width)
        if not torch.equal(rows, rows[:, :1] + torch.arange(width)) or rows[0, 0] % width:
            return None
        found.append(rows[:, 0] // width)
    return tuple(found)
