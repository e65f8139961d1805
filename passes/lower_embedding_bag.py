"""lower-embedding-bag: bags as lookups and sums, which every backend takes without a loop."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.errors import PipelineError
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.ops import RISING
from ..optimizer.ir.pattern import argument, dtype_of, is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_SUM, _MEAN, _MAX = 0, 1, 2
_END = 2**63 - 1


@dataclass(frozen=True)
class LowerEmbeddingBag(Pass):
    """Replaces EmbeddingBag by lookups pooled with sums, means or maxima.

    Ids ``[B, L]`` become a lookup ``[B, L, D]`` pooled over L. An exporter would write bags as one
    ONNX Loop per table, 30 times slower.

    N ids with offsets are added into their bags by index, which costs N × D additions. Where the
    target can't, as TensorRT's parser, bags are products ``[B, N] × [N, D]`` with a matrix of which
    id is in which bag, and maxima are taken over ``[B, N, D]``, which TensorRT fuses into one
    kernel. That is B times the work: 0.7 GFLOP and a matrix of 20 MB for 512 rows of 20 ids and D
    64. On a CPU sums by index took 26, 157 and 1,072 µs (64 rows of 5 ids, 64 of 50, 512 of 20),
    by products 62, 473 and 14,619.

    Exact because: the same rows are pooled; only the order of additions may differ.
    Requires: CANONICAL.
    Misses when: rows of a bag are scaled by their frequency.

    Attributes:
        pooling: How ids with offsets are pooled: "index", "product", or as the "target" takes it.
    """

    name: ClassVar[str] = "lower-embedding-bag"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    pooling: str = "target"

    def check(self, program: Program, ctx: PassContext) -> None:
        """Raises PipelineError unless the option is known."""
        if self.pooling not in ("target", "index", "product"):
            raise PipelineError(
                f"{self.name} has no pooling {self.pooling!r}; it is target, index or product"
            )

    def run(self, program: Program, ctx: PassContext) -> None:
        """Lowers every bag that has a form."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        pooling = self.pooling
        if pooling == "target":
            pooling = "index" if ctx.target.adds_by_index else "product"
        offsets = _ProductBag() if pooling == "product" else _OffsetBag()
        lowered = apply_rules((_PaddedBag(), offsets), rw, missed)
        if lowered:
            ctx.applied(f"lowered {lowered} embedding bags to lookups and sums")


@dataclass(frozen=True)
class _Bag:
    """An ``embedding_bag`` call taken apart."""

    node: fx.Node
    table: fx.Node
    ids: fx.Node
    offsets: fx.Node
    mode: int
    weights: fx.Node | None
    include_last: bool
    padding: int | None


def _bag_of(node: fx.Node) -> _Bag | Miss | None:
    """The bag whose pooled rows ``node`` is."""
    bag = node.args[0]
    if node.args[1] != 0 or not is_op(
        bag, _aten.embedding_bag.padding_idx, _aten.embedding_bag.default
    ):
        return None
    assert isinstance(bag, fx.Node)
    defaults: tuple[Any, ...] = (False, _SUM, False, None, False, None)
    given: tuple[Any, ...] = (*bag.args, *defaults[len(bag.args) - 3 :])
    table, ids, offsets, by_frequency, mode, _, weights, include_last, padding = given
    if by_frequency:
        return Miss("scale_grad_by_freq is a training option; build the bag without it", (bag,))
    return _Bag(bag, table, ids, offsets, mode, weights, bool(include_last), padding)


def _padded_ids(bag: _Bag) -> fx.Node | None:
    """The ``[B, L]`` ids, if the offsets are just 0, L, 2L and so on."""
    if not is_op(bag.offsets, _aten.arange.start_step) or not is_op(
        bag.ids, _aten.view.default, _aten.reshape.default
    ):
        return None
    source, length = bag.ids.args[0], argument(bag.offsets, 2, "step", 1)
    assert isinstance(source, fx.Node)
    shape, bags = shape_of(source), shape_of(bag.offsets)[0]
    if len(shape) != 2 or bag.include_last:
        return None
    matches = shape[1] == length and str(shape[0]) == str(bags) and bag.offsets.args[0] == 0
    return source if matches else None


class _PaddedBag(Rule):
    """Replaces a bag over ids ``[B, L]`` by a lookup pooled over L."""

    roots = (operator.getitem,)

    def match(self, node: fx.Node) -> Any:
        bag = _bag_of(node)
        ids = _padded_ids(bag) if isinstance(bag, _Bag) else None
        return None if ids is None else (bag, ids)

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        bag, ids = found
        rows = rw.emit(_aten.embedding.default, bag.table, ids, like=bag.node)
        if bag.weights is not None:
            weights = rw.emit(
                _aten.reshape.default, bag.weights, [-1, shape_of(ids)[1], 1], like=bag.node
            )
            rows = rw.emit(_aten.mul.Tensor, rows, weights, like=bag.node)
        keep = None
        if bag.padding is not None:
            keep = rw.emit(_aten.ne.Scalar, ids, bag.padding, like=bag.node)
            keep = rw.emit(_aten.unsqueeze.default, keep, -1, like=bag.node)
        return _pool(rw, bag, rows, keep, shape_of(ids)[1])


def _pool(rw: Rewriter, bag: _Bag, rows: fx.Node, keep: fx.Node | None, length: Any) -> fx.Node:
    """Pools ``rows`` ``[B, L, D]`` over L, leaving out where ``keep`` ``[B, L, 1]`` is false."""
    node, dtype = bag.node, rows.meta["val"].dtype
    if bag.mode == _MAX:
        if keep is None:
            return rw.emit(_aten.amax.default, rows, [1], like=node)
        low = float(torch.finfo(dtype).min)
        drop = rw.emit(_aten.logical_not.default, keep, like=node)
        masked = rw.emit(_aten.masked_fill.Scalar, rows, drop, low, like=node)
        peak = rw.emit(_aten.amax.default, masked, [1], like=node)
        some = rw.emit(_aten.any.dim, keep, 1, like=node)
        none = rw.emit(_aten.logical_not.default, some, like=node)
        return rw.emit(_aten.masked_fill.Scalar, peak, none, 0.0, like=node)
    if keep is None:
        pooled = rw.emit(_aten.sum.dim_IntList, rows, [1], like=node)
        if bag.mode == _SUM:
            return pooled
        return rw.emit(_aten.div.Tensor, pooled, float(length), like=node)
    mask = rw.emit(_aten._to_copy.default, keep, dtype=dtype, like=node)
    pooled = rw.emit(_aten.mul.Tensor, rows, mask, like=node)
    pooled = rw.emit(_aten.sum.dim_IntList, pooled, [1], like=node)
    if bag.mode == _SUM:
        return pooled
    count = rw.emit(_aten.sum.dim_IntList, mask, [1], like=node)
    count = rw.emit(_aten.clamp.default, count, 1.0, like=node)
    return rw.emit(_aten.div.Tensor, pooled, count, like=node)


class _OffsetBag(Rule):
    """Replaces a bag over ids with offsets by a lookup whose rows are added by bag."""

    roots = (operator.getitem,)

    def match(self, node: fx.Node) -> Any:
        bag = _bag_of(node)
        if not isinstance(bag, _Bag) or _padded_ids(bag) is not None:
            return bag if isinstance(bag, Miss) else None
        return bag

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        bag: _Bag = found
        like = bag.node
        bags = shape_of(node)[0]
        count: Any = bags
        if not isinstance(bags, int):
            size = rw.emit(_aten.sym_size.int, bag.offsets, 0, like=like)
            count = rw.emit(operator.sub, size, 1, like=like) if bag.include_last else size
        segments = _segments(rw, bag)
        rows = _rows(rw, bag)
        dtype = rows.meta["val"].dtype
        width = shape_of(node)[1]
        if bag.mode == _MAX:
            return self._maximum(rw, bag, segments, count, rows)
        zeros = rw.emit(_aten.full.default, [count, width], 0.0, dtype=dtype, like=like)
        pooled = rw.emit(_aten.index_put.default, zeros, [segments], rows, True, like=like)
        if bag.mode == _SUM:
            return pooled
        return self._mean(rw, bag, segments, count, pooled, dtype)

    def _maximum(
        self, rw: Rewriter, bag: _Bag, segments: fx.Node, count: Any, rows: fx.Node
    ) -> fx.Node:
        """The largest value of each bag's rows; 0 for bags without any, as in torch."""
        like, dtype = bag.node, rows.meta["val"].dtype
        size, width = rw.emit(_aten.sym_size.int, bag.ids, 0, like=like), shape_of(rows)[1]
        low = float(torch.finfo(dtype).min)
        rows = _without_padding(rw, bag, rows, low)
        index = rw.emit(_aten.unsqueeze.default, segments, -1, like=like)
        index = rw.emit(_aten.expand.default, index, [size, width], like=like)
        lows = rw.emit(_aten.full.default, [count, width], low, dtype=dtype, like=like)
        peak = rw.emit(_aten.scatter_reduce.two, lows, 0, index, rows, "amax", like=like)
        empty = rw.emit(_aten.eq.Scalar, peak, low, like=like)
        return rw.emit(_aten.masked_fill.Scalar, peak, empty, 0.0, like=like)

    def _mean(
        self,
        rw: Rewriter,
        bag: _Bag,
        segments: fx.Node,
        count: Any,
        pooled: fx.Node,
        dtype: torch.dtype,
    ) -> fx.Node:
        like = bag.node
        counted = _counted(rw, bag, dtype)
        if counted is not None:
            zeros = rw.emit(_aten.full.default, [count], 0.0, dtype=dtype, like=like)
            length = rw.emit(_aten.index_put.default, zeros, [segments], counted, True, like=like)
        else:
            # The sums are of offsets that were checked; their lengths needn't wait for that.
            given = bag.offsets.args[0] if is_op(bag.offsets, RISING.op) else bag.offsets
            assert isinstance(given, fx.Node)
            lengths = _lengths(rw, replace(bag, offsets=given))
            length = rw.emit(_aten._to_copy.default, lengths, dtype=dtype, like=like)
        length = rw.emit(_aten.clamp.default, length, 1.0, like=like)
        length = rw.emit(_aten.unsqueeze.default, length, -1, like=like)
        return rw.emit(_aten.div.Tensor, pooled, length, like=like)


def _lengths(rw: Rewriter, bag: _Bag) -> fx.Node:
    """How many ids each bag has: where the next one starts, less where it starts itself."""
    starts, ends = _bounds(rw, bag)
    return rw.emit(_aten.sub.Tensor, ends, starts, like=bag.node)


def _bounds(rw: Rewriter, bag: _Bag) -> tuple[fx.Node, fx.Node]:
    """Where each bag starts and where the next one does, ``[B]`` both."""
    like, bounds = bag.node, bag.offsets
    if not bag.include_last:
        size = rw.emit(_aten.sym_size.int, bag.ids, 0, like=like)
        end = rw.emit(_aten.full.default, [1], size, dtype=dtype_of(bounds), like=like)
        bounds = rw.emit(_aten.cat.default, [bounds, end], like=like)
    ends = rw.emit(_aten.slice.Tensor, bounds, 0, 1, _END, like=like)
    starts = rw.emit(_aten.slice.Tensor, bounds, 0, 0, -1, like=like)
    return starts, ends


class _ProductBag(Rule):
    """Replaces a bag over ids with offsets by a product with the matrix of which id is in which."""

    roots = (operator.getitem,)

    def match(self, node: fx.Node) -> Any:
        return _OffsetBag().match(node)

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        bag: _Bag = found
        like, rows = bag.node, _rows(rw, bag)
        dtype = rows.meta["val"].dtype
        if bag.mode == _MAX:
            return self._maximum(rw, bag, rows)
        inside = rw.emit(_aten._to_copy.default, _membership(rw, bag), dtype=dtype, like=like)
        pooled = rw.emit(_aten.mm.default, inside, rows, like=like)
        if bag.mode == _SUM:
            return pooled
        counted = _counted(rw, bag, dtype)
        if counted is not None:
            row = rw.emit(_aten.unsqueeze.default, counted, 0, like=like)
            inside = rw.emit(_aten.mul.Tensor, inside, row, like=like)
        length = rw.emit(_aten.sum.dim_IntList, inside, [1], True, like=like)
        length = rw.emit(_aten.clamp.default, length, 1.0, like=like)
        return rw.emit(_aten.div.Tensor, pooled, length, like=like)

    def _maximum(self, rw: Rewriter, bag: _Bag, rows: fx.Node) -> fx.Node:
        """The largest value of each bag's rows, over all rows with those of others made low."""
        like, dtype = bag.node, rows.meta["val"].dtype
        low = float(torch.finfo(dtype).min)
        rows = _without_padding(rw, bag, rows, low)
        # One low row that is in no bag: a maximum over no ids at all would have no value.
        lows = rw.emit(_aten.full.default, [1, shape_of(rows)[1]], low, dtype=dtype, like=like)
        rows = rw.emit(_aten.cat.default, [lows, rows], like=like)
        inside = _membership(rw, bag, before=1)
        inside = rw.emit(_aten.unsqueeze.default, inside, -1, like=like)
        outside = rw.emit(_aten.logical_not.default, inside, like=like)
        among = rw.emit(_aten.masked_fill.Scalar, rows, outside, low, like=like)
        peak = rw.emit(_aten.amax.default, among, [1], like=like)
        empty = rw.emit(_aten.eq.Scalar, peak, low, like=like)
        return rw.emit(_aten.masked_fill.Scalar, peak, empty, 0.0, like=like)


def _rows(rw: Rewriter, bag: _Bag) -> fx.Node:
    """The rows of all ids ``[N, D]``, weighted; those of padding are zero."""
    like = bag.node
    rows = rw.emit(_aten.embedding.default, bag.table, bag.ids, like=like)
    weight, mask = bag.weights, _counted(rw, bag, rows.meta["val"].dtype)
    if mask is not None:
        weight = mask if weight is None else rw.emit(_aten.mul.Tensor, weight, mask, like=like)
    if weight is None:
        return rows
    column = rw.emit(_aten.unsqueeze.default, weight, -1, like=like)
    return rw.emit(_aten.mul.Tensor, rows, column, like=like)


def _counted(rw: Rewriter, bag: _Bag, dtype: torch.dtype) -> fx.Node | None:
    """1 for every id that isn't padding, ``[N]``; None if no id is."""
    if bag.padding is None:
        return None
    keep = rw.emit(_aten.ne.Scalar, bag.ids, bag.padding, like=bag.node)
    return rw.emit(_aten._to_copy.default, keep, dtype=dtype, like=bag.node)


def _without_padding(rw: Rewriter, bag: _Bag, rows: fx.Node, low: float) -> fx.Node:
    """The rows, those of padding so low that no maximum takes them."""
    if bag.padding is None:
        return rows
    drop = rw.emit(_aten.eq.Scalar, bag.ids, bag.padding, like=bag.node)
    drop = rw.emit(_aten.unsqueeze.default, drop, -1, like=bag.node)
    return rw.emit(_aten.masked_fill.Scalar, rows, drop, low, like=bag.node)


def _membership(rw: Rewriter, bag: _Bag, before: int = 0) -> fx.Node:
    """Which id is in which bag, bool ``[B, before + N]``: the first ``before`` are in none."""
    like = bag.node
    size = rw.emit(_aten.sym_size.int, bag.ids, 0, like=like)
    starts, ends = _bounds(rw, bag)
    places = rw.emit(_aten.arange.start_step, -before, size, dtype=torch.int64, like=like)
    places = rw.emit(_aten.unsqueeze.default, places, 0, like=like)
    starts = rw.emit(_aten.unsqueeze.default, starts, 1, like=like)
    ends = rw.emit(_aten.unsqueeze.default, ends, 1, like=like)
    begun = rw.emit(_aten.ge.Tensor, places, starts, like=like)
    open_still = rw.emit(_aten.lt.Tensor, places, ends, like=like)
    return rw.emit(_aten.logical_and.default, begun, open_still, like=like)


def _segments(rw: Rewriter, bag: _Bag) -> fx.Node:
    """Which bag each id belongs to: count, at every id, the bags that started up to there."""
    like = bag.node
    starts = bag.offsets
    if bag.include_last:
        starts = rw.emit(_aten.slice.Tensor, bag.offsets, 0, 0, -1, like=like)
    size = rw.emit(_aten.sym_size.int, bag.ids, 0, like=like)
    # One more place than ids: an empty bag at the end starts behind the last id.
    room = rw.emit(operator.add, size, 1, like=like)
    zeros = rw.emit(_aten.full.default, [room], 0, dtype=torch.int64, like=like)
    ones = rw.emit(_aten.full_like.default, starts, 1, dtype=torch.int64, like=like)
    marks = rw.emit(_aten.index_put.default, zeros, [starts], ones, True, like=like)
    started = rw.emit(_aten.cumsum.default, marks, 0, like=like)
    bags = rw.emit(_aten.slice.Tensor, started, 0, 0, -1, like=like)
    return rw.emit(_aten.sub.Tensor, bags, 1, like=like)
