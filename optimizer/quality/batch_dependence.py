"""Whether a row's score depends on the other rows of its batch.

Formats whose scale is taken from the whole batch (per-tensor dynamic quantization) score a row
differently at batch 64 and at 512: what was proved at one batch size says nothing of another.
Rows are scored in a batch, alone, and among other rows; the same row must score alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..data.ragged import take
from ..data.rows import Rows
from ..ir.signature import Signature
from .budget import Budget
from .scores import Runner, score

#: Rows that are scored in one batch, and among others; of which the first few also alone.
_ROWS, _ALONE = 512, 16


def batch_shift(run: Runner, rows: Rows, signature: Signature) -> dict[str, float]:
    """How far the logits move when a row's batch mates change, per task.

    Args:
        run: What was built.
        rows: Real rows; the first 512 are scored.
        signature: Says where each task is among the outputs.

    Returns:
        The rms difference over the standard deviation of the task's logits on these rows.
    """
    some = rows.part(0, _ROWS)
    together = score(run, some, signature, batch=_ROWS)
    few = some.part(0, _ALONE)
    alone = score(run, few, signature, batch=1)
    # Every seventh row next to each other: other mates, in a batch of another size.
    order = np.argsort(np.arange(len(some)) % 7, kind="stable")
    features = take(some.features, some.ragged, torch.from_numpy(order))
    shuffled = Rows(features, ragged=some.ragged)
    among = score(run, shuffled, signature, batch=64)
    found = {}
    for task, logits in together.items():
        spread = float(logits.std()) or 1.0
        moved = max(_rms(logits[: len(few)] - alone[task]), _rms(logits[order] - among[task]))
        found[task] = moved / spread
    return found


def too_far(shifts: Mapping[str, float], budget: Budget) -> tuple[str, ...]:
    """A sentence for each task whose scores depend on the batch more than the budget allows."""
    return tuple(
        f"{task}: a row's score depends on the other rows of its batch: its logit moves by "
        f"{shift:.3g} of the logits' spread (rms), and batch_shift allows "
        f"{budget.for_task(task).batch_shift:.3g}; static or per-row scales don't do that"
        for task, shift in shifts.items()
        if (limit := budget.for_task(task).batch_shift) is not None and shift > limit
    )


def _rms(difference: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))
