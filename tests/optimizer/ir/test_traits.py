"""Groups of traits are what they say."""

from __future__ import annotations

from rankc.optimizer.ir.traits import COMPARISONS, Move, OnRows, Traits, Values


def test_views_keep_every_element_and_parts_do_not() -> None:
    assert Move.RESHAPE in Move.VIEW
    assert not Move.VIEW & Move.PART
    assert Move.SLICE in Move.PART


def test_nothing_is_assumed_of_an_operator() -> None:
    traits = Traits(OnRows.LOST)
    assert traits.values is Values.ANY
    assert traits.move is Move.NONE
    assert traits.learned == ()
    assert not any((traits.level, traits.flat, traits.asserts))
    assert len(set(COMPARISONS)) == 6
