"""What formats there are, as data."""

from __future__ import annotations

from rankc.optimizer.formats import LINEAR, TABLE, weight_width


def test_names_are_the_keys_and_widths_are_positive() -> None:
    assert all(data.name == name for name, data in LINEAR.items())
    assert all(data.name == name for name, data in TABLE.items())
    assert all(weight_width(name) > 0 for name in LINEAR)
