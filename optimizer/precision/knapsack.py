"""Which format each site takes: an exact multiple-choice knapsack, solved by HiGHS.

Every site offers candidates with a time and a damage per task. One candidate a site is taken, so
that the sum of times is least while every task's sum of damages stays within its limit.

Damage is what a candidate alone costs on *soft labels*, in NE relative to the original's: the mean
Kullback-Leibler divergence of the scores over their mean entropy. It has no label noise, so a few
thousand rows measure it; it is of second order in the score's error, so the damages of sites whose
errors are independent add up; and it doesn't change with the scale of the loss or the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


@dataclass(frozen=True)
class Choice:
    """One candidate of one site.

    Attributes:
        seconds: What the site takes with it.
        damage: ``{task: rise of NE}`` it causes alone; negative counts as none.
    """

    seconds: float
    damage: Mapping[str, float]


def place(sites: Sequence[Sequence[Choice]], limits: Mapping[str, float]) -> tuple[int, ...] | None:
    """The candidate to take at each site, or None when no plan is within the limits.

    Args:
        sites: The candidates of each site, at least one each.
        limits: ``{task: largest sum of damages}``; tasks without a limit are free.

    Returns:
        An index per site. Among plans equally fast, the one with less damage.
    """
    if not sites:
        return ()
    flat = [choice for site in sites for choice in site]
    seconds = np.array([choice.seconds for choice in flat])
    rows, lows, highs = [], [], []
    start = 0
    for site in sites:
        picks = np.zeros(len(flat))
        picks[start : start + len(site)] = 1.0
        rows.append(picks)
        lows.append(1.0)
        highs.append(1.0)
        start += len(site)
    relative = np.zeros(len(flat))
    for task, limit in limits.items():
        damage = np.array([max(choice.damage.get(task, 0.0), 0.0) for choice in flat])
        if limit <= 0.0:
            relative_damage, bound = (damage > 0.0).astype(float), 0.0
        else:
            # In units of the limit the solver's tolerances mean the same for every loss.
            relative_damage, bound = np.minimum(damage / limit, 2.0), 1.0
        relative = np.maximum(relative, relative_damage)
        rows.append(relative_damage)
        lows.append(-np.inf)
        highs.append(bound)
    scale = float(np.abs(seconds).sum()) or 1.0
    solved = milp(
        seconds / scale + 1e-7 * relative / len(sites),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(np.array(rows), lows, highs),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        return None
    chosen, start = [], 0
    for site in sites:
        chosen.append(int(np.argmax(solved.x[start : start + len(site)])))
        start += len(site)
    return tuple(chosen)
