"""Ids that nothing computes need no program."""

from __future__ import annotations

from rankc.optimizer.artifact.computed_ids import checks_of
from rankc.optimizer.ir import Program


def test_without_computed_ids_there_is_none(program: Program) -> None:
    assert checks_of(program)[:2] == (None, ())
