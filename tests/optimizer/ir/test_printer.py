"""Programs as text, and what changed between two."""

from __future__ import annotations

from rankc.optimizer.ir import Program
from rankc.optimizer.ir.printer import diff, excerpt, text


def test_a_program_reads_like_its_model(program: Program) -> None:
    said = text(program)
    assert "feature dense: dense float32 [batch, 4]" in said
    assert said.count("= linear(") >= 3


def test_a_program_differs_from_another_by_lines(program: Program) -> None:
    other = program.clone()
    assert diff(program, other) == ""
    node = next(n for n in other.graph.nodes if n.op == "call_function")
    assert node.name in excerpt(node)
