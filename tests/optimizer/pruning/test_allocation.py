"""Plans are spent step by step."""

from __future__ import annotations

import torch
from rankc.optimizer.pruning.allocation import Plan, Step


def test_a_plan_is_cut_where_it_is_told() -> None:
    steps = tuple(
        Step(0, (unit,), {"t": 0.1 * (unit + 1)}, 1.0 - 0.2 * (unit + 1), 100.0 - 20 * (unit + 1))
        for unit in range(3)
    )
    plan = Plan(1.0, 100.0, steps)
    assert len(plan.first(2).steps) == 2
    assert torch.tensor(plan.saved).min() >= 0
