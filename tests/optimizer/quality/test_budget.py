"""Budgets: what is refused, and that they survive text and JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankc.optimizer.errors import BudgetError
from rankc.optimizer.quality.budget import Budget


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ne": -1e-4}, "ne=-0.0001 is negative"),
        ({"ne": math.nan}, "ne=nan is no limit"),
        ({"ne": math.inf}, "ne=inf is no limit"),
        ({"ne": True}, "ne is a number or None, found True"),
        ({"ne": "0.1"}, "ne is a number or None, found '0.1'"),
        ({"ne": 2.0}, "ne=2.0 is 100 % or more; 0.0002 is 0.02 %"),
        ({"auc": -0.1}, "auc=-0.1 is negative"),
        ({"confidence": 95}, "confidence=95 is outside (0, 1); 95 % is 0.95"),
        ({"confidence": 0.0}, "confidence=0.0 is outside (0, 1)"),
        ({"confidence": math.nan}, "confidence=nan is outside (0, 1)"),
        ({"confidence": None}, "confidence is a number, found None"),
        ({"two_sided": 1}, "two_sided is True or False, found 1"),
        ({"recall_at": (0, 0.9)}, "whole k of at least 1, found 0"),
        ({"recall_at": (10, 1.2)}, "recall@10 of at least 1.2 is outside [0, 1]"),
        ({"recall_at": 10}, "expected (k, least recall)"),
        ({"recall_at": ((5, 0.9), (5, 0.8))}, "gives one k twice"),
        ({"cohorts": "age"}, "cohorts is True, False or a tuple of names, found 'age'"),
        ({"cohorts": ("a,b",)}, "'a,b' can't name a cohort axis"),
        ({"tasks": {"ctr": 0.1}}, "tasks maps names to Budgets, found 'ctr': 0.1"),
        ({"tasks": {"a=b": Budget()}}, "'a=b' can't name a task"),
        ({"tasks": (("a", Budget()), ("a", Budget()))}, "a task is given twice"),
        ({"tasks": {"a": Budget(tasks={"b": Budget()})}}, "'a' has tasks of its own"),
        ({"tasks": {"a": Budget(confidence=0.9)}}, "hold for all tasks; take them out of 'a'"),
        ({"ne": None, "max_rms_shift": None}, "it sets no limit at all"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(expected)):
        Budget(**fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ne", "budget 'ne': expected limit=value with a limit of ne, auc"),
        ("nee=1", "budget 'nee=1': expected limit=value"),
        ("ne=abc", "budget 'ne=abc': 'abc' is not a number"),
        ("ne=0.1,ne=0.2", "ne is given twice"),
        ("recall_at=10", "expected k:recall, such as 10:0.95"),
        ("two_sided=maybe", "expected true or false"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(text: str, expected: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(expected)):
        Budget.parse(text)


def test_parse_reads_every_limit() -> None:
    line = (
        "ne=0.02%, auc=0.001, gauc=0.002, calibration=1%, recall_at=10:0.95+50:0.99, max_shift=2,"
        "max_rms_shift=none, two_sided=false, cohorts=age+gender, confidence=0.99, cvr.ne=0.0005"
    )
    assert Budget.parse(line) == Budget(
        ne=2e-4,
        auc=0.001,
        gauc=0.002,
        calibration=0.01,
        recall_at={10: 0.95, 50: 0.99},
        max_shift=2.0,
        max_rms_shift=None,
        two_sided=False,
        tasks={"cvr": Budget(ne=5e-4)},
        cohorts=("age", "gender"),
        confidence=0.99,
    )
    assert Budget.parse("") == Budget()


LIMIT = st.none() | st.floats(0.0, 0.99)
LIMITS = st.fixed_dictionaries(
    {
        "ne": LIMIT,
        "auc": LIMIT,
        "gauc": LIMIT,
        "calibration": LIMIT,
        "recall_at": st.none() | st.dictionaries(st.integers(1, 99), st.floats(0.0, 1.0)),
        "max_shift": st.none() | st.floats(0.0, 1e6),
        "max_rms_shift": st.floats(0.0, 1e6),
        "two_sided": st.booleans(),
    }
)
BUDGETS = st.builds(
    lambda own, tasks, cohorts, confidence: Budget(
        **own, tasks=tasks, cohorts=cohorts, confidence=confidence
    ),
    LIMITS,
    st.dictionaries(st.sampled_from(["ctr", "a.b"]), LIMITS.map(lambda own: Budget(**own))),
    st.booleans() | st.lists(st.sampled_from(["age", "sex"]), unique=True).map(tuple),
    st.floats(0.01, 0.99),
)


@given(BUDGETS)
def test_budgets_survive_text_and_json(limits: Budget) -> None:
    assert Budget.parse(limits.spec()) == limits
    assert Budget.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert hash(limits) == hash(Budget.parse(str(limits)))


def test_unknown_json_fields_are_refused() -> None:
    with pytest.raises(BudgetError, match="unknown nee"):
        Budget.from_json({"nee": 1e-4})


def test_a_pair_and_a_mapping_of_cuts_are_the_same() -> None:
    assert Budget(recall_at=(10, 0.95)) == Budget(recall_at={10: 0.95})
    assert Budget(recall_at=(10, 0.95)).cuts == ((10, 0.95),)


def test_a_task_takes_its_own_limits_and_the_confidence_of_all() -> None:
    limits = Budget(ne=1e-4, auc=0.1, tasks={"cvr": Budget(ne=1e-3)}, confidence=0.9)
    assert limits.for_task("ctr").ne == 1e-4
    assert (limits.for_task("cvr").ne, limits.for_task("cvr").auc) == (1e-3, None)
    assert limits.for_task("cvr").confidence == 0.9
