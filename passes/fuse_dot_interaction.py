"""fuse-dot-interaction: dot products of pairs of rows, however they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.pairs import PairTracer
from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.ops import DOT_INTERACTION
from ..optimizer.ir.pattern import argument, dtype_of, is_op, shape_of
from ..optimizer.ir.verifier import same_value
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class FuseDotInteraction(Pass):
    """Replaces dot products of pairs of embeddings by one batched product and a selection.

    Found in every form: ``bmm(x, xᵀ)`` or an einsum with index lists, a flat index, a constant mask
    or slices row by row; ``(x[:, i] * x[:, j]).sum(-1)``; loops over pairs, stacked.

    Method: the interaction of DLRM (1906.00091).
    Exact because: every output is the dot product of the same two rows. Their sums are taken in
    another order.
    Pays because: one thread of ONNX Runtime, batch 512, takes 381 us for gathered rows and 132 for
    the product of 9 rows of 16, 9850 and 976 for 27 rows of 64. Few pairs are faster one by one:
    81 and 113 for 5 rows of 16, so that those stay. A product is picked from by two indices, which
    is fastest too: by a flat index 27 rows of 64 take 2065 us, sliced row by row 1270.
    Requires: CANONICAL.
    Misses when: the products have other users; the pairs are fewer than a quarter of all; or, where
    no product is there yet, fewer than ``min_pairs`` or with fewer than ``min_products`` factors.
    """

    name: ClassVar[str] = "fuse-dot-interaction"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_pairs: int = 21
    min_products: int = 336

    def run(self, program: Program, ctx: PassContext) -> None:
        """Traces every value, then raises the largest ones that hold nothing but pairs."""
        rw = ctx.rewriter(program)
        tracer = PairTracer(program)
        traced = {n: p for n in program.graph.nodes if (p := tracer.pairs(n)) is not None}
        for places in _places(traced):
            pairs = torch.cat([_listed(traced[node]) for node in places])
            source = _Rows(tracer, pairs)
            if source.distinct < 3 or source.is_everything:
                continue
            region = _region(places, traced)
            if not self._pays(source, any(is_op(n, _aten.sum.dim_IntList) for n in region)):
                ctx.missed("its pairs are too few for a product of all", *places)
                continue
            if any(user not in region for node in region - set(places) for user in node.users):
                ctx.missed("the products of its pairs are used elsewhere too", *places)
                continue
            if not rw.site(places[0]):
                continue
            sites = list(dict.fromkeys(site_of(node) for node in places))
            _raise(rw, places, source)
            ctx.applied(f"made {len(pairs)} pairs of {source.count} rows one interaction", *sites)

    def _pays(self, source: _Rows, summed: bool) -> bool:
        """Whether the whole product costs less than the pairs one by one."""
        products = source.distinct * int(shape_of(source.leaves[0])[-1])
        if summed and (source.distinct < self.min_pairs or products < self.min_products):
            return False
        return 4 * source.distinct >= source.count * source.count


class _Rows:
    """Where the rows of some pairs come from.

    Attributes:
        leaves: The values that hold them, in order.
        pairs: ``[P, 2]`` positions in the leaves' concatenation.
        count: How many rows the leaves have.
        distinct: How many different pairs of different rows there are.
        is_everything: Whether the pairs are all elements of one product, in order.
    """

    def __init__(self, tracer: PairTracer, pairs: Tensor) -> None:
        held = (tracer.rows[row][0] for row in pairs.flatten().tolist())
        self.leaves: list[fx.Node] = list(dict.fromkeys(held))
        position: dict[tuple[fx.Node, int | None], int] = {}
        for leaf in self.leaves:
            rows = range(int(shape_of(leaf)[1])) if len(shape_of(leaf)) == 3 else (None,)
            for row in rows:
                position[leaf, row] = len(position)
        numbers = [position[tracer.rows[row]] for row in pairs.flatten().tolist()]
        self.pairs = torch.tensor(numbers).view(-1, 2)
        self.count: int = len(position)
        ordered = {(min(pair), max(pair)) for pair in self.pairs.tolist()}
        self.distinct: int = sum(low < high for low, high in ordered)
        every = torch.cartesian_prod(*[torch.arange(self.count)] * 2)
        self.is_everything = torch.equal(self.pairs, every)

    def joined(self, rw: Rewriter, like: fx.Node) -> fx.Node:
        """The rows as one value ``[B, n, d]``."""
        first = self.leaves[0]
        if len(self.leaves) == 1 and len(shape_of(first)) == 3:
            return first
        if all(len(shape_of(leaf)) == 2 for leaf in self.leaves):
            return rw.emit(_aten.stack.default, self.leaves, 1, like=like)
        parts = [
            leaf
            if len(shape_of(leaf)) == 3
            else rw.emit(_aten.unsqueeze.default, leaf, 1, like=like)
            for leaf in self.leaves
        ]
        return rw.emit(_aten.cat.default, parts, 1, like=like)


def _listed(pairs: Tensor) -> Tensor:
    return pairs.reshape(-1, 2)


def _places(traced: dict[fx.Node, Tensor]) -> list[list[fx.Node]]:
    """Values ``[B, P]`` that no larger one holds; neighbours in one concatenation come together."""
    ends = {n for n, p in traced.items() if p.dim() == 2 and any(u not in traced for u in n.users)}
    places: list[list[fx.Node]] = []
    joins = dict.fromkeys(u for n in traced if n in ends for u in n.users if _joins(u))
    for join in joins:
        run: list[fx.Node] = []
        for part in (*join.args[0], None):  # type: ignore[misc]
            if part in ends and len(part.users) == 1 and part not in run:
                run.append(part)
                continue
            if len(run) > 1:
                places.append(run)
                ends -= set(run)
            run = []
    return places + [[node] for node in traced if node in ends]


def _joins(node: fx.Node) -> bool:
    return is_op(node, _aten.cat.default) and argument(node, 1, "dim", 0) in (1, -1)


def _region(places: Sequence[fx.Node], traced: dict[fx.Node, Tensor]) -> set[fx.Node]:
    """What the pairs are picked from: views, products and sums, but not the rows."""
    region, pending = set(places), list(places)
    while pending:
        node = pending.pop()
        if is_op(node, _aten.bmm.default, _aten.matmul.default, _aten.mul.Tensor):
            continue
        is_sum = is_op(node, _aten.sum.dim_IntList)
        for source in node.all_input_nodes:
            if source not in region and (is_sum or source in traced):
                region.add(source)
                pending.append(source)
    return region


def _raise(rw: Rewriter, places: Sequence[fx.Node], source: _Rows) -> None:
    last = places[-1]
    with rw.before(last):
        indices: list[Any] = [
            rw.parameter(name, source.pairs[:, side].contiguous())
            for side, name in enumerate(("pair_rows", "pair_columns"))
        ]
        made = rw.emit(DOT_INTERACTION.op, source.joined(rw, last), *indices, like=places)
    if len(places) > 1:
        (join,) = last.users
        parts = [made if part is last else part for part in join.args[0]]  # type: ignore[union-attr]
        rw.set_argument(join, 0, [part for part in parts if part not in places])
    elif same_value(last.meta["val"], made.meta["val"]):
        rw.replace(last, made)
    else:  # The batch was counted from what a mask selects.
        assert dtype_of(last) == dtype_of(made)
        last.replace_all_uses_with(made)
        rw.refresh(list(made.users))
