"""The knapsack against brute force, and what its allowance means."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from rankc.optimizer.precision.knapsack import Choice, place
from rankc.optimizer.quality.damage import allowance


def brute_force(sites: list[list[Choice]], limits: dict[str, float]) -> float:
    """The least time of any plan within the limits; inf when there is none."""
    best = math.inf
    for plan in itertools.product(*sites):
        if all(sum(c.damage[task] for c in plan) <= limit for task, limit in limits.items()):
            best = min(best, sum(c.seconds for c in plan))
    return best


@pytest.mark.parametrize("seed", range(220))
def test_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = ["ctr", "cvr"][: rng.integers(1, 3)]
    sites = [
        [
            Choice(float(rng.exponential()), {t: float(rng.exponential()) for t in tasks})
            for _ in range(rng.integers(1, 5))
        ]
        for _ in range(rng.integers(1, 6))
    ]
    limits = {task: float(rng.uniform(0.1, 5.0)) for task in tasks}
    best = brute_force(sites, limits)
    plan = place(sites, limits)
    if plan is None:
        assert best == math.inf
        return
    chosen = [site[index] for site, index in zip(sites, plan, strict=True)]
    for task, limit in limits.items():
        assert sum(c.damage[task] for c in chosen) <= limit * (1 + 1e-6)
    assert sum(c.seconds for c in chosen) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_times_and_damages_does_not_matter(scale: float) -> None:
    rng = np.random.default_rng(0)
    times, damages = rng.exponential(size=(12, 4)), rng.exponential(size=(12, 4))
    plain = [
        [Choice(float(t), {"y": float(d)}) for t, d in zip(*row, strict=True)]
        for row in zip(times, damages, strict=True)
    ]
    scaled = [[Choice(c.seconds * scale, {"y": c.damage["y"] * scale}) for c in s] for s in plain]
    assert place(plain, {"y": 6.0}) == place(scaled, {"y": 6.0 * scale})


def test_a_candidate_without_damage_fits_a_budget_of_nothing() -> None:
    sites = [[Choice(1.0, {"y": 0.0}), Choice(0.5, {"y": 1e-9})]]
    assert place(sites, {"y": 0.0}) == (0,)
    assert place([[Choice(0.5, {"y": 1e-9})]], {"y": 0.0}) is None


def test_no_sites_is_a_plan() -> None:
    assert place([], {"y": 1.0}) == ()


def test_the_allowance_puts_the_bound_at_the_limit() -> None:
    rows, entropy, limit = 40_000, 0.3, 2e-4
    damage = allowance(limit, rows, entropy, 0.95)
    assert damage + 1.959964 * math.sqrt(2 * damage / (rows * entropy)) == pytest.approx(limit)
    assert allowance(limit, 10 * rows, entropy, 0.95) > damage
    assert allowance(0.0, rows, entropy, 0.95) == 0.0


def test_the_allowance_predicts_the_spread_of_measured_delta_ne() -> None:
    """Labels drawn from a calibrated model: 95 % of ΔNE fall under the predicted bound."""
    rng = np.random.default_rng(1)
    rows = 5_000
    logits = rng.normal(-1.0, 1.0, rows)
    p = 1 / (1 + np.exp(-logits))
    entropy = float(np.mean(-p * np.log(p) - (1 - p) * np.log1p(-p)))
    shift = rng.normal(0.0, 0.05, rows)
    q = 1 / (1 + np.exp(-logits - shift))
    soft = float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))) / entropy
    under = 0
    for _ in range(400):
        y = rng.uniform(size=rows) < p
        loss = np.where(y, np.log(p / q), np.log((1 - p) / (1 - q)))
        under += abs(loss.mean() / entropy - soft) <= 1.96 * math.sqrt(2 * soft / (rows * entropy))
    assert 0.92 <= under / 400 <= 0.98
