"""One operator of a program, as a program."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.ir.alone import alone


def test_an_operator_alone_has_its_operands_as_features(program: Program) -> None:
    node = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)[0]
    made = alone(node)
    assert made is not None
    calls = [n.target for n in made.graph.nodes if n.op == "call_function"]
    assert torch.ops.aten.relu.default in calls
    assert len(made.signature.features) == 1
