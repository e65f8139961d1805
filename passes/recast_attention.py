"""recast-attention: attention over the inputs of keys and values, or head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.attention import Attention, Heads, attentions, heads_of, side_by_side
from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.analysis.views import ViewTracer
from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.pattern import argument, dtype_of, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip

_aten = torch.ops.aten


@dataclass(frozen=True)
class RecastAttention(Pass):
    """Replaces attention over projected heads by attention over inputs, or by products per head.

    Over inputs: ``(x Q)(y K)ᵀ`` is ``(x Q Kᵀ) yᵀ`` and ``P (y V)`` is ``(P y) V``, so that keys and
    values are never made, and the queries of all heads meet the same rows as if they were more
    rows. Per head: a linear for each head's queries, keys and values, and no transposes.

    Exact because: the products are associative, and a softmax takes no notice of what is added to
    all scores of a query, nor changes what is added to all values.
    Pays because: ONNX Runtime copies to transpose heads, and one thread at batch 1, 64, 512 takes
    (K inputs, d per head, us as written, per head, over inputs): 39 rows, K 16, two heads of 32:
    33, 1103, 11406; 29, 856, 8756; 17, 479, 4762. 25 rows, K 64, two heads of 32: 28, 859, 8101;
    27, 728, 7024; 21, 716, 7154. 39 rows, K 64, four heads of 16: 45, 1846, 20045; 47, 1518, 16286;
    47, 2506, 26785. One query, 50 rows, K 64, four heads of 16: 28, 773, 7295; 35, 577, 5705; 14,
    133, 1285. So over inputs where that is at most ``max_ratio`` times the multiplications (with
    those of a linear of the result, which the values' projection becomes part of), else per head up
    to ``max_heads``.
    Requires: CANONICAL, a CPU.
    Misses when: queries, keys or values aren't heads of plain linears over rows, or a mask differs
    from head to head.
    """

    name: ClassVar[str] = "recast-attention"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    max_ratio: float = 1.3
    max_heads: int = 4

    def check(self, program: Program, ctx: PassContext) -> None:
        """Raises on other devices."""
        if ctx.target.device.kind != "cpu":
            raise Skip("GPU runtimes have kernels of their own for attention")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Recasts in graph order."""
        rw = ctx.rewriter(program)
        for attention in attentions(program):
            found = _found(program, attention)
            if isinstance(found, str):
                ctx.missed(found, attention.output)
                continue
            over_inputs = found.ratio <= self.max_ratio
            if not over_inputs and found.is_per_head:
                continue
            if not over_inputs and len(found.query.columns) > self.max_heads:
                ctx.missed("neither over inputs nor per head is it cheaper", attention.output)
                continue
            if not rw.site(attention.output):
                continue
            where = site_of(attention.output)
            with rw.before(attention.output):
                result = _over_inputs(rw, found) if over_inputs else _per_head(rw, found)
            for end, order in found.ends:
                with rw.before(end):
                    rw.replace(end, rw.arrange(result, order, end))
            form = "over the inputs of its keys and values" if over_inputs else "head by head"
            ctx.applied(f"computed attention {form}", where)


@dataclass(frozen=True)
class _Found:
    """An attention whose heads are known, and where its result is read.

    Attributes:
        ends: The views of the result that are read, and how ``[B, Tq, heads · d]`` is permuted to
            be reshaped to each.
    """

    attention: Attention
    query: Heads
    key: Heads
    value: Heads
    ends: tuple[tuple[fx.Node, tuple[int, ...]], ...]

    @property
    def lengths(self) -> tuple[int, int]:
        """How many queries and keys an example has."""
        return _length(self.query), _length(self.key)

    @property
    def is_per_head(self) -> bool:
        """Whether its one head has products of its own already."""
        linears = self.query.linear, self.value.linear
        return len(self.query.columns) == 1 and linears == (
            self.attention.query,
            self.attention.value,
        )

    @property
    def ratio(self) -> float:
        """Multiplications over inputs, over those as it is written."""
        queries, keys = self.lengths
        heads, inputs = len(self.query.columns), int(shape_of(self.query.rows)[-1])
        of_key, of_value = (int(shape_of(h.rows)[-1]) for h in (self.key, self.value))
        deep, wide = (len(torch.cat(h.columns)) for h in (self.key, self.value))
        before = queries * inputs * deep + keys * (of_key * deep + of_value * wide)
        before += queries * keys * (deep + wide)
        after = heads * queries * (inputs * of_key + keys * (of_key + of_value))
        outputs = self._outputs(wide)
        before += queries * wide * (outputs or 0)
        after += heads * queries * of_value * (outputs or wide)
        return after / before

    def _outputs(self, wide: int) -> int | None:
        """Of the linear that alone reads the heads side by side, if one does."""
        (end, _), *others = self.ends
        reader = next(iter(end.users))
        if others or len(end.users) > 1 or shape_of(end)[-1] != wide or not is_plain_linear(reader):
            return None
        return int(shape_of(reader)[-1])


def _length(heads: Heads) -> int:
    shape = shape_of(heads.rows)
    return int(shape[1]) if len(shape) == 3 else 1


def _found(program: Program, attention: Attention) -> _Found | str:
    views = ViewTracer(program)
    query = heads_of(views, attention.query)
    key = heads_of(views, attention.key, turned=attention.turned)
    value = heads_of(views, attention.value)
    if query is None or key is None or value is None:
        return "its queries, keys or values aren't heads of linears over rows"
    if not query.places == key.places == value.places:
        return "its queries, keys and values are cut into heads differently"
    if dtype_of(attention.output) != torch.float32:
        return "it isn't in fp32"
    if any(not _fits_all_heads(mask) for mask in attention.masks):
        return "its mask differs from head to head or from query to query"
    depth = int(shape_of(attention.output)[-1])
    ends = []
    for end in views.ends(attention.output):
        source = views.source(end)
        order = source and side_by_side(source, query, _length(query), depth)
        if not order:
            return "its heads aren't put side by side again"
        ends.append((end, order))
    return _Found(attention, query, key, value, tuple(ends))


def _fits_all_heads(mask: fx.Node) -> bool:
    """Whether the mask is ``[Tk]``, or has one row for all queries and heads of an example."""
    shape = shape_of(mask.args[1])
    return all(size == 1 for size in (shape[1:-1] if len(shape) > 3 else shape[:-1]))


def _weights(rw: Rewriter, heads: Heads) -> tuple[Tensor, Tensor]:
    """The linear's weight ``[N, K]`` and bias ``[N]`` in fp64."""
    weight = rw.program.tensor(str(heads.linear.args[1].target)).double()  # type: ignore[union-attr]
    bias = argument(heads.linear, 2, "bias")
    if bias is None:
        return weight, weight.new_zeros(len(weight))
    return weight, rw.program.tensor(str(bias.target)).double()


def _has_bias(*linears: Heads) -> bool:
    return any(argument(heads.linear, 2, "bias") is not None for heads in linears)


def _linear(
    rw: Rewriter, source: fx.Node, heads: Heads, weight: Tensor, bias: Tensor | None
) -> fx.Node:
    """A linear with new weights, over rows ``[B, T, K]``."""
    name = str(heads.linear.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    dtype = dtype_of(heads.linear)
    arguments = [source, rw.parameter(f"{name}_recast", weight.to(dtype))]
    if bias is not None:
        arguments.append(rw.parameter(f"{name}_recast_bias", bias.to(dtype)))
    return rw.emit(_aten.linear.default, *arguments, like=heads.linear)


def _in_rows(rw: Rewriter, heads: Heads) -> fx.Node:
    rows = heads.rows
    if len(shape_of(rows)) == 3:
        return rows
    return rw.emit(_aten.unsqueeze.default, rows, 1, like=heads.linear)


def _masked(rw: Rewriter, attention: Attention, scores: fx.Node) -> fx.Node:
    """The masks again, on scores ``[B, rows, Tk]``."""
    for mask in attention.masks:
        other: Any = mask.args[1]
        if len(shape_of(other)) == 4:
            other = rw.emit(_aten.squeeze.dims, other, [1], like=mask)
        scores = rw.emit(mask.target, scores, other, *mask.args[2:], like=mask)
    return scores


def _attend(
    rw: Rewriter, attention: Attention, query: fx.Node, key: fx.Node, value: fx.Node
) -> fx.Node:
    like = attention.output
    turned = rw.emit(_aten.transpose.int, key, 1, 2, like=like)
    scores = rw.emit(_aten.matmul.default, query, turned, like=like)
    weights = rw.emit(_aten.softmax.int, _masked(rw, attention, scores), -1, like=like)
    return rw.emit(_aten.matmul.default, weights, value, like=like)


def _over_inputs(rw: Rewriter, found: _Found) -> fx.Node:
    """``softmax((x Q Kᵀ) yᵀ) y V``; a head's queries are rows beside those of the others."""
    query, key, value, like = found.query, found.key, found.value, found.attention.output
    (wide_q, bias_q), (wide_k, _) = _weights(rw, query), _weights(rw, key)
    weights, biases = [], []
    for own, other in zip(query.columns, key.columns, strict=True):
        turned = found.attention.scale * wide_k[other].T
        weights.append(turned @ wide_q[own])
        biases.append(turned @ bias_q[own])
    bias = torch.cat(biases) if _has_bias(query) else None
    projected = _linear(rw, _in_rows(rw, query), query, torch.cat(weights), bias)
    heads, inputs = len(weights), int(shape_of(key.rows)[-1])
    sizes = [-1, found.lengths[0] * heads, inputs]
    rows = projected if heads == 1 else rw.emit(_aten.reshape.default, projected, sizes, like=like)
    mixed = _attend(rw, found.attention, rows, _in_rows(rw, key), _in_rows(rw, value))
    sizes = [-1, found.lengths[0], heads * int(shape_of(value.rows)[-1])]
    side = mixed if heads == 1 else rw.emit(_aten.reshape.default, mixed, sizes, like=like)
    wide_v, bias_v = _weights(rw, value)
    blocks: Tensor = torch.block_diag(*(wide_v[own] for own in value.columns))  # type: ignore[no-untyped-call]
    bias = bias_v[torch.cat(value.columns)] if _has_bias(value) else None
    return _linear(rw, side, value, blocks, bias)


def _per_head(rw: Rewriter, found: _Found) -> fx.Node:
    """Each head by itself, from linears of its own."""
    results = []
    for head in range(len(found.query.columns)):
        query = _head(rw, found.query, head, found.attention.scale)
        key, value = (_head(rw, heads, head, 1.0) for heads in (found.key, found.value))
        results.append(_attend(rw, found.attention, query, key, value))
    if len(results) == 1:
        return results[0]
    return rw.emit(_aten.cat.default, results, -1, like=found.attention.output)


def _head(rw: Rewriter, heads: Heads, head: int, scale: float) -> fx.Node:
    weight, bias = _weights(rw, heads)
    columns = heads.columns[head]
    own = scale * bias[columns] if _has_bias(heads) else None
    return _linear(rw, _in_rows(rw, heads), heads, scale * weight[columns], own)
