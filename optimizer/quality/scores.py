"""Scoring rows with any program or artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.delimiters import row_count
from ..data.rows import RUN_BATCH, Rows
from ..errors import DataError
from ..ir.signature import Score, Signature, Task, TaskKind
from .metrics import logits_from_probabilities

Scores = dict[str, np.ndarray[Any, Any]]


Runner = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]


def score(run: Runner, rows: Rows, signature: Signature, batch: int = RUN_BATCH) -> Scores:
    """The logits (or values, for regressions) ``[N]`` of every served task.

    Args:
        run: Takes feature tensors by name, returns output tensors or arrays by name.
        rows: What to score.
        signature: Says where each task is among the outputs.
        batch: Rows a call.

    Raises:
        DataError: An output is NaN or Inf; which one, and in which row first.
    """
    parts: dict[str, list[Any]] = {task.name: [] for task in signature.served}
    for features in rows.batches(batch):
        outputs = run(features)
        count = row_count(features, rows.ragged)
        for task in signature.served:
            value = outputs[task.output]
            array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            column = array.reshape(count, -1)[:, task.column or 0]
            parts[task.name].append(column)
    found: Scores = {}
    for task in signature.served:
        values = np.concatenate(parts[task.name])
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(
                f"output {task.name!r} is NaN or Inf in {int(bad.sum()):,} of {len(values):,} "
                f"rows, first in row {rows.first + int(bad.argmax())}."
            )
        if task.score is Score.PROBABILITY and task.kind is TaskKind.BINARY:
            # In the dtype it was computed in, which tells what its 0 and 1 stand for.
            values = logits_from_probabilities(values, f"output {task.name!r}")
        found[task.name] = values.astype(np.float64)
    return found


def task_logits(task: Task, outputs: Mapping[str, Tensor]) -> Tensor:
    """A task's logits ``[B]`` (values, for a regression) out of a program's outputs."""
    value = outputs[task.output]
    column = value.reshape(len(value), -1)[:, task.column or 0]
    if task.score is Score.PROBABILITY and task.kind is TaskKind.BINARY:
        return torch.logit(column, eps=1e-6)
    return column
