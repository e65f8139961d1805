"""flatten-cin: the outer products of a compressed interaction network as rows of a linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.views import BATCHES, ViewTracer
from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.pattern import argument, dtype_of, is_op, parameter_name, shape_of, size_at
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip

_aten = torch.ops.aten


@dataclass(frozen=True)
class FlattenCin(Pass):
    """Replaces a convolution of size 1 over ``x_i · h_j`` ``[B, m · H, D]`` by a linear.

    The layer of xDeepFM's compressed interaction network (1803.05170), however its outer product is
    written. Columns come first: ``x [B, D, m]`` and ``h [B, D, H]`` make rows of m · H products,
    which a linear takes as they are.

    Exact because: both are the same sums of the same products.
    Pays because: a matrix product runs faster than a convolution of length D, and the outer product
    is taken along H neighbours instead of D. One thread of ONNX Runtime, batch 1, 64, 512 (m, H, D,
    maps: us as a convolution, as a linear): 26, 26, 10, 200: 53, 2692, 21521; 38, 1604, 14291. 26,
    100, 10, 200: 176, 10337, 82796; 127, 5117, 48235. 26, 100, 32, 128: 223, 15403, 117503; 198,
    12525, 113798.
    Requires: CANONICAL, a CPU.
    Misses when: the convolution reads anything but every product of a row of x and one of h.
    """

    name: ClassVar[str] = "flatten-cin"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def check(self, program: Program, ctx: PassContext) -> None:
        """Raises on other devices."""
        if ctx.target.device.kind != "cpu":
            raise Skip("it was measured on CPUs only")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Visits the convolutions in graph order."""
        rw = ctx.rewriter(program)
        for node in list(program.graph.nodes):
            if not is_op(node, _aten.conv1d.default, _aten.convolution.default):
                continue
            outer = _outer_product(ViewTracer(program), node)
            if isinstance(outer, str):
                ctx.missed(outer, node)
            elif outer is not None and rw.site(node):
                where = site_of(node)
                with rw.before(node):
                    rw.replace(node, _emit(rw, node, outer))
                ctx.applied(
                    "computed a layer of a compressed interaction network by a linear", where
                )


@dataclass(frozen=True)
class _Outer:
    """The products that a convolution reads.

    Attributes:
        left: x, ``[B, m, D]``.
        right: h, ``[B, H, D]``.
        pairs: ``[C, 2]``: the row of x and the row of h that each channel is the product of.
    """

    left: fx.Node
    right: fx.Node
    pairs: Tensor


def _outer_product(views: ViewTracer, node: fx.Node) -> _Outer | str | None:
    source = views.source(node.args[0]) if _is_pointwise(node) else None
    if source is None or not is_op(source.base, _aten.mul.Tensor) or not source.is_whole:
        return None
    length = int(shape_of(node)[2])
    sides = [_rows(views, side, source.base, length) for side in source.base.args]
    found = []
    for at, batch in enumerate(BATCHES):
        rows = [_channels(side, source.numbers[at], at, batch) for side in sides]
        if any(row is None for row in rows):
            return "the convolution's channels aren't products of two rows"
        found.append(torch.stack(rows, -1))  # type: ignore[arg-type]
    left, right = (side.node for side in sides if side is not None)
    every = int(shape_of(left)[1]) * int(shape_of(right)[1])
    if not torch.equal(*found) or len(torch.unique(found[0], dim=0)) < every:
        return "the convolution reads but some of the products of two rows"
    return _Outer(left, right, found[0])


def _is_pointwise(node: fx.Node) -> bool:
    """Whether a convolution over ``[B, C, D]`` mixes channels alone, by parameters."""
    weight, bias = node.args[1], argument(node, 2, "bias")
    if parameter_name(weight) is None or (bias is not None and parameter_name(bias) is None):
        return False
    if len(shape_of(weight)) != 3 or shape_of(weight)[2] != 1 or dtype_of(node) != torch.float32:
        return False
    plain = is_op(node, _aten.conv1d.default)
    groups = argument(node, 6 if plain else 8, "groups", 1)
    transposed = not plain and bool(node.args[6])
    moves = (argument(node, 3, "stride", 1), argument(node, 4, "padding", 0))
    fixed = all(isinstance(size, int) for size in shape_of(node)[1:])
    return (
        moves[0] in (1, [1]) and moves[1] in (0, [0]) and groups == 1 and fixed and not transposed
    )


@dataclass(frozen=True)
class _Rows:
    """Rows ``[B, r, D]`` that a side of the product is a view of.

    Attributes:
        node: The rows.
        places: At each of `BATCHES`, in the product's shape, which of their elements is read.
    """

    node: fx.Node
    places: tuple[Tensor, ...]


def _rows(views: ViewTracer, side: Any, product: fx.Node, length: int) -> _Rows | None:
    source = views.source(side)
    if source is None:
        return None
    for rows in (*views.behind(side), source.base):
        shape = shape_of(rows) if isinstance(rows.meta.get("val"), Tensor) else ()
        if len(shape) != 3 or isinstance(shape[0], int) or shape[2] != length:
            continue
        found = views.within(side, rows)
        if found is None:
            return None
        sizes = [[int(size_at(s, batch)) for s in shape_of(product)] for batch in BATCHES]
        places = (n.expand(size) for n, size in zip(found.numbers, sizes, strict=True))
        return _Rows(rows, tuple(places))
    return None


def _channels(side: _Rows | None, numbers: Tensor, at: int, batch: int) -> Tensor | None:
    """Which row each channel ``[C]`` has from a side; None if it has anything else."""
    if side is None:
        return None
    count, length = (int(size) for size in shape_of(side.node)[1:])
    places = side.places[at].flatten()[numbers]
    rows = places[0, :, 0] // length
    first = (torch.arange(batch)[:, None] * count + rows) * length
    return rows if torch.equal(places, first[..., None] + torch.arange(length)) else None


def _emit(rw: Rewriter, node: fx.Node, outer: _Outer) -> fx.Node:
    name = str(node.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    weight = rw.program.tensor(str(node.args[1].target))[..., 0]  # type: ignore[union-attr]
    fields, maps = int(shape_of(outer.left)[1]), int(shape_of(outer.right)[1])
    ordered = weight.new_zeros(len(weight), fields * maps)
    ordered.index_add_(1, outer.pairs[:, 0] * maps + outer.pairs[:, 1], weight)
    length = int(shape_of(outer.left)[2])
    left = rw.emit(_aten.transpose.int, outer.left, 1, 2, like=node)
    right = rw.emit(_aten.transpose.int, outer.right, 1, 2, like=node)
    left = rw.emit(_aten.unsqueeze.default, left, 3, like=node)
    right = rw.emit(_aten.unsqueeze.default, right, 2, like=node)
    products = rw.emit(_aten.mul.Tensor, left, right, like=node)
    rows = rw.emit(_aten.reshape.default, products, [-1, length, fields * maps], like=node)
    bias = argument(node, 2, "bias")
    arguments = [rows, rw.parameter(f"{name}_flat", ordered), *([] if bias is None else [bias])]
    made = rw.emit(_aten.linear.default, *arguments, like=node)
    return rw.emit(_aten.transpose.int, made, 1, 2, like=node)
