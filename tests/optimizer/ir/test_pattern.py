"""Rules are tried where the graph is visited."""

from __future__ import annotations

from typing import Any

import torch
from rankc.optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from rankc.optimizer.ir.pattern import argument, is_op, parameter_name, size_at
from support import canonical
from torch import Tensor, fx, nn

_RELU = torch.ops.aten.relu.default


class _Relus(Rule):
    roots = (_RELU,)

    def match(self, node: fx.Node) -> Any:
        return Miss("it is the first", (node,)) if node.name == "relu" else node.args[0]

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        return rw.emit(torch.ops.aten.tanh.default, found, like=node)


class Relus(nn.Module):
    """Two of them."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.relu(), torch.ones(3, 3)).relu()


def test_each_root_is_visited_once_and_misses_are_said() -> None:
    program = canonical(Relus(), torch.randn(4, 3))
    missed: list[str] = []
    count = apply_rules(
        (_Relus(),), Rewriter(program, "test"), lambda rule, node, miss: missed.append(miss.reason)
    )
    assert count == 1
    assert missed == ["it is the first"]
    assert len(program.graph.find_nodes(op="call_function", target=_RELU)) == 1


def test_what_is_asked_of_nodes(program: Program) -> None:
    linear = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    assert is_op(linear, torch.ops.aten.linear.default)
    assert parameter_name(linear.args[1]) == "deep.0.weight"
    assert parameter_name(linear.args[0]) is None
    assert argument(linear, 7, "nothing", 3) == 3
    assert size_at(linear.meta["val"].shape[0], 17) == 17
