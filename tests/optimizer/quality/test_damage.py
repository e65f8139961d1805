"""How many rows a damage needs, and how large a plan's may be."""

from __future__ import annotations

from rankc.optimizer.quality.damage import allowance, rows_to_use


def test_smaller_limits_need_more_rows() -> None:
    assert rows_to_use(0.5, 1e-4, 0.3, 0.95) > rows_to_use(0.5, 1e-3, 0.3, 0.95) > 0


def test_more_rows_allow_more_and_never_beyond_the_limit() -> None:
    few, many = (allowance(1e-3, rows, 0.3, 0.95) for rows in (10_000, 10_000_000))
    assert few <= many <= 1e-3
