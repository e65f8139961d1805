"""canonicalize: one way to write each thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.ir import Form, Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.forms import is_noise
from ..optimizer.ir.pattern import BINARY, argument, dtype_of, is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_END = 2**63 - 1


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Replaces operators that change nothing by their input, and spells views one way.

    Exact because: only copies, assertions and views that move no value are touched. It is declared
    rounding since a copy also sets strides, and torch chooses its kernels by them.
    Requires: CAPTURED.
    Misses when: never; what it doesn't know it leaves.
    """

    name: ClassVar[str] = "canonicalize"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    requires: ClassVar[Form] = Form.CAPTURED
    produces: ClassVar[Form | None] = Form.CANONICAL

    def run(self, program: Program, ctx: PassContext) -> None:
        """Removes noise, then applies the view rules."""
        rw = ctx.rewriter(program)
        removed = _remove_noise(rw)
        rules = (_SameShape(), _DoubleView(), _DoubleTranspose(), _IdleExpand(), _ListIndex())
        views = apply_rules(rules, rw, _ignore)
        _spell_views(rw)
        if removed or views:
            ctx.applied(f"removed {removed} operators that compute nothing and {views} idle views")
        elif not program.form.includes(Form.CANONICAL):
            ctx.applied("checked that there is nothing to remove")


def _ignore(rule: Rule, node: fx.Node, miss: Miss) -> None:
    """These rules have no near misses worth telling."""


def _remove_noise(rw: Rewriter) -> int:
    """Noise can't be left standing by a limit: later passes require the canonical form."""
    removed = 0
    for node in list(rw.program.graph.nodes):
        if node.op != "call_function" or not is_noise(node.target):
            continue
        if node.users:
            node.replace_all_uses_with(node.args[0])
        rw.erase(node)
        removed += 1
    return removed


def _spell_views(rw: Rewriter) -> None:
    """Writes every view as a reshape whose one dynamic size is -1.

    A view needs strides that a removed copy may have made; a size that is computed costs nodes.
    """
    for node in list(rw.program.graph.nodes):
        if not is_op(node, _aten.view.default, _aten.reshape.default):
            continue
        sizes = list(node.args[1])
        dynamic = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
        if len(dynamic) == 1 and -1 not in sizes and 0 not in sizes:
            sizes[dynamic[0]] = -1
        elif is_op(node, _aten.reshape.default):
            continue
        with rw.before(node):
            reshape = rw.emit(_aten.reshape.default, node.args[0], sizes, like=node)
        rw.replace(node, reshape)


class _SameShape(Rule):
    """Replaces a view, slice, expand or cast that changes neither shape nor dtype by its input."""

    roots = (
        _aten.view.default,
        _aten.reshape.default,
        _aten.slice.Tensor,
        _aten.expand.default,
        _aten._to_copy.default,
        _aten.squeeze.dims,
        _aten.squeeze.dim,
        _aten.permute.default,
        _aten.add.Tensor,
        _aten.mul.Tensor,
    )

    def match(self, node: fx.Node) -> Any:
        source = node.args[0]
        if not isinstance(source, fx.Node) or "val" not in source.meta:
            return None
        if not _same_shape(source, node) or dtype_of(source) != dtype_of(node):
            return None
        return source if _moves_nothing(node) else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        rw.replace(node, found)
        return None


def _same_shape(left: fx.Node, right: fx.Node) -> bool:
    """Whether the shapes agree at every batch: a symbol equals a number only by the example."""
    return [str(size) for size in shape_of(left)] == [str(size) for size in shape_of(right)]


def _moves_nothing(node: fx.Node) -> bool:
    if is_op(node, _aten.slice.Tensor):
        start, step = argument(node, 2, "start", 0), argument(node, 4, "step", 1)
        return start in (0, None) and step == 1
    if is_op(node, _aten.permute.default):
        dims = list(argument(node, 1, "dims"))
        return dims == list(range(len(dims)))
    if is_op(node, _aten.mul.Tensor):
        # x * 1 is x; x + 0 isn't (it turns -0.0 into 0.0), so it stays.
        return isinstance(node.args[1], (int, float)) and node.args[1] == 1
    return not is_op(node, _aten.add.Tensor)


class _DoubleView(Rule):
    """Replaces a view of a view by one view."""

    roots = (_aten.view.default, _aten.reshape.default)

    def match(self, node: fx.Node) -> Any:
        source = node.args[0]
        return source.args[0] if is_op(source, *self.roots) else None  # type: ignore[union-attr]

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        if _same_shape(found, node):
            rw.replace(node, found)
            return None
        return rw.emit(_aten.reshape.default, found, node.args[1], like=node)


class _DoubleTranspose(Rule):
    """Replaces a transpose of the same transpose by the input."""

    roots = (_aten.transpose.int,)

    def match(self, node: fx.Node) -> Any:
        source = node.args[0]
        if not is_op(source, _aten.transpose.int):
            return None
        assert isinstance(source, fx.Node)
        rank = len(shape_of(source))
        same = {d % rank for d in node.args[1:3]} == {d % rank for d in source.args[1:3]}  # type: ignore[operator]
        return source.args[0] if same else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        rw.replace(node, found)
        return None


class _IdleExpand(Rule):
    """Replaces ``x.expand(y.shape) * y`` by ``x * y``, which broadcasts by itself."""

    roots = BINARY

    def match(self, node: fx.Node) -> Any:
        if len(node.args) != 2 or node.kwargs:
            return None
        for place, other in ((0, 1), (1, 0)):
            expand, whole = node.args[place], node.args[other]
            if not is_op(expand, _aten.expand.default) or not isinstance(whole, fx.Node):
                continue
            assert isinstance(expand, fx.Node)
            source = expand.args[0]
            ranks = len(shape_of(source)) == len(shape_of(expand))
            if ranks and _same_shape(whole, node) and dtype_of(source) == dtype_of(node):
                return place, source
        return None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        place, source = found
        operands = [source if place == at else operand for at, operand in enumerate(node.args)]
        return rw.emit(node.target, *operands, like=node)


class _ListIndex(Rule):
    """Replaces ``x[:, …, ids]``, ids one constant list, by an index_select.

    ONNX has a Gather for it, where an index is exported as two transposes and a GatherND.
    """

    roots = (_aten.index.Tensor,)

    def match(self, node: fx.Node) -> Any:
        indices: Any = node.args[1]
        given = [dim for dim, index in enumerate(indices) if index is not None]
        if len(given) != 1 or given[0] == 0 or parameter_name(indices[given[0]]) is None:
            return None
        ids, size = indices[given[0]], shape_of(node.args[0])[given[0]]
        listed = len(shape_of(ids)) == 1 and dtype_of(ids) == torch.int64
        return (given[0], ids, size) if listed and isinstance(size, int) else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        dim, ids, size = found
        values = rw.program.tensor(str(ids.target))
        if bool((values < 0).any()):
            ids = rw.parameter(f"{ids.name}_counted", values % size)
        return rw.emit(_aten.index_select.default, node.args[0], dim, ids, like=node)
