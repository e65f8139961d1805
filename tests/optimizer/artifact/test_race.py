"""Who is faster, over all batch sizes."""

from __future__ import annotations

from rankc.optimizer.artifact.race import Race


def test_times_are_relative_to_the_fastest() -> None:
    race = Race({"a": {1: 1.0, 64: 2.0}, "b": {1: 2.0, 64: 4.0}})
    assert race.relative["b"] / race.relative["a"] == 2.0
    assert "a" in str(race)
