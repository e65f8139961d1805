"""A bar that is hidden listens to nothing."""

from __future__ import annotations

from rankc.optimizer.progress_bar import progress_bar


def test_hidden_it_is_nobody() -> None:
    with progress_bar(hidden=True) as listener:
        assert listener is None
