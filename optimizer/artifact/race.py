"""The race: what several backends made of one program, timed side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from typing import Any

from ..data.rows import Rows
from ..timing import side_by_side

#: Rounds, and seconds each candidate runs in a round.
_ROUNDS, _SECONDS = 9, 0.01


@dataclass(frozen=True)
class Race:
    """Times of the candidates.

    Attributes:
        milliseconds: ``{backend: {batch size: CPU milliseconds a call, one thread}}``.
    """

    milliseconds: Mapping[str, Mapping[int, float]]

    @classmethod
    def of(
        cls,
        runs: Mapping[str, Callable[[Mapping[str, Any]], Any]],
        rows: Rows,
        batch_sizes: Sequence[int],
    ) -> Race:
        """Times the candidates at each batch size, interleaved.

        Args:
            runs: Opened artifacts, on one thread each.
            rows: Real rows; repeated where there are too few for a batch.
            batch_sizes: The batch sizes that will be served.
        """
        found: dict[str, dict[int, float]] = {name: {} for name in runs}
        for size in batch_sizes:
            features = {name: value.numpy() for name, value in rows.filled(size).features.items()}
            calls = {name: partial(run, features) for name, run in runs.items()}
            timed = side_by_side(calls, _ROUNDS, _SECONDS, time.process_time)
            for name, timing in timed.items():
                found[name][size] = round(1e3 * timing.median, 4)
        return cls(found)

    @property
    def relative(self) -> dict[str, float]:
        """Each candidate's time over the first one's, the geometric mean over batch sizes."""
        first = next(iter(self.milliseconds.values()))
        return {
            name: exp(sum(log(own[size] / first[size]) for size in first) / len(first))
            for name, own in self.milliseconds.items()
        }

    def __str__(self) -> str:
        lines = [
            f"{name} {', '.join(f'{ms:g} ms at batch {size}' for size, ms in own.items())}"
            for name, own in self.milliseconds.items()
        ]
        return "backends timed side by side, one thread: " + "; ".join(lines)
