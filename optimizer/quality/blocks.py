"""ΔNE by block of time: whether what holds on the whole holds at all times."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.special import chdtrc

from ..errors import DataError
from .clusters import Clusters
from .task_rows import TaskRows
from .verdict import Block, BlockResult

_SHOWN: Final = 8
"""Blocks that are told: neighbours are put together until so many are left."""

_MIN_ROWS: Final = 100
"""Rows that each of them must have."""

_CONFIDENCE: Final = 0.95


def blocks_of(task: TaskRows, clusters: Clusters) -> BlockResult | None:
    """ΔNE of each block of time, and how likely they would differ so much by chance.

    Args:
        task: The rows.
        clusters: What they hang together by; its blocks are put together to a few.

    Returns:
        None where rows have no blocks, or too few rows for it.
    """
    if clusters.block is None or clusters.rows < 2 * _MIN_ROWS:
        return None
    shown = min(_SHOWN, clusters.blocks, clusters.rows // _MIN_ROWS)
    coarse = clusters.block * shown // clusters.blocks
    found = []
    for number in range(shown):
        part = np.flatnonzero(coarse == number)
        inside = clusters.part(part).timeless
        if len(part) < 2:
            return None
        try:
            delta = task.of(part).delta_ne(inside, _CONFIDENCE)
        except DataError:
            return None  # all rows of one group, or no loss at all: nothing to compare
        found.append(Block(int(part.min()), len(part), delta.estimate, delta.standard_error))
    errors = np.array([block.standard_error for block in found])
    if len(found) < 2 or not errors.any():
        return BlockResult(tuple(found), 1.0)
    errors = np.maximum(errors, 1e-3 * errors.max())  # none is certain where another isn't
    weights = 1.0 / np.square(errors)
    deltas = np.array([block.delta_ne for block in found])
    middle = float((weights * deltas).sum() / weights.sum())
    distance = float((weights * np.square(deltas - middle)).sum())
    return BlockResult(tuple(found), float(chdtrc(len(found) - 1, distance)))
