"""collapse-crosses: the cross layers of DCN as a few numbers per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, fx

from ..optimizer.analysis.interactions import matrix_crosses
from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.analysis.views import MOVES, ViewTracer
from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.operators import moves
from ..optimizer.ir.pattern import argument, dtype_of, is_op, parameter_name, shape_of
from ..optimizer.ir.traits import Move
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext
from ..optimizer.report.records import Kind

_aten = torch.ops.aten
#: Views that keep elements in order, where they keep their number.
_VIEWS = MOVES & ~Move.PICK


@dataclass(frozen=True)
class CollapseCrosses(Pass):
    """Replaces DCN's cross layers ``x' = x0 (w · x) + b + x`` by ``a x0 + c``, a a number per row.

    By induction every layer's output is ``a x0 + c``, with c constant: ``w · x`` is ``a (w · x0) +
    w · c``, so that ``a' = a + a (w · x0) + w · c`` and ``c' = c + b``. All ``w · x0`` are one
    linear, and what a linear of one output makes of the result takes no more than a and x0 either.

    For DCN (1708.05123), however its layers are written.
    Exact because: it is the same polynomial of the same values, factored.
    Pays because: three passes over the input's width a layer become two in all. Six layers of 1027
    inputs on one thread of ONNX Runtime at batch 512: 18 ms of the model's 54.
    Requires: CANONICAL.
    Misses when: there are fewer than ``min_layers``, or layers' outputs are used elsewhere too.
    """

    name: ClassVar[str] = "collapse-crosses"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_layers: int = 2

    def run(self, program: Program, ctx: PassContext) -> None:
        """Tries every value that a linear makes one number of."""
        for node in matrix_crosses(program):
            ctx.remark(Kind.ANALYSIS, "a cross layer with a matrix, which doesn't collapse", node)
        rw = ctx.rewriter(program)
        tried: set[fx.Node] = set()
        for node in program.graph.find_nodes(op="call_function", target=_aten.linear.default):
            x0 = None if node._erased or not is_plain_linear(node) else _root(program, node)
            if x0 is None or x0 in tried:
                continue
            tried.add(x0)
            chain = _Chain(program, x0)
            if len(chain.crosses) < self.min_layers:
                continue
            sites = list(dict.fromkeys(site_of(cross) for cross in chain.crosses))
            if not chain.pays:
                ctx.missed("the outputs of its cross layers are used elsewhere too", *sites)
            elif rw.site(node):
                chain.rewrite(rw)
                ctx.applied(f"collapsed {len(chain.crosses)} cross layers to numbers", *sites)


def _root(program: Program, linear: fx.Node) -> fx.Node | None:
    """The rows ``[B, W]`` that a linear of one output makes a number of, behind their views."""
    if int(shape_of(linear.args[1])[0]) != 1:
        return None
    source = ViewTracer(program).source(linear.args[0])
    for rows in (source.base if source and source.is_whole else None, linear.args[0]):
        shape = shape_of(rows) if isinstance(rows, fx.Node) else ()
        if len(shape) == 2 and isinstance(shape[1], int) and not isinstance(shape[0], int):
            assert isinstance(rows, fx.Node)
            return rows if dtype_of(rows) == torch.float32 else None
    return None


@dataclass(frozen=True, eq=False)
class _Number:
    """A number per row: ``w · x0``, a constant, or a sum or product of two."""

    kind: str
    parts: tuple[Any, ...]


_ONE = _Number("constant", (1.0,))
#: a and c of ``a x0 + c``; c is None for zero.
_Form: TypeAlias = tuple[_Number, Tensor | None]


@dataclass
class _Chain:
    """What is known of the values after x0."""

    program: Program
    x0: fx.Node
    forms: dict[fx.Node, _Form] = field(default_factory=dict)
    numbers: dict[fx.Node, _Number] = field(default_factory=dict)
    rows: list[Tensor] = field(default_factory=list)
    crosses: list[fx.Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forms[self.x0] = (_ONE, None)
        for node in self.program.graph.nodes:
            if node.op != "call_function" or not self._knows(node.all_input_nodes):
                continue
            found = self._read(node)
            if isinstance(found, _Number) and _has_sizes(node, shape_of(self.x0)[:1]):
                self.numbers[node] = found
            elif isinstance(found, tuple) and _has_sizes(node, shape_of(self.x0)):
                self.forms[node] = found

    def _knows(self, inputs: Sequence[fx.Node]) -> bool:
        return any(i in self.forms or i in self.numbers for i in inputs)

    def _read(self, node: fx.Node) -> _Form | _Number | None:
        """What the node's value is, or None if it is neither a form nor a number."""
        first: Any = node.args[0]
        if moves(node, _VIEWS) and isinstance(first, fx.Node):
            return self.forms.get(first) or self.numbers.get(first)
        if is_plain_linear(node) and first in self.forms:
            if tuple(shape_of(node.args[1])) != (1, shape_of(self.x0)[1]):
                return None
            return self._dot(node, self.forms[first])
        if node.kwargs or len(node.args) != 2:
            return None
        if is_op(node, _aten.mul.Tensor) or _is_outer_product(node):
            return self._product(node)
        return self._sum(node) if is_op(node, _aten.add.Tensor) else None

    def _dot(self, node: fx.Node, form: _Form) -> _Number:
        weight, offset = self._constant(node.args[1]), 0.0
        scale, constant = form
        self.rows.append(weight)
        made = _Number("linear", (len(self.rows) - 1,))
        made = made if scale is _ONE else _Number("product", (scale, made))
        if constant is not None:
            offset += float(weight @ constant)
        bias = argument(node, 2, "bias")
        if bias is not None:
            offset += float(self._constant(bias))
        return _plus(made, offset)

    def _product(self, node: fx.Node) -> _Form | _Number | None:
        for one, other in (node.args, node.args[::-1]):
            number = self.numbers.get(other)  # type: ignore[arg-type]
            if number is None:
                continue
            if one in self.numbers:
                return _Number("product", (number, self.numbers[one]))  # type: ignore[index]
            if one in self.forms and self.forms[one][1] is None:  # type: ignore[index]
                self.crosses.append(node)
                scale = self.forms[one][0]  # type: ignore[index]
                return (number if scale is _ONE else _Number("product", (scale, number))), None
        return None

    def _sum(self, node: fx.Node) -> _Form | _Number | None:
        one, other = node.args
        if one in self.numbers and other in self.numbers:
            return _Number("sum", (self.numbers[one], self.numbers[other]))  # type: ignore[index]
        if one in self.forms and other in self.forms:
            (a, c), (b, d) = self.forms[one], self.forms[other]  # type: ignore[index]
            both = c if d is None else d if c is None else c + d
            return _Number("sum", (a, b)), both
        for known, constant in (node.args, node.args[::-1]):
            value = self._added(constant)
            if value is None:
                continue
            if known in self.numbers and value.numel() == 1:
                return _plus(self.numbers[known], float(value))  # type: ignore[index]
            if known in self.forms and value.numel() == shape_of(self.x0)[1]:
                scale, sofar = self.forms[known]  # type: ignore[index]
                return scale, value if sofar is None else sofar + value
        return None

    def _added(self, value: Any) -> Tensor | None:
        if isinstance(value, (int, float)):
            return torch.tensor([float(value)], dtype=torch.float64)
        return self._constant(value) if parameter_name(value) else None

    def _constant(self, node: Any) -> Tensor:
        return self.program.tensor(str(node.target)).double().flatten()

    @property
    def outside(self) -> list[fx.Node]:
        """Values that something else reads, in graph order."""
        known = {**self.forms, **self.numbers}
        return [n for n in known if n is not self.x0 and any(u not in known for u in n.users)]

    @property
    def pays(self) -> bool:
        """Whether fewer passes over x0's width are left."""
        spared = sum(not moves(node, MOVES) for node in self.forms) - 1
        left = [self.forms[node] for node in self.outside if node in self.forms]
        return sum(1 + (constant is not None) for _, constant in left) < spared

    def rewrite(self, rw: Rewriter) -> None:
        """Emits what is read outside, after x0."""
        base = self.crosses[0].name.replace(".", "_")
        weight = rw.parameter(f"{base}_crosses", torch.stack(self.rows).float())
        first = next(node for node in (*self.numbers, *self.forms) if node is not self.x0)
        outside = self.outside
        with rw.before(first):
            dots = rw.emit(_aten.linear.default, self.x0, weight, like=self.crosses)
            emitted = _Emitted(rw, dots, self.crosses)
            made = {node: self._emit(rw, emitted, node) for node in outside}
        for node, value in made.items():
            rw.replace(node, value)

    def _emit(self, rw: Rewriter, emitted: _Emitted, node: fx.Node) -> fx.Node:
        order = range(2)
        if node in self.numbers:
            return rw.arrange(emitted.number(self.numbers[node]), order, node)
        scale, constant = self.forms[node]
        made = self.x0
        if scale is not _ONE:
            made = rw.emit(_aten.mul.Tensor, made, emitted.number(scale), like=node)
        if constant is not None:
            offset = rw.parameter(f"{node.name}_offset", constant.float())
            made = rw.emit(_aten.add.Tensor, made, offset, like=node)
        return rw.arrange(made, order, node)


def _is_outer_product(node: fx.Node) -> bool:
    """Whether a matrix product adds nothing up, as of a column ``[B, W, 1]`` and a number."""
    products = (_aten.matmul.default, _aten.bmm.default)
    return is_op(node, *products) and shape_of(node.args[0])[-1] == 1


def _has_sizes(node: fx.Node, sizes: Sequence[Any]) -> bool:
    """Whether a value has these sizes, besides dimensions of size 1."""
    if not isinstance(node.meta.get("val"), Tensor):
        return False
    left, right = ([str(s) for s in each if s != 1] for each in (shape_of(node), sizes))
    return left == right


def _plus(number: _Number, offset: float) -> _Number:
    return number if offset == 0.0 else _Number("sum", (number, _Number("constant", (offset,))))


class _Emitted:
    """Numbers as values ``[B, 1]``, each emitted once."""

    def __init__(self, rw: Rewriter, dots: fx.Node, like: Sequence[fx.Node]) -> None:
        self._rw, self._like = rw, like
        self._done: dict[_Number, fx.Node] = {}
        count = int(shape_of(dots)[1])
        self._dots = [
            dots
            if count == 1
            else rw.emit(_aten.slice.Tensor, dots, 1, index, index + 1, like=like)
            for index in range(count)
        ]

    def number(self, wanted: _Number) -> fx.Node:
        """The value of a number that isn't constant."""
        found = self._emit(wanted)
        assert isinstance(found, fx.Node)
        return found

    def _emit(self, wanted: _Number) -> fx.Node | float:
        if wanted.kind == "constant":
            return float(wanted.parts[0])
        if wanted.kind == "linear":
            index: int = wanted.parts[0]
            return self._dots[index]
        if wanted not in self._done:
            one, other = (self._emit(part) for part in wanted.parts)
            if not isinstance(one, fx.Node):
                one, other = other, one
            target = _aten.add.Tensor if wanted.kind == "sum" else _aten.mul.Tensor
            self._done[wanted] = self._rw.emit(target, one, other, like=self._like)
        return self._done[wanted]
