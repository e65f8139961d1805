"""What two programs score, row by row."""

from __future__ import annotations

from rankc.optimizer.compare.differences import joined
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Program


def test_rows_join_in_order(program: Program) -> None:
    first, second = (synthesize(program.signature, 3, seed) for seed in (1, 2))
    both = joined(first, second)
    assert len(both) == 6
    assert both.features["dense"][3:].tolist() == second.features["dense"].tolist()
