"""Ctrl-C and SIGTERM, which end a command in order: what it made on the way is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns both signals into `KeyboardInterrupt`, and remembers that one came.

    Python can only print an exception that is raised in a finalizer, and libraries have handlers
    that catch everything: an interrupt that lands there is lost. So whoever works for long asks
    `check` now and then.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers, and only it is interrupted.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def came(self) -> bool:
        """Whether one has come."""
        return self._came is not None

    @property
    def code(self) -> int:
        """The exit code of who was interrupted: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self._came or signal.SIGINT)

    def check(self) -> None:
        """Raises if an interrupt has come, wherever the first one got to.

        Raises:
            KeyboardInterrupt: One has.
        """
        if self._came is not None:
            raise KeyboardInterrupt

    def checking(
        self, progress: Callable[[str, float], None] | None
    ) -> Callable[[str, float], None]:
        """A listener to progress that checks, and then tells another."""

        def listener(message: str, done: float) -> None:
            self.check()
            if progress is not None:
                progress(message, done)

        return listener

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._came = number
        raise KeyboardInterrupt
