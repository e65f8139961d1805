"""mix-tokens: a linear between transposes is a product from the left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.analysis.views import BATCHES, Source, ViewTracer, arrangement
from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.pattern import argument, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class MixTokens(Pass):
    """Replaces ``linear(x.transpose(1, 2)).transpose(1, 2)`` by ``W x + b``, b a column.

    The linear blocks of DHEN (2203.11014), Wukong (2403.02545) and MLP-Mixer mix the rows of
    ``x [B, T, D]``.

    Exact because: both are the same sums.
    Pays because: nothing is copied. One thread of ONNX Runtime at batch 64, 512 (T, D, outputs: us
    transposed, and from the left): 27, 64, 5: 80, 723; 37, 321. 27, 64, 25: 146, 1349; 102, 852.
    100, 64, 64: 750, 9231; 542, 5026. 27, 160, 32: 467, 6361; 285, 2797. Narrow rows lose: 39, 10,
    8: 26, 156; 34, 216.
    Requires: CANONICAL.
    Misses when: D is less than ``min_columns``, or the result isn't transposed back.
    """

    name: ClassVar[str] = "mix-tokens"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_columns: int = 32

    def run(self, program: Program, ctx: PassContext) -> None:
        """Visits the linears in graph order."""
        rw = ctx.rewriter(program)
        for node in program.graph.find_nodes(op="call_function", target=_aten.linear.default):
            if not is_plain_linear(node):
                continue
            views = ViewTracer(program)
            source = views.source(node.args[0])
            columns = None if source is None else _columns(source)
            if source is None or columns is None:
                continue
            if columns.width < self.min_columns:
                ctx.missed("its rows are too narrow for a product from the left", node)
                continue
            ends = _ends(views, node, columns)
            if ends is None:
                ctx.missed("its result isn't transposed back", node)
            elif rw.site(node):
                where = site_of(node)
                _emit(rw, node, source.base, columns, ends)
                ctx.applied("mixed rows by a product from the left", where)


@dataclass(frozen=True)
class _Columns:
    """The rows of a view, as columns of ``x [B, T, D]``.

    Attributes:
        tokens: T.
        width: D.
        starts: At each of `BATCHES`, where in x each of the view's rows starts.
    """

    tokens: int
    width: int
    starts: tuple[Tensor, ...]


def _columns(source: Source) -> _Columns | None:
    """The columns of ``x [B, T, D]`` that a view ``[B, D, T]``, or flattened, has as rows.

    None if it is anything else.
    """
    tokens = source.numbers[0].shape[-1]
    if source.numbers[0].dim() < 2 or tokens < 2 or not source.is_whole:
        return None
    first = source.numbers[0].flatten()[:2]
    width = int(first[1] - first[0])
    starts = []
    for numbers, batch in zip(source.numbers, BATCHES, strict=True):
        rows = numbers.reshape(-1, tokens)
        whole = numbers.numel() == batch * tokens * width
        if width < 2 or not whole or not torch.equal(rows, rows[:, :1] + _steps(tokens, width)):
            return None
        starts.append(rows[:, 0])
    within = all(torch.equal(s % (tokens * width), s % width) for s in starts)
    return _Columns(tokens, width, tuple(starts)) if within else None


def _steps(count: int, step: int) -> Tensor:
    return step * torch.arange(count)


def _ends(
    views: ViewTracer, linear: fx.Node, columns: _Columns
) -> list[tuple[fx.Node, tuple[int, ...]]] | None:
    """Where the linear's result is read, and how the new one is arranged to be that."""
    outputs, size = int(shape_of(linear)[-1]), columns.tokens * columns.width
    found: list[tuple[fx.Node, tuple[int, ...]]] = []
    for end in views.ends(linear):
        view = views.source(end)
        assert view is not None
        places = []
        for starts, numbers in zip(columns.starts, view.numbers, strict=True):
            column = starts[numbers // outputs]
            row = column // size * outputs + numbers % outputs
            places.append(row * columns.width + column % columns.width)
        order = arrangement(places, [(batch, outputs, columns.width) for batch in BATCHES])
        if order is None or list(order) != sorted(order):
            return None
        found.append((end, order))
    return found


def _emit(
    rw: Rewriter,
    linear: fx.Node,
    source: fx.Node,
    columns: _Columns,
    ends: list[tuple[fx.Node, tuple[int, ...]]],
) -> None:
    with rw.before(linear):
        sizes = [-1, columns.tokens, columns.width]
        x = source
        if list(shape_of(source)[1:]) != sizes[1:]:
            x = rw.emit(_aten.reshape.default, source, sizes, like=linear)
        made = rw.emit(_aten.matmul.default, linear.args[1], x, like=linear)
        bias = argument(linear, 2, "bias")
        if bias is not None:
            column = rw.program.tensor(str(bias.target))[:, None]
            name = str(bias.target).replace(".", "_")
            made = rw.emit(
                _aten.add.Tensor, made, rw.parameter(f"{name}_column", column), like=linear
            )
    for end, order in ends:
        with rw.before(end):
            rw.replace(end, rw.arrange(made, order, end))
