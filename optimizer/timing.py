"""Timing side by side: every candidate sees the same machine, moment by moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """One candidate's times.

    Attributes:
        median: Seconds a call, the median over rounds.
        spread: The middle half of the rounds, in seconds.
    """

    median: float
    spread: float


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    seconds: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times callables interleaved, round by round, and gives the medians.

    Args:
        candidates: What to time, by name.
        rounds: How many rounds; each times every candidate once.
        seconds: How long each candidate runs in a round, at least one call.
        clock: What is read; `time.process_time` leaves out what other processes took, and is
            fair where every candidate runs on one thread.
    """
    repeats = {}
    for name, call in candidates.items():
        call()
        started = clock()
        call()
        once = max(clock() - started, 1e-7)
        repeats[name] = max(1, round(seconds / once))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            started = clock()
            for _ in range(repeats[name]):
                call()
            samples[name].append((clock() - started) / repeats[name])
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0)
    import statistics  # slow to import, and who serves times nothing

    low, middle, high = statistics.quantiles(values, n=4)
    return Timing(middle, high - low)
