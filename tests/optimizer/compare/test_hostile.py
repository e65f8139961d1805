"""Hostile rows fit the signature, and hold what breaks arithmetic."""

from __future__ import annotations

from rankc.optimizer.compare.hostile import hostile
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Program


def test_hostile_rows_hold_large_values(program: Program) -> None:
    found = hostile(program, synthesize(program.signature, 8), count=32)
    assert len(found.rows) == len(found.what)
    assert float(found.rows.features["dense"].abs().max()) > 1e3
