"""Rows of a task, and how sure a loss on them is."""

from __future__ import annotations

import numpy as np
from rankc.optimizer.quality.task_rows import rare_bound, task_rows


def test_equal_scores_lose_nothing() -> None:
    logits = np.linspace(-2, 2, 200)
    labels = (np.arange(200) % 3 == 0).astype(float)
    (one,) = task_rows({"t": logits}, {"t": logits}, {"t": labels}, frozenset())
    assert one.name == "t"
    assert not one.soft
    assert float(np.abs(one.loss - one.reference_loss).max()) == 0.0


def test_fewer_rows_are_less_sure() -> None:
    values = np.zeros(100)
    assert rare_bound(values, 0.95) >= rare_bound(np.zeros(10_000), 0.95)
