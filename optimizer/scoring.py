"""Scoring rows with any program or artifact, and judging the scores against the original's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .budget import Budget
from .data import RUN_BATCH, Rows
from .errors import DataError
from .gate import judge
from .ir.program import Program
from .ir.signature import Score, Signature, TaskKind
from .quality import logits_from_probabilities
from .verdict import Verdict

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
        count = len(next(iter(features.values())))
        for task in signature.served:
            value = outputs[task.output]
            array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            column = array.reshape(count, -1)[:, task.column or 0]
            parts[task.name].append(column.astype(np.float64))
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
            values = logits_from_probabilities(values, f"output {task.name!r}")
        found[task.name] = values
    return found


@dataclass
class Judge:
    """Compares programs with the original on one set of rows.

    Attributes:
        rows: The rows.
        reference: The original's scores on them.
        signature: Of the original.
        budget: The limits.
        confidence: In place of the budget's.
    """

    rows: Rows
    reference: Scores
    signature: Signature
    budget: Budget
    confidence: float | None = None

    @classmethod
    def of(cls, original: Program, rows: Rows, budget: Budget) -> Judge:
        """A judge that takes the original's scores as reference."""
        return cls(rows, score(original.run, rows, original.signature), original.signature, budget)

    def __call__(self, program: Program) -> Verdict:
        """The verdict on a program, run in PyTorch."""
        return self.on(score(program.run, self.rows, program.signature))

    def on(self, scores: Scores, confidence: float | None = None) -> Verdict:
        """The verdict on scores of the same rows, from whatever made them."""
        regression = [t.name for t in self.signature.served if t.kind is TaskKind.REGRESSION]
        return judge(
            {name: self.reference[name] for name in scores},
            scores,
            self.rows.labels,
            self.budget,
            group=self.rows.group,
            cohorts=self.rows.cohorts,
            regression=regression,
            confidence=confidence or self.confidence,
        )
