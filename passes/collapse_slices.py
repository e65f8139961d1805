"""collapse-slices: pieces of one tensor that are put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules, sweep
from ..optimizer.ir.pattern import argument, is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class CollapseSlices(Pass):
    """Replaces neighbouring slices of one tensor, stacked or concatenated, by one slice of it.

    ``stack([x[:, 0], x[:, 1]], 1)`` is ``x[:, 0:2]``, and ``cat([x[:, 0], x[:, 1]], 1)`` is that
    flattened. Pieces of other tensors in the same list stay where they are. A concatenation in a
    concatenation, flattened or not, becomes part of it.

    Exact because: no value is computed, the same ones are read in the same order. It is declared
    rounding since a slice has other strides than a copy, and torch chooses its kernels by them.
    Requires: CANONICAL.
    Misses when: the pieces aren't neighbours, or come along another dimension.
    """

    name: ClassVar[str] = "collapse-slices"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rules, and takes the joins they left apart."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        collapsed = apply_rules((_Stack(), _Concat()), rw, missed)
        sweep(program)  # what is dead would still count as a user
        collapsed += apply_rules((_Nested(),), rw, missed)
        if collapsed:
            ctx.applied(f"put {collapsed} lists of pieces together again")


@dataclass(frozen=True)
class _Run:
    """Neighbouring selects ``source[:, start:stop]`` in a list of parts.

    A part that is no select is a run of its own, with ``source`` the part and no range.
    """

    source: fx.Node
    start: int | None
    stop: int | None


def _runs(parts: list[Any]) -> list[_Run] | None:
    """The parts with neighbouring selects of dimension 1 joined; None if none join."""
    runs: list[_Run] = []
    for part in parts:
        if not isinstance(part, fx.Node):
            return None
        piece = _Run(part, None, None)
        if is_op(part, _aten.select.int) and part.args[1] == 1 and isinstance(part.args[2], int):
            source, index = part.args[0], part.args[2]
            assert isinstance(source, fx.Node)
            piece = _Run(source, index, index + 1)
            last = runs[-1] if runs else None
            if last is not None and last.source is source and last.stop == index:
                runs[-1] = _Run(source, last.start, index + 1)
                continue
        runs.append(piece)
    return runs if len(runs) < len(parts) else None


def _slice(rw: Rewriter, run: _Run, like: fx.Node) -> fx.Node:
    """``source[:, start:stop]``, or the source where that is all of it."""
    if run.start == 0 and shape_of(run.source)[1] == run.stop:
        return run.source
    return rw.emit(_aten.slice.Tensor, run.source, 1, run.start, run.stop, like=like)


def _select_again(rw: Rewriter, run: _Run, like: fx.Node) -> fx.Node:
    """A run of one select, as it was."""
    return rw.emit(_aten.select.int, run.source, 1, run.start, like=like)


class _Stack(Rule):
    """Replaces stack([…, x[:, i], x[:, i + 1], …], 1) by a cat of slices of x."""

    roots = (_aten.stack.default,)

    def match(self, node: fx.Node) -> Any:
        if argument(node, 1, "dim", 0) not in (1, 1 - len(shape_of(node))):
            return None
        return _runs(list(node.args[0]))  # type: ignore[arg-type]

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        pieces = [
            rw.emit(_aten.unsqueeze.default, run.source, 1, like=node)
            if run.start is None
            else _slice(rw, run, node)
            for run in found
        ]
        if len(pieces) > 1:
            return rw.emit(_aten.cat.default, pieces, 1, like=node)
        rw.replace(node, pieces[0])
        return None


class _Concat(Rule):
    """Replaces cat([…, x[:, i], x[:, i + 1], …], 1) by a cat of flattened slices of x."""

    roots = (_aten.cat.default,)

    def match(self, node: fx.Node) -> Any:
        if len(shape_of(node)) != 2 or argument(node, 1, "dim", 0) not in (1, -1):
            return None
        return _runs(list(node.args[0]))  # type: ignore[arg-type]

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        pieces: list[fx.Node] = []
        for run in found:
            if run.start is None:
                pieces.append(run.source)
            elif run.stop == run.start + 1:
                pieces.append(_select_again(rw, run, node))
            else:
                part = _slice(rw, run, node)
                _, count, width = shape_of(part)
                # The batch is what -1 stands for.
                pieces.append(rw.emit(_aten.reshape.default, part, [-1, count * width], like=node))
        return rw.emit(_aten.cat.default, pieces, 1, like=node) if len(pieces) > 1 else pieces[0]


class _Nested(Rule):
    """Replaces cat([…, cat([x, y], 1), …], 1), flattened or not, by cat([…, x, y, …], 1)."""

    roots = (_aten.cat.default,)

    def match(self, node: fx.Node) -> Any:
        if argument(node, 1, "dim", 0) not in (1, 1 - len(shape_of(node))):
            return None
        inner = [_inner(part, node) for part in node.args[0]]  # type: ignore[union-attr]
        return inner if any(parts is not None for parts in inner) else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        parts: list[fx.Node] = []
        for part, inner in zip(node.args[0], found, strict=True):  # type: ignore[arg-type]
            for piece in inner or (part,):
                shape = shape_of(piece)
                if len(shape) > len(shape_of(node)):
                    piece = rw.emit(
                        _aten.reshape.default, piece, [-1, shape[1] * shape[2]], like=node
                    )
                parts.append(piece)
        return rw.emit(_aten.cat.default, parts, 1, like=node)


def _inner(part: Any, node: fx.Node) -> list[fx.Node] | None:
    """The parts of a concatenation that only ``node`` reads, flattened or not."""
    source = part
    if is_op(part, _aten.reshape.default) and len(shape_of(node)) == 2 and len(part.users) == 1:
        source = part.args[0]
        flat = len(shape_of(source)) == 3 and all(isinstance(s, int) for s in shape_of(source)[1:])
        if not flat or shape_of(part)[1:] != (shape_of(source)[1] * shape_of(source)[2],):
            return None
    if not is_op(source, _aten.cat.default) or len(source.users) > 1:
        return None
    along = argument(source, 1, "dim", 0) in (1, 1 - len(shape_of(source)))
    return list(source.args[0]) if along else None
