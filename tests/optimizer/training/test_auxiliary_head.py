"""A program without auxiliary heads gets none."""

from __future__ import annotations

from rankc.optimizer.ir import Program
from rankc.optimizer.training.auxiliary_head import attach, strip


def test_heads_that_were_attached_go_again(program: Program) -> None:
    made, heads = attach(program)
    strip(made, heads)
    assert made.signature.outputs == program.signature.outputs
    assert len(made.graph.nodes) == len(program.graph.nodes)
