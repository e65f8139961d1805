"""split-linears: a linear over a concatenation, where its parts repeat one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import argument, dtype_of, is_op, shape_of, size_at
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class SplitLinears(Pass):
    """Replaces ``linear(cat([x, y, x - y, x · y]))`` by linears of x, y and x · y, summed.

    A part that is a sum or difference of others needs no weights of its own, and one that is the
    same for all rows of an example is multiplied once. So DIN's attention (1706.06978) over a
    candidate beside every item of a history takes half the multiplications. Where the linear has at
    most ``few_outputs`` outputs of two parts of ``min_columns`` columns or more, what is saved is
    the copy.

    Where x is the same for all L rows y of an example, ``W1 y + W2 (x · y)`` is ``(W1 + W2 diag(x))
    y``: a matrix per example and one product instead of two. That pays from ``min_rows`` rows per
    output on, unless the target has a low format for linears, which a product can't take.

    Exact because: ``W [x; y] = W1 x + W2 y``, and ``W1 (x - y) = W1 x - W1 y``.
    Pays because: 100 items of width 64, 80 outputs, one thread of ONNX Runtime, batch 1, 64, 512:
    51, 3778, 44545 us as written, 36, 1829, 20550 split, 28, 1193, 15257 with a matrix per example.
    How many times as fast a matrix per example is at batch 64, 512, by rows per output: 0.25: 0.73,
    0.60; 0.56: 1.07, 1.17; 0.63: 1.28, 1.14; 0.78: 1.40, 1.44; 1.25: 1.62, 1.42.
    Requires: CANONICAL.
    Misses when: no part repeats another and there are many outputs, or the concatenation has other
    users.
    """

    name: ClassVar[str] = "split-linears"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    few_outputs: int = 4
    min_rows: float = 0.55
    min_columns: int = 256

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rule."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        rule = _LinearOfConcat(self, per_example=not ctx.target.formats)
        split = apply_rules((rule,), rw, missed)
        if split:
            ctx.applied(f"split {split} linears over concatenations")


class _LinearOfConcat(Rule):
    """Replaces a linear over a concatenation by a sum of linears."""

    roots = (_aten.linear.default,)

    def __init__(self, options: SplitLinears, *, per_example: bool) -> None:
        self.options, self.per_example = options, per_example

    def match(self, node: fx.Node) -> Any:
        if not is_plain_linear(node):
            return None
        concat = _before_rows(node.args[0])
        if not is_op(concat, _aten.cat.default):
            return None
        rank = len(shape_of(concat))
        if argument(concat, 1, "dim", 0) not in (-1, rank - 1) or dtype_of(node) != torch.float32:
            return None
        parts: list[fx.Node] = list(concat.args[0])
        terms = _terms(parts)
        before = sum(_work(part) for part in parts)
        if sum(_work(base) for base in terms) <= 0.8 * before:
            return terms
        if int(shape_of(node)[-1]) > self.options.few_outputs or len(parts) > 2:
            return None
        if min(int(shape_of(part)[-1]) for part in parts) < self.options.min_columns:
            return None
        if len(concat.users) > 1:
            return Miss("the concatenation has other users", (concat,))
        return terms

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        weight = rw.program.tensor(str(node.args[1].target))  # type: ignore[union-attr]
        name = f"{str(node.args[1].target).replace('.', '_')}_part"  # type: ignore[union-attr]
        bias = argument(node, 2, "bias")
        made: fx.Node | None = None
        weights = {base: _columns(weight, base, places) for base, places in found.items()}
        # The smallest first, with the bias: what is added to it broadcasts it.
        for base in sorted(found, key=_work):
            if base not in weights:
                continue
            own = weights.pop(base)
            product = self._product_with(base, weights)
            if product is None:
                parameter = rw.parameter(name, own.to(weight.dtype))
                biased = [bias] if bias is not None and made is None else []
                term = rw.emit(_aten.linear.default, base, parameter, *biased, like=node)
            else:
                factor, other = product
                pair = [rw.parameter(name, w.T.contiguous().to(weight.dtype)) for w in (other, own)]
                turned = rw.emit(_aten.transpose.int, factor, 1, 2, like=node)
                scaled = rw.emit(_aten.mul.Tensor, turned, pair[0], like=node)
                matrix = rw.emit(_aten.add.Tensor, scaled, pair[1], like=node)
                term = rw.emit(_aten.matmul.default, base, matrix, like=node)
                if bias is not None and made is None:
                    made = bias
            made = term if made is None else rw.emit(_aten.add.Tensor, term, made, like=node)
        assert made is not None
        return rw.arrange(made, range(len(shape_of(made))), node)

    def _product_with(
        self, base: fx.Node, weights: dict[fx.Node, Tensor]
    ) -> tuple[fx.Node, Tensor] | None:
        """What x is, and the weights of ``x · base``, where a matrix per example pays."""
        shape = shape_of(base)
        if not self.per_example or len(shape) != 3 or not isinstance(shape[1], int):
            return None
        for other, own in weights.items():
            if not is_op(other, _aten.mul.Tensor) or base not in other.args or len(own) == 0:
                continue
            factor = next((a for a in other.args if a is not base), None)
            one = isinstance(factor, fx.Node) and factor.op != "get_attr"
            if one and shape_of(factor)[1:] == (1, shape[2]) and len(shape_of(factor)) == 3:
                assert isinstance(factor, fx.Node)
                if shape[1] >= self.options.min_rows * len(own):
                    return factor, weights.pop(other)
        return None


def _before_rows(value: Any) -> Any:
    """A value before its rows were put in one dimension, as for a BatchNorm after the linear."""
    if is_op(value, _aten.reshape.default) and len(value.users) == 1:
        source = value.args[0]
        return source if shape_of(source)[-1] == shape_of(value)[-1] else value
    return value


def _columns(weight: Tensor, base: fx.Node, places: list[tuple[int, float]]) -> Tensor:
    """The weights ``[N, d]`` in fp64 of a value that has these columns, times these factors."""
    width = int(shape_of(base)[-1])
    total = weight.new_zeros(len(weight), width, dtype=torch.float64)
    for start, factor in places:
        total += factor * weight[:, start : start + width].double()
    return total


def _terms(parts: list[fx.Node]) -> dict[fx.Node, list[tuple[int, float]]]:
    """The values the parts are sums of, each with the columns and factors it has in them."""
    terms: dict[fx.Node, list[tuple[int, float]]] = {}
    start = 0
    for part in parts:
        for base, factor in _summands(part, shape_of(part), 1.0):
            terms.setdefault(base, []).append((start, factor))
        start += int(shape_of(part)[-1])
    return terms


def _summands(
    node: fx.Node, shape: tuple[Any, ...], factor: float
) -> Iterator[tuple[fx.Node, float]]:
    """What a value is the sum of, behind expansions."""
    if is_op(node, _aten.expand.default, _aten.repeat.default):
        source = node.args[0]
        if isinstance(source, fx.Node) and _broadcasts(source, shape):
            yield from _summands(source, shape, factor)
            return
    if is_op(node, _aten.add.Tensor, _aten.sub.Tensor) and not node.kwargs:
        left, right = node.args
        if _is_summand(left, shape) and _is_summand(right, shape):
            sign = -1.0 if is_op(node, _aten.sub.Tensor) else 1.0
            yield from _summands(left, shape, factor)  # type: ignore[arg-type]
            yield from _summands(right, shape, sign * factor)  # type: ignore[arg-type]
            return
    yield node, factor


def _is_summand(value: Any, shape: tuple[Any, ...]) -> bool:
    return isinstance(value, fx.Node) and value.op != "get_attr" and _broadcasts(value, shape)


def _broadcasts(source: fx.Node, shape: tuple[Any, ...]) -> bool:
    """Whether the source has as many dimensions and columns, and the rest by broadcasting."""
    own = shape_of(source)
    if len(own) != len(shape) or own[-1] != shape[-1]:
        return False
    return all(a == 1 or str(a) == str(b) for a, b in zip(own, shape, strict=True))


def _work(base: fx.Node) -> float:
    """Multiplications per output at 64 rows."""
    return prod((size_at(size, 64) for size in shape_of(base)), start=1.0)
