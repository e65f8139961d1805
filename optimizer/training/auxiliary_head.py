"""A head of its own for the teacher's signal, in training only (ExFM, 2502.17494, equations 3-5).

The head is a linear beside the served one, over the same hidden units. The served head learns the
labels alone, so that a teacher's bias can't get into it; the teacher's signal reaches the units
they share. It is an auxiliary task of the program while it trains, and is dropped before anything
else sees the program: the served outputs are the same, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from ..ir.operators import moves
from ..ir.pattern import argument, is_op, parameter_name
from ..ir.program import Program
from ..ir.rewrite import Rewriter, sweep
from ..ir.signature import Score, Task
from ..ir.traits import Move

_aten = torch.ops.aten
_SUFFIX = "~distilled"


@dataclass(frozen=True)
class Head:
    """A head that was put on.

    Attributes:
        task: The served task whose teacher it learns.
        own: The auxiliary task.
        node: The name of its linear.
    """

    task: str
    own: Task
    node: str


def attach(program: Program) -> tuple[Program, tuple[Head, ...]]:
    """A copy with a head beside that of every served task that ends in a linear."""
    copy = program.clone()
    rw = Rewriter(copy, "distill")
    (output,) = copy.graph.find_nodes(op="output")
    values = dict(zip(copy.signature.outputs, output.args[0], strict=True))
    heads, added = [], []
    for task in program.signature.served:
        linear = _last_linear(values[task.output], task)
        if linear is None:
            continue
        weight = copy.tensor(str(parameter_name(linear.args[1])))
        row = slice(task.column or 0, (task.column or 0) + 1)
        bias = argument(linear, 2, "bias")
        own = replace(
            task,
            name=f"{task.name}{_SUFFIX}",
            output=f"{task.output}{_SUFFIX}{task.column or ''}",
            column=None,
            score=Score.LOGIT if task.score is Score.PROBABILITY else task.score,
            auxiliary=True,
        )
        parameters = [rw.parameter("distilled.weight", weight[row].clone())]
        if bias is not None:
            start = copy.tensor(str(parameter_name(bias)))[row]
            parameters.append(rw.parameter("distilled.bias", start.clone()))
        with rw.before(output):
            head = rw.emit(_aten.linear.default, linear.args[0], *parameters, like=linear)
        heads.append(Head(task.name, own, head.name))
        added.append(head)
    output.args = ((*output.args[0], *added),)
    copy.module.recompile()
    copy.signature = replace(
        copy.signature,
        tasks=(*copy.signature.tasks, *(head.own for head in heads)),
        outputs=(*copy.signature.outputs, *(head.own.output for head in heads)),
    )
    return copy, tuple(heads)


def strip(program: Program, heads: tuple[Head, ...]) -> None:
    """Drops the heads, and what only they read."""
    Rewriter(program, "distill").drop_outputs([head.own.output for head in heads])
    sweep(program)


def _last_linear(node: fx.Node, task: Task) -> fx.Node | None:
    """The linear whose outputs a task's output is, up to views and a sigmoid; or None."""
    while moves(node, Move.SQUEEZE | Move.RESHAPE) or is_op(node, _aten.sigmoid.default):
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
    if not is_op(node, _aten.linear.default) or parameter_name(node.args[1]) is None:
        return None
    if task.column is not None and len(node.meta["val"].shape) != 2:
        return None  # a column of the output is no row of the weight
    wide = int(node.meta["val"].shape[-1]) > max(task.column or 0, 0)
    bias = argument(node, 2, "bias")
    return node if wide and (bias is None or parameter_name(bias) is not None) else None
