"""How much of the final stage's top candidates an early stage keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy import special

from ..data.batch import Contract
from ..data.rows import Rows, collect
from ..errors import DataError, SignatureError
from ..ir.program import Program
from ..ir.signature import Signature, TaskKind
from ..quality.intervals import Interval, recall_interval
from ..quality.metrics import recall_at_k
from ..quality.scores import score


class Joint(Protocol):
    """Both stages as one: an artifact, as far as this needs it."""

    @property
    def signature(self) -> Signature:
        """The features and tasks."""

    @property
    def manifest(self) -> Contract:
        """What calls are held against."""

    def run(self, features: Mapping[str, Any]) -> Mapping[str, Any]:
        """Scores flat rows."""


@dataclass(frozen=True)
class Consistency:
    """The consistency of two stages on one task.

    Attributes:
        task: The task both score.
        k: Candidates the early stage passes on, per group.
        hard: The share of the final stage's top k that is among the early stage's, with its
            confidence interval, clustered by group.
        soft: The final stage's scores, as probabilities, of what the early stage passes on, over
            the most that k candidates have; None where a regression scores below 0.
    """

    task: str
    k: int
    hard: Interval
    soft: float | None

    def __str__(self) -> str:
        value = "" if self.soft is None else f" and {self.soft:.1%} of their value"
        return (
            f"of the final stage's top {self.k} for {self.task!r}, the early stage keeps "
            f"{self.hard.estimate:.1%} ({self.hard.low:.1%} to {self.hard.high:.1%}){value}, over "
            f"{self.hard.clusters:,} groups"
        )


def consistency(
    joint: Program | Joint,
    data: Iterable[Any] | None,
    *,
    early: str,
    final: str,
    k: Sequence[int] = (10,),
) -> list[Consistency]:
    """Measures how consistently an early stage ranks with a final stage.

    Hard and soft recall@k of multi-task early-stage ranking (2307.11096), for every task both have.

    Args:
        joint: What `consolidate` made of both, or an artifact of that.
        data: Batches with ``group``: the request each candidate is of.
        early: The early-stage model's name.
        final: The final-stage model's name.
        k: Candidates kept a group.

    Raises:
        SignatureError: The models have no task in common.
        DataError: No groups, or none of more than k rows.
    """
    signature = joint.signature
    tasks = {task.name: task for task in signature.served}
    common = [
        name.removeprefix(f"{early}/")
        for name in tasks
        if name.startswith(f"{early}/") and f"{final}/{name.removeprefix(f'{early}/')}" in tasks
    ]
    if not common:
        raise SignatureError(
            f"models {early!r} and {final!r} score no task of one name; the tasks are "
            f"{list(tasks)}."
        )
    rows = _rows(joint, data)
    assert rows.group is not None
    scores = score(joint.run, rows, signature)
    found = []
    for task in common:
        first, last = scores[f"{early}/{task}"], scores[f"{final}/{task}"]
        is_binary = tasks[f"{final}/{task}"].kind is TaskKind.BINARY
        value = special.expit(last) if is_binary else last
        for cut in k:
            hard = recall_interval(value, first, rows.group, cut)
            is_value = bool((value >= 0.0).all())
            soft = recall_at_k(value, first, rows.group, cut, soft=True) if is_value else None
            found.append(Consistency(task, cut, hard, soft))
    return found


def _rows(joint: Program | Joint, data: Iterable[Any] | None) -> Rows:
    if data is None:
        raise DataError("consistency of two stages is measured on rows; give data=.")
    rows = collect(data, joint if isinstance(joint, Program) else joint.manifest)
    if rows.group is None:
        raise DataError("consistency is measured per request; give batches with group=.")
    return rows
