"""What kernels were measured to take, remembered on disk: ``{machine: {kernel: seconds}}``.

Many processes and threads read and write it at once, and any of them may be killed. So it is
written whole, what others wrote meanwhile is read under a lock and kept, and what can't be a
measurement is as if it weren't there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..ir.scratch import write_whole

_log = logging.getLogger(__name__)
_FILE = "kernels.json"
#: Reading, merging and writing takes milliseconds: who waits longer waits for one who hangs.
_PATIENCE_SECONDS = 30.0
#: No kernel takes a day, and reading an element of a table, the least that is timed, takes longer.
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1e-14, 86_400.0

Times = dict[str, float]


def default_folder() -> Path | None:
    """``~/.cache/rankc``; None where this user has no home."""
    try:
        return Path.home() / ".cache" / "rankc"
    except RuntimeError:
        return None


class KernelCache:
    """The times in a folder; nothing is remembered where there is none.

    Args:
        folder: The folder, made when first written to.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / _FILE

    def read(self, machine: str) -> Times:
        """The times that were measured on a machine."""
        return {} if self._file is None else _known(self._file).get(machine, {})

    def merged(self, machine: str, own: Mapping[str, float]) -> Times:
        """Keeps times, and gives them with those that others have kept, whose go first.

        A folder that can't be written costs the next run its measurements again, and no more: that
        is logged.
        """
        possible = _possible(own)
        if self._file is None:
            return possible
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._file.with_suffix(".lock"), timeout=_PATIENCE_SECONDS)
            with lock:
                known = _known(self._file)
                known[machine] = {**possible, **known.get(machine, {})}
                write_whole(self._file, json.dumps(known, indent=1, sort_keys=True))
        except (OSError, Timeout) as error:
            _log.warning(
                "kernel times aren't remembered: %s can't be written: %s", self._file, error
            )
            return {**possible, **self.read(machine)}
        return known[machine]


def _known(file: Path) -> dict[str, Times]:
    """What of a file can be measurements; the rest is told and left out, and so measured anew."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("kernel times are measured anew: %s can't be read: %s", file, error)
        return {}
    try:
        found = json.loads(text)
    except (RecursionError, ValueError) as error:
        _log.warning("kernel times are measured anew: %s is damaged: %s", file, error)
        return {}
    if not isinstance(found, dict):
        _log.warning("kernel times are measured anew: %s holds no times by machine", file)
        return {}
    known = {machine: _possible(times) for machine, times in found.items()}
    odd = [machine for machine, times in found.items() if known[machine] != times]
    if odd:
        _log.warning("kernel times that can't be true are measured anew: %s in %s", odd, file)
    return known


def _possible(times: Any) -> Times:
    if not isinstance(times, Mapping):
        return {}
    return {str(name): float(value) for name, value in times.items() if _is_time(value)}


def _is_time(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and _SHORTEST_SECONDS < value < _LONGEST_SECONDS
