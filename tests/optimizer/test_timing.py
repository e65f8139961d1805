"""Timing side by side."""

from __future__ import annotations

import time

from rankc.optimizer.timing import Timing, side_by_side


def test_every_candidate_is_timed_in_every_round() -> None:
    calls: list[str] = []
    found = side_by_side(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, seconds=0.0
    )
    assert set(found) == {"a", "b"}
    # Two calls each to warm up and to choose the repeats, then one each a round.
    assert calls == ["a", "a", "b", "b", *"ababab"]


def test_the_slower_one_is_slower() -> None:
    found = side_by_side(
        {"slow": lambda: time.sleep(0.004), "fast": lambda: None}, rounds=5, seconds=0.004
    )
    assert found["slow"].median >= 0.004
    assert found["fast"].median < found["slow"].median
    assert all(timing.spread >= 0 for timing in found.values())


def test_one_round_has_no_spread() -> None:
    (timing,) = side_by_side({"a": lambda: None}, rounds=1, seconds=0.0).values()
    assert isinstance(timing, Timing)
    assert timing.spread == 0.0
