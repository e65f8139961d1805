"""Runners that live through a fork.

A runtime's threads don't follow into a forked process: there its runner can't be used, and dropping
it waits for ever for threads that aren't there. So a child leaves what it inherited alone, in
memory that it shares with its parent anyway, and opens the files anew when it first scores.

ONNX Runtime from 1.29 on has a thread of its own from its import on, for which its destructors wait
as the process ends. So a child ends without the exit handlers that its parent's C libraries had
registered; Python's run, and so do those that the child registers.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError
from ..registry import runtime
from .chunks import ArrayRunner


def reopened(
    backend_name: str, folder: Path, entry: str | None, threads: int | None, held: object
) -> Reopened:
    """A program of an artifact's folder, opened, and again in forked children.

    Args:
        backend_name: The backend that wrote it.
        folder: Where it is.
        entry: Its name; None for the one that takes flat batches.
        threads: How many to use; None leaves it to the backend.
        held: What must live as long as the runner, such as the folder.

    Raises:
        ArtifactError: That many threads can't be, or the files can't be read.
    """
    whole = isinstance(threads, (int, np.integer)) and not isinstance(threads, bool)
    if threads is not None and (not whole or threads < 1):
        raise ArtifactError(
            f"threads is {threads!r}, expected a whole number of at least 1, or None to leave it "
            "to the backend."
        )
    opener = runtime(backend_name)
    count = None if threads is None else int(threads)
    if entry is None:
        return Reopened(partial(opener.open, folder, count), held)
    return Reopened(partial(opener.open_beside, entry, folder, count), held)


class Reopened:
    """A runner, opened again in each process that uses it.

    Args:
        opening: Opens it.
        held: What must live as long as the runner, such as the folder of its files.
    """

    def __init__(self, opening: Callable[[], ArrayRunner], held: object = None) -> None:
        self._opening = opening
        self._held = held
        self._runner: ArrayRunner | None = opening()
        _LIVE.add(self)

    def __call__(self, features: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        runner = self._runner
        if runner is None:
            runner = self._runner = self._opening()
        return runner(features)

    def leave(self) -> None:
        """Leaves a runner that was inherited alone, for good."""
        if self._runner is not None:
            # One more reference than there will ever be holders: it is never destroyed here.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runner))
            self._runner = None


_LIVE: weakref.WeakSet[Reopened] = weakref.WeakSet()


def close_all(held: object) -> None:
    """Closes the runners that hold something; each opens again with its next batch."""
    for one in list(_LIVE):
        if one._held is held:
            one._runner = None


def _after_fork() -> None:
    for one in list(_LIVE):
        one.leave()
    if _ON_EXIT is not None:
        # Last registered runs first: what C has buffered is written, and then it's over.
        _ON_EXIT(ctypes.cast(_C._exit, ctypes.c_void_p), None)
        _ON_EXIT(ctypes.cast(_C.fcloseall, ctypes.c_void_p), None)


_C = ctypes.CDLL(None)
#: GNU's: it hands the exit status on.
_ON_EXIT = getattr(_C, "on_exit", None)
os.register_at_fork(after_in_child=_after_fork)
