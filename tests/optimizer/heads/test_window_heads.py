"""Where the head of a task is."""

from __future__ import annotations

from rankc.optimizer.heads.window_heads import Head
from rankc.optimizer.ir import Program


def test_a_score_of_its_own_is_a_free_head(program: Program) -> None:
    (task,) = program.signature.tasks
    head = Head.of(program, task.name, 7.0)
    assert head.window == 7.0
    assert head.joined is None
    assert head.is_free
