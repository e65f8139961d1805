"""An interval against a limit."""

from __future__ import annotations

from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.intervals import Interval
from rankc.optimizer.quality.measures import columns_of, decide
from rankc.optimizer.quality.verdict import Status


def around(estimate: float, low: float, high: float) -> Interval:
    return Interval(estimate, low, high, 1.0, 100, 100)


def test_the_bound_decides_not_the_estimate() -> None:
    assert decide(around(0.0, -1.0, 1.0), 2.0) is Status.PASS
    assert decide(around(0.0, -1.0, 3.0), 2.0) is Status.INCONCLUSIVE
    assert decide(around(3.0, 2.5, 4.0), 2.0) is Status.FAIL


def test_our_own_measures_need_no_columns() -> None:
    assert columns_of(Budget(ne=1e-3, auc=1e-3)) == ()
