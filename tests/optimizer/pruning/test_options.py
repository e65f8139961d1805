"""Choosing under one allowance: the cheapest first, and fewer until all together pass."""

from __future__ import annotations

from collections.abc import Sequence

from rankc.optimizer.pruning.options import Option, choose

ROOM = {"click": 1.0}


def option(place: str, saved: float, lost: float) -> Option:
    return Option(place, saved, {"click": lost})


def test_most_saved_for_the_damage_first() -> None:
    cheap, dear = option("a", 10.0, 0.1), option("b", 10.0, 0.95)
    assert choose([dear, cheap], ROOM, lambda _: True) == [cheap]


def test_a_place_takes_its_larger_option_where_there_is_room() -> None:
    few, many = option("a", 1.0, 0.0), option("a", 2.0, 0.5)
    assert choose([few, many], ROOM, lambda _: True) == [many]
    assert choose([few, many], {"click": 0.4}, lambda _: True) == [few]


def test_what_is_over_budget_together_goes_back_in_steps() -> None:
    few, many, other = option("a", 1.0, 0.3), option("a", 2.0, 0.6), option("b", 5.0, 0.1)

    def passes(chosen: Sequence[Option]) -> bool:
        return sum(one.lost["click"] for one in chosen) < 0.5

    assert choose([few, many, other], ROOM, passes) == [other, few]


def test_nothing_passes() -> None:
    assert choose([option("a", 1.0, 0.0)], ROOM, lambda _: False) == []
