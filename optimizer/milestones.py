"""`Milestones`: how far one call of `optimize` is."""

from __future__ import annotations

import logging
from collections.abc import Callable

_LOG = logging.getLogger("rankc")


class Milestones:
    """Tells a listener what is being worked on, and how much of the whole is done."""

    def __init__(self, listener: Callable[[str, float], None] | None) -> None:
        self._listener = listener
        self._done = 0.0

    def __call__(self, message: str, done: float) -> None:
        """A new stage begins; the share done never goes back."""
        self._done = max(self._done, done)
        self.detail(message)

    def detail(self, message: str) -> None:
        """Something within the stage."""
        _LOG.debug("%s", message)
        if self._listener is not None:
            self._listener(message, self._done)
