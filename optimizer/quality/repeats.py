"""Rows that repeat others: the same features and labels once more, which is no more evidence.

Equal features get equal scores from both models, so rows are compared by their scores and labels.
Where features take few values, rows are alike by chance; their labels then differ as often as the
scores say, while those of copied rows don't.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .metrics import FloatArray, IntArray
from .task_rows import TaskRows

_SHARE: Final = 0.75
"""Rows of equal scores whose labels differ less often than this share of what chance explains
are copies."""

_SURE: Final = 5.0
"""Pairs of other labels that chance must explain before it is believed."""


def found(tasks: Sequence[TaskRows]) -> IntArray | None:
    """Codes ``[N]`` of rows, equal where rows repeat one another; None where none do.

    Args:
        tasks: The same rows, by task.
    """
    columns = [column for task in tasks for column in (task.reference, task.optimized)]
    count = len(columns[0])
    if any(_all_differ(column) for column in columns):
        return None  # as most scores do; telling costs one sort
    scores = codes_of(columns)
    if int(scores.max()) + 1 == count:
        return None
    labelled = [task for task in tasks if not task.soft]
    for task in (one.labelled for one in labelled):
        own = scores if task.places is None else scores[task.places]
        if by_chance(own, task.labels, chance_of(task)):
            return None
    whole = codes_of([scores.astype(np.float64), *(task.labels for task in labelled)])
    return whole if int(whole.max()) + 1 < count else None


def _all_differ(column: FloatArray) -> bool:
    ordered = np.sort(column)
    return bool((ordered[1:] != ordered[:-1]).all())


def shared(tasks: Sequence[TaskRows], earlier: int) -> int:
    """How many rows from a place on repeat rows before it.

    Args:
        tasks: The same rows, by task.
        earlier: How many rows come before.
    """
    codes = found(tasks)
    return 0 if codes is None else int(np.isin(codes[earlier:], codes[:earlier]).sum())


def codes_of(columns: Sequence[FloatArray]) -> IntArray:
    """Codes ``[N]`` from 0, equal where all columns are."""
    codes: IntArray = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        own = np.unique(column, return_inverse=True)[1].astype(np.int64)
        joined = codes * (int(own.max()) + 1) + own
        codes = np.unique(joined, return_inverse=True)[1].astype(np.int64)
    return codes


def chance_of(task: TaskRows) -> FloatArray:
    """``[N]``: how likely two rows of equal features have different labels."""
    if not task.regression and task.drawn:
        p = task.probability
        return np.asarray(2.0 * p * (1.0 - p), dtype=np.float64)
    shares = np.unique(task.labels, return_counts=True)[1] / len(task.labels)
    return np.full(len(task.labels), 1.0 - float(np.square(shares).sum()))


def by_chance(codes: IntArray, labels: NDArray[np.float64], chance: FloatArray) -> bool:
    """Whether rows of one code have labels that differ as those of different rows do.

    Args:
        codes: ``[N]``, equal where scores are.
        labels: ``[N]``.
        chance: ``[N]``, how likely the labels of two rows with such scores differ.
    """
    count = int(codes.max()) + 1
    size = np.bincount(codes, minlength=count).astype(np.float64)
    pairs = size * (size - 1.0) / 2.0
    mean = np.bincount(codes, chance, minlength=count) / np.maximum(size, 1.0)
    expected = float((pairs * mean).sum())
    inner = codes_of([codes.astype(np.float64), labels])
    same = np.bincount(inner).astype(np.float64)
    differ = float(pairs.sum() - (same * (same - 1.0) / 2.0).sum())
    return expected >= _SURE and differ > _SHARE * expected - 2.0 * expected**0.5
