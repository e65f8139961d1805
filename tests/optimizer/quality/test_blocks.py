"""Blocks of time, where rows have one."""

from __future__ import annotations

import numpy as np
from rankc.optimizer.quality.blocks import blocks_of
from rankc.optimizer.quality.clusters import Clusters
from rankc.optimizer.quality.task_rows import task_rows


def test_few_rows_have_no_blocks() -> None:
    logits, labels = np.zeros(20), np.arange(20) % 2.0
    (one,) = task_rows({"t": logits}, {"t": logits}, {"t": labels}, frozenset())
    assert blocks_of(one, Clusters.of(20)) is None
