"""Scores that depend on the other rows of the batch are found, and refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.ir import Signature
from rankc.optimizer.ir.signature import Feature, FeatureKind, Task
from rankc.optimizer.quality.batch_dependence import batch_shift, too_far
from rankc.optimizer.quality.budget import Budget
from torch import Tensor

SIGNATURE = Signature(
    (Feature("x", FeatureKind.DENSE, "float32", ("batch", 8)),), (Task("ctr", "ctr"),), ("ctr",)
)
ROWS = Rows({"x": torch.randn(600, 8, generator=torch.Generator().manual_seed(0))})
WEIGHT = torch.randn(8, generator=torch.Generator().manual_seed(1))


def plain(features: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"ctr": features["x"] @ WEIGHT}


def dynamic(features: Mapping[str, Tensor]) -> dict[str, Any]:
    """Per-tensor dynamic INT8: the scale is the batch's own."""
    x = features["x"]
    scale = x.abs().max() / 127
    return {"ctr": ((x / scale).round() * scale) @ WEIGHT}


def per_row(features: Mapping[str, Tensor]) -> dict[str, Any]:
    x = features["x"]
    scale = x.abs().amax(1, keepdim=True) / 127
    return {"ctr": ((x / scale).round() * scale) @ WEIGHT}


def centred(features: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"ctr": (features["x"] - features["x"].mean(0)) @ WEIGHT}


@pytest.mark.parametrize("run", [plain, per_row])
def test_rows_that_score_by_themselves_pass(run: Any) -> None:
    shifts = batch_shift(run, ROWS, SIGNATURE)
    assert shifts["ctr"] < 1e-4
    assert too_far(shifts, Budget()) == ()


@pytest.mark.parametrize(("run", "limit"), [(dynamic, 1e-4), (centred, 0.003)])
def test_rows_that_score_by_their_batch_fail(run: Any, limit: float) -> None:
    shifts = batch_shift(run, ROWS, SIGNATURE)
    (reason,) = too_far(shifts, Budget(batch_shift=limit))
    assert reason.startswith("ctr: a row's score depends on the other rows of its batch")
    assert too_far(shifts, Budget(batch_shift=None)) == ()


def test_a_tasks_own_budget_holds_for_it() -> None:
    budget = Budget(tasks={"ctr": Budget(batch_shift=None)})
    assert too_far({"ctr": 1.0}, budget) == ()
