"""split-sides: a linear over values of fewer rows and of more, computed apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Program, Rewriter, site_of, sweep
from ..optimizer.ir.ops import REQUEST_BROADCAST
from ..optimizer.ir.pattern import argument, is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_JOINS = (_aten.cat.default, _aten.stack.default)


@dataclass(frozen=True)
class SplitSides(Pass):
    """Replaces a linear over values that repeat along rows by a linear each, added up.

    Method: the user's columns of the weight see the user once a request, the candidate's see the
    candidate (FBGEMM's IKBO, "linear compress"); in target attention over ``[q, h, q - h, q * h]``
    only the product needs every pair of a candidate and an item of the history.
    Exact because: ``W [u, i] = W_u u + W_i i`` and ``W (q - h) = W q - W h``. The sums are taken in
    another order.
    Pays because: what repeats isn't multiplied again. At 512 candidates a linear of 448 to 512
    columns, 256 of them the user's, takes 0.45 of the time; the broadcast addition costs as much as
    some 16 columns (one thread).
    Requires: CANONICAL.
    Misses when: fewer than ``min_columns`` columns repeat.
    """

    name: ClassVar[str] = "split-sides"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_columns: int = 16

    def run(self, program: Program, ctx: PassContext) -> None:
        """Visits the linears in graph order."""
        rw = ctx.rewriter(program)
        split = []
        for node in list(program.graph.find_nodes(op="call_function", target=_aten.linear.default)):
            if not is_plain_linear(node):
                continue
            groups = _grouped(node)
            saved = sum(group.width for group in groups if group.rows != _rows(node.args[0]))
            if saved == 0:
                continue
            if saved < self.min_columns:
                ctx.missed("too few of its columns repeat along rows", node)
                continue
            if not rw.site(node):
                continue
            split.append(site_of(node))
            _split(rw, node, groups)
            sweep(program)
        if split:
            ctx.applied(f"split {len(split)} linears by how often their columns repeat", *split)


@dataclass(frozen=True)
class _Term:
    """A value that some columns of a weight see, once in every row of the linear's input.

    Attributes:
        value: ``[…, width]``; its leading sizes are the input's, or 1.
        start: The first of the columns.
        sign: 1 or -1.
    """

    value: fx.Node
    start: int
    sign: int = 1

    @property
    def width(self) -> int:
        return int(shape_of(self.value)[-1])


@dataclass
class _Group:
    """Terms that repeat alike, each value once."""

    rows: tuple[str, ...]
    terms: dict[fx.Node, list[_Term]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return sum(int(shape_of(value)[-1]) for value in self.terms)


def _rows(node: Any) -> tuple[str, ...]:
    return tuple(str(size) for size in shape_of(node)[:-1])


def _grouped(linear: fx.Node) -> list[_Group]:
    """The linear's input by how often its parts repeat; what repeats most comes last."""
    source = linear.args[0]
    assert isinstance(source, fx.Node)
    groups: dict[tuple[str, ...], _Group] = {}
    for term in _terms(_Term(source, 0)):
        rows = _rows(term.value)
        group = groups.setdefault(rows, _Group(rows))
        group.terms.setdefault(term.value, []).append(term)
    return sorted(groups.values(), key=lambda group: group.rows.count("1"))


def _terms(term: _Term) -> Iterator[_Term]:
    """The parts of a value that columns see apart, with repetition taken off."""
    node, rank = term.value, len(shape_of(term.value))
    if is_op(node, REQUEST_BROADCAST.op, _aten.expand.default) and _only_repeats(node):
        yield from _terms(_Term(node.args[0], term.start, term.sign))  # type: ignore[arg-type]
    elif is_op(node, _aten.cat.default) and argument(node, 1, "dim", 0) % rank == rank - 1:
        start = term.start
        for part in node.args[0]:  # type: ignore[union-attr]
            yield from _terms(_Term(part, start, term.sign))  # type: ignore[arg-type]
            start += int(shape_of(part)[-1])
    elif is_op(node, _aten.add.Tensor, _aten.sub.Tensor) and _adds_repeated(node):
        minus = -1 if is_op(node, _aten.sub.Tensor) else 1
        yield from _terms(_Term(node.args[0], term.start, term.sign))  # type: ignore[arg-type]
        yield from _terms(_Term(node.args[1], term.start, term.sign * minus))  # type: ignore[arg-type]
    else:
        yield term


def _only_repeats(node: fx.Node) -> bool:
    """Whether a broadcast leaves the columns and the number of dimensions as they are."""
    source = shape_of(node.args[0])
    return len(source) == len(shape_of(node)) and source[-1] == shape_of(node)[-1]


def _adds_repeated(node: fx.Node) -> bool:
    """Whether it adds values as wide as itself, of which one repeats along rows."""
    operands = node.args
    if node.kwargs or len(operands) != 2 or not all(isinstance(n, fx.Node) for n in operands):
        return False
    if any(n.op == "get_attr" for n in node.all_input_nodes):
        return False
    fits = all(
        len(shape_of(n)) == len(shape_of(node)) and shape_of(n)[-1] == shape_of(node)[-1]
        for n in operands
    )
    return fits and any(
        _rows(term.value) != _rows(node)
        for n in operands
        for term in _terms(_Term(n, 0))  # type: ignore[arg-type]
    )


def _split(rw: Rewriter, linear: fx.Node, groups: Sequence[_Group]) -> None:
    weight = rw.program.tensor(str(linear.args[1].target))  # type: ignore[union-attr]
    bias = argument(linear, 2, "bias")
    base = str(linear.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    with rw.before(linear):
        total: fx.Node | None = None
        for index, group in enumerate(groups):
            columns = torch.cat([_columns(weight, terms) for terms in group.terms.values()], dim=1)
            values = list(group.terms)
            joined = (
                rw.emit(_aten.cat.default, values, -1, like=linear) if values[1:] else values[0]
            )
            arguments = [joined, rw.parameter(f"{base}_part", columns.to(weight.dtype))]
            if bias is not None and index == len(groups) - 1:
                arguments.append(bias)
            part = rw.emit(_aten.linear.default, *arguments, like=linear)
            total = part if total is None else rw.emit(_aten.add.Tensor, total, part, like=linear)
        assert total is not None
        if _rows(total) != _rows(linear):
            sizes = [size if isinstance(size, int) else -1 for size in shape_of(linear)]
            total = rw.emit(_aten.expand.default, total, sizes, like=linear)
    rw.replace(linear, total)


def _columns(weight: Tensor, terms: Sequence[_Term]) -> Tensor:
    """The weight of a value: of all the columns that see it, added up."""
    parts = [t.sign * weight[:, t.start : t.start + t.width].double() for t in terms]
    return torch.stack(parts).sum(0) if parts[1:] else parts[0]
