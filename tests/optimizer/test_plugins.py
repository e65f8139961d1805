"""Groups of entry points that nobody fills are empty."""

from __future__ import annotations

from rankc.optimizer.plugins import plugin_names, plugin_places


def test_an_empty_group_has_no_names() -> None:
    assert plugin_names("rankc.nothing-of-the-kind") == set()
    assert plugin_places("rankc.nothing-of-the-kind", "x") == set()
