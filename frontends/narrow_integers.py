"""Integers of 8 and 16 bits: computed in 32, and cut to what they hold afterwards.

Runtimes have few operators for them, and PyTorch has all; what comes of the cut is what wraps
around in PyTorch, so that nothing differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..optimizer.ir import Program
from ..optimizer.ir.operators import of_node
from ..optimizer.ir.torchapi import FakeTensorMode, fake_call, fake_mode_of, operator_name
from ..optimizer.ir.traits import Move

_NARROW = (torch.int8, torch.uint8, torch.int16)
_cast = torch.ops.aten._to_copy.default


def compute_in_32_bits(program: Program) -> None:
    """Changes a program so that no arithmetic is done on integers of 8 or 16 bits."""
    graph = program.graph
    calls = [n for n in graph.nodes if n.op == "call_function" and _computes(n)]
    if not calls:
        return
    mode = fake_mode_of(graph)
    for node in calls:
        before = {part: part.meta.get("val") for part in (node, *node.users)}
        for source in _narrow_of(node):
            node.replace_input_with(source, _after(source, node, torch.int32, mode))
        node.meta["val"] = fake_call(node.target, node.args, node.kwargs, mode)
        if not isinstance(node.meta["val"], Tensor):
            for part in node.users:
                part.meta["val"] = fake_call(part.target, part.args, part.kwargs, mode)
        for part, was in before.items():
            if isinstance(was, Tensor) and was.dtype in _NARROW and not _is_narrow(part):
                _cut(part, was.dtype, mode)
    program.module.recompile()


def _computes(node: fx.Node) -> bool:
    """Whether an operator of ATen's does more than move or cast such integers."""
    traits = of_node(node)
    if traits is None or operator_name(node.target) is None or not any(_narrow_of(node)):
        return False
    return traits.move is Move.NONE and traits.lookup is None


def _narrow_of(node: fx.Node) -> list[fx.Node]:
    return list(filter(_is_narrow, node.all_input_nodes))


def _is_narrow(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in _NARROW


def _after(source: fx.Node, user: fx.Node, dtype: torch.dtype, mode: FakeTensorMode) -> fx.Node:
    """A cast of a value in front of what takes it."""
    with user.graph.inserting_before(user):
        cast = user.graph.call_function(_cast, (source,), {"dtype": dtype})
    cast.meta = {**user.meta, "val": fake_call(_cast, (source,), {"dtype": dtype}, mode)}
    return cast


def _cut(node: fx.Node, dtype: torch.dtype, mode: FakeTensorMode) -> None:
    """Lets all that takes a value take it in the dtype that it had."""
    users: list[Any] = list(node.users)
    cut = _after(node, node.next, dtype, mode)
    cut.meta = {**node.meta, "val": cut.meta["val"]}
    for user in users:
        user.replace_input_with(node, cut)
