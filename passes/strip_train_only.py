"""strip-train-only: heads that are only learned, and all that only they used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.analysis.cost import size_of
from ..optimizer.ir import FeatureKind, Form, Program, Rewriter, Signature, Task, site_of, sweep
from ..optimizer.ir.heads import columns_of, elementwise
from ..optimizer.ir.operators import lookup_of, moves
from ..optimizer.ir.pattern import is_op, shape_of
from ..optimizer.ir.traits import Move
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.report.records import Kind
from ..optimizer.report.report import readable_bytes

_aten = torch.ops.aten


@dataclass(frozen=True)
class StripTrainOnly(Pass):
    """Removes auxiliary heads, and every table and layer that only they used.

    Auxiliary are tasks marked so in the signature (``Task(auxiliary=True)``); names decide nothing.
    What ``outputs=`` leaves out, losses and dropout are gone when a model is captured.
    Features that nothing needs any more may be given or left out.

    Method: heads for distillation and for cohorts that only training uses (early-stage ranking,
    2307.11096; ExFM, 2502.17494; C2AL, 2510.02215).
    Exact because: what the served outputs are computed of isn't touched.
    Requires: CAPTURED.
    Misses when: a served output needs an auxiliary one, whose layers then stay; or an auxiliary
    column of an output stands before a served one, which would change places.
    """

    name: ClassVar[str] = "strip-train-only"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[Form] = Form.CAPTURED
    keeps_contract: ClassVar[bool] = False

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips programs that would have nothing left."""
        if not program.signature.served and program.signature.tasks:
            raise Skip("every task is auxiliary, so nothing would be served")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Drops whole outputs, cuts trailing columns of others, and sweeps."""
        signature = program.signature
        rw = ctx.rewriter(program)
        dropped = [name for name in signature.outputs if _is_auxiliary(signature, name)]
        dropped = [name for name in dropped if rw.site(_value(program, name))]
        narrowed = {
            name: count
            for name in signature.outputs
            if name not in dropped and (count := self._columns(program, name, ctx)) is not None
        }
        if not dropped and not narrowed:
            return
        before = program.clone()
        values = {task.name: _head(program, task) for task in signature.tasks if task.auxiliary}
        if dropped:
            rw.drop_outputs(dropped)
            program.outputs = program.outputs.keep(program.signature.outputs)
        for name, count in narrowed.items():
            _narrow(rw, name, count)
        sweep(program)
        _forget_inputs(program)
        self._tell(before, program, values, ctx)

    def _columns(self, program: Program, name: str, ctx: PassContext) -> int | None:
        """How many columns of an output are left when its trailing auxiliary ones are cut."""
        tasks = [t for t in program.signature.tasks if t.output == name and t.column is not None]
        served = [task.column for task in tasks if not task.auxiliary and task.column is not None]
        auxiliary = [task for task in tasks if task.auxiliary]
        if not served or not auxiliary:
            return None
        kept = max(served) + 1
        before = [task.name for task in auxiliary if task.column is not None and task.column < kept]
        for one in before:
            ctx.missed("its column stands before a served one, which would change places", one)
        if len(shape_of(_value(program, name))) != 2:
            for task in auxiliary:
                ctx.missed("its output has rows of several dimensions, which stay", task.name)
            return None
        width = shape_of(_value(program, name))[1]
        return None if kept == width else kept

    def _tell(
        self, before: Program, after: Program, heads: dict[str, fx.Node], ctx: PassContext
    ) -> None:
        alive = {node.name for node in after.graph.nodes}
        for task, head in heads.items():
            if head.name in alive:
                ctx.missed("a served output needs it, so its layers stay", task)
        gone_tables = _sites(before, _looks_up) - _sites(after, _looks_up)
        gone_layers = _sites(before, _is_linear) - _sites(after, _is_linear)
        was, now = size_of(before), size_of(after)
        unused = [
            feature.name
            for old, feature in zip(before.signature, after.signature, strict=True)
            if feature.kind is FeatureKind.UNUSED and old.kind is not FeatureKind.UNUSED
        ]
        left = {task.name for task in after.signature.tasks}
        tasks = [task.name for task in before.signature.tasks if task.name not in left]
        nbytes, flops = was.nbytes - now.nbytes, was.flops - now.flops
        ctx.applied(
            f"removed {len(tasks)} train-only heads: {', '.join(tasks)}; with "
            f"{len(gone_layers)} linears and {len(gone_tables)} tables, "
            f"{readable_bytes(nbytes)} and {flops:,.0f} FLOPs a row",
            *sorted(gone_tables | gone_layers),
            heads=tasks,
            tables=sorted(gone_tables),
            linears=sorted(gone_layers),
            parameters=was.parameters - now.parameters,
            nbytes=nbytes,
            flops=flops,
            unused_features=unused,
        )
        if unused:
            ctx.remark(Kind.ANALYSIS, f"nothing needs {', '.join(unused)} any more")


def _is_auxiliary(signature: Signature, output: str) -> bool:
    """Whether an output has tasks, and all of them are auxiliary."""
    tasks = [task for task in signature.tasks if task.output == output]
    return bool(tasks) and all(task.auxiliary for task in tasks)


def _value(program: Program, name: str) -> fx.Node:
    (output,) = program.graph.find_nodes(op="output")
    found: fx.Node = output.args[0][program.signature.outputs.index(name)]
    return found


def _head(program: Program, task: Task) -> fx.Node:
    """The node that is a task's score."""
    return columns_of(_value(program, task.output))[task.column or 0]


def _sites(program: Program, wanted: Callable[[fx.Node], bool]) -> set[str]:
    return {site_of(node) for node in program.graph.nodes if wanted(node)}


def _looks_up(node: fx.Node) -> bool:
    return lookup_of(node) is not None


def _is_linear(node: fx.Node) -> bool:
    return is_op(node, _aten.linear.default)


def _narrow(rw: Rewriter, name: str, count: int) -> None:
    """Cuts an output ``[B, T]`` to its first columns, and what computes it if nothing else does."""
    program = rw.program
    (output,) = program.graph.find_nodes(op="output")
    values = list(output.args[0])
    place = program.signature.outputs.index(name)
    with rw.before(output):
        values[place] = _first_columns(rw, values[place], count)
    output.args = (tuple(values),)
    program.signature = replace(
        program.signature,
        tasks=tuple(
            task
            for task in program.signature.tasks
            if task.output != name or task.column is None or task.column < count
        ),
    )


def _first_columns(rw: Rewriter, value: fx.Node, count: int) -> fx.Node:
    """Of heads side by side the first; of any other value a slice.

    A linear of fewer outputs may round otherwise.
    """
    steps = elementwise(value)
    source: Any = steps[-1].args[0] if steps else value
    made = _joined(rw, source, count)
    if made is None:
        return rw.emit(_aten.slice.Tensor, value, 1, 0, count, like=value)
    for step in reversed(steps):
        if not moves(step, Move.RESHAPE):
            made = rw.emit(step.target, made, *step.args[1:], like=step)
    return made


def _joined(rw: Rewriter, source: fx.Node, count: int) -> fx.Node | None:
    """The first parts of a concatenation or a stack, where they end at ``count``."""
    columns = columns_of(source)
    if columns[0] is source or columns[count - 1] is columns[count]:
        return None
    parts: list[fx.Node] = list(dict.fromkeys(columns[:count]))
    if list(source.args[0])[: len(parts)] != parts:  # type: ignore[arg-type]
        return None
    return rw.emit(source.target, parts, 1, like=source)


def _forget_inputs(program: Program) -> None:
    """Features that nothing reads any more have no table, and no limit to their ids."""
    signature = program.signature
    delimiters = {feature.delimiter for feature in signature}
    placeholders = program.graph.find_nodes(op="placeholder")
    read = {name for name, _ in program.tensors()}
    features = []
    for feature, node in zip(signature, placeholders, strict=True):
        tables = tuple(table for table in feature.tables if table in read)
        if not node.users and not feature.delimiter and feature.name not in delimiters:
            feature = replace(feature, kind=FeatureKind.UNUSED, cardinalities=(), default=0.0)
        features.append(replace(feature, tables=tables))
    program.signature = replace(signature, features=tuple(features))
