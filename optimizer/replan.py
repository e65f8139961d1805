"""`replan`: an artifact for another budget, from what was measured for the first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .artifact.artifact import Artifact
from .data.parquet import Parquet
from .driver import optimize
from .ir.program import Program
from .quality.budget import Budget
from .target import Target


def replan(
    artifact: Artifact,
    model: nn.Module | Program | str | Path,
    *,
    data: Iterable[Any] | Parquet | str | Path,
    budget: Budget,
    target: str | Target | None = None,
    trust_code: bool = False,
) -> Artifact:
    """An artifact of the same model for another budget, from the probe of the first.

    Nothing that was measured at a site is measured again; the new plan is judged and proved as any.

    Args:
        artifact: Optimized from this model on this data.
        model: The model.
        data: The rows.
        budget: The new limits.
        target: The artifact's; only needed where that is one of your own.
        trust_code: Whether a ``.pt2`` file may be opened: it is unpickled, and can do whatever this
            process can.

    Raises:
        CheckpointError: The artifact is of another model or other rows.
        BudgetExceeded: Not even the original is within the budget.
    """
    made = artifact.manifest
    return optimize(
        model,
        target or made.target,
        data=data,
        budget=budget,
        pipeline=made.pipeline,
        batch_sizes=made.batch_sizes,
        seed=made.seed,
        trust_code=trust_code,
        checkpoint=artifact,
    )
