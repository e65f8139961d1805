"""A program without a request has one entry."""

from __future__ import annotations

from rankc.optimizer.ir import Program
from rankc.optimizer.requests.ahead import entries_of


def test_what_was_not_asked_for_is_not_built(program: Program) -> None:
    assert entries_of(None, (), program) == (None, {})
