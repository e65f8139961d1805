"""The gate: what passes, what fails, what stays open, and what it says about it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rankc.optimizer.errors import BudgetError, DataError
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.gate import _control_false_alarms, judge, split_confidence
from rankc.optimizer.quality.intervals import Interval, paired_delta
from rankc.optimizer.quality.measures import decide
from rankc.optimizer.quality.metrics import recall_at_k
from rankc.optimizer.quality.verdict import CohortResult, CohortStatus, Status, Verdict
from scipy import special

FloatArray = NDArray[np.float64]
ROWS = 20_000
# Sound 8-bit noise moves logits by 0.5 % of their spread and NE by far less than this.
LOOSE = Budget(ne=5e-4)


def traffic(seed: int = 0, rows: int = ROWS) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """Logits of a calibrated model, its labels, and the user of each row."""
    random = np.random.default_rng(seed)
    user = random.integers(0, rows // 20, rows)
    logits = -1.0 + random.normal(size=rows) + random.normal(size=rows // 20)[user]
    labels = (random.random(rows) < special.expit(logits)).astype(np.float64)
    return logits, labels, user


def noisy(logits: FloatArray, size: float, seed: int = 1) -> FloatArray:
    return logits + size * np.random.default_rng(seed).normal(size=len(logits))


def judged(after: FloatArray, limits: Budget = LOOSE, seed: int = 0, **more: Any) -> Verdict:
    logits, labels, user = traffic(seed)
    return judge({"ctr": logits}, {"ctr": after}, {"ctr": labels}, limits, group=user, **more)


def measures(verdict: Verdict) -> dict[str, Status]:
    return {check.measure: check.status for task in verdict.tasks for check in task.checks}


# --- repeated looks -------------------------------------------------------------------------------


def test_repeated_looks_share_the_error_they_may_make() -> None:
    shares = [1.0 - split_confidence(0.95, attempt) for attempt in range(20)]
    assert shares[0] == pytest.approx(0.025)
    assert shares[1] == pytest.approx(0.0125)
    assert sum(shares) <= 0.05
    with pytest.raises(BudgetError, match="count from 0"):
        split_confidence(0.95, -1)
    with pytest.raises(BudgetError, match="outside"):
        split_confidence(1.5, 0)


def test_passing_by_luck_stays_within_the_error_over_many_looks() -> None:
    random = np.random.default_rng(0)
    # A copy truly a hair over the limit, judged at four backed-off points on the same rows.
    draws = random.normal(size=(20_000, 4))
    passes = np.zeros(20_000, dtype=bool)
    for attempt in range(4):
        quantile = special.ndtri((1.0 + split_confidence(0.95, attempt)) / 2.0)
        passes |= draws[:, attempt] + quantile <= 0.0
    assert passes.mean() <= 0.05


# --- the decision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, Status.PASS),
        (0.5, 1.1, Status.INCONCLUSIVE),
        (1.0, 1.1, Status.INCONCLUSIVE),
        (1.01, 1.1, Status.FAIL),
    ],
)
def test_decide_by_the_bounds(low: float, high: float, expected: Status) -> None:
    middle = (low + high) / 2
    assert decide(Interval(middle, low, high, 0.1, 10, 10), 1.0) is expected


def test_sound_eight_bit_noise_passes() -> None:
    logits, _, _ = traffic()
    verdict = judged(noisy(logits, 0.01))
    assert verdict.status is Status.PASS
    assert verdict.reasons == ()
    assert verdict.rows == ROWS
    assert verdict.labels == "labels"
    interval = verdict.delta_ne["ctr"]
    assert interval.low < interval.estimate < interval.high <= 5e-4
    assert interval.clusters == ROWS // 20
    assert 0.005 < verdict.shift["ctr"].relative < 0.01
    assert verdict.worst_delta_ne == interval.high


@pytest.mark.parametrize("size", [0.015, 0.05])
def test_shifts_of_sound_formats_are_under_the_default_guard(size: float) -> None:
    logits, _, _ = traffic()
    verdict = judged(noisy(logits, size * float(logits.std())), Budget(ne=0.01))
    assert verdict.status is Status.PASS


def test_an_identical_copy_passes_any_budget() -> None:
    logits, _, _ = traffic()
    everything = Budget(
        ne=0.0,
        auc=0.0,
        gauc=0.0,
        calibration=0.0,
        recall_at=(3, 1.0),
        max_shift=0.0,
        max_rms_shift=0.0,
    )
    verdict = judged(logits, everything)
    assert verdict.status is Status.PASS
    assert len(verdict.tasks[0].checks) == 8


def test_a_broken_copy_fails_and_every_limit_says_so() -> None:
    logits, _, _ = traffic()
    limits = Budget(auc=1e-3, gauc=1e-3, calibration=0.01, recall_at=(3, 0.95), max_shift=1.0)
    verdict = judged(noisy(logits, 1.0) + 0.5, limits)
    failed = {name for name, status in measures(verdict).items() if status is Status.FAIL}
    assert failed == {
        "ΔNE",
        "rms logit shift",
        "largest logit shift",
        "AUC drop",
        "GAUC drop",
        "calibration change",
        "recall@3 loss",
    }
    assert verdict.status is Status.FAIL
    assert len(verdict.reasons) == len(failed)
    assert all("is over the limit" in reason for reason in verdict.reasons)


def test_inconclusive_says_how_many_more_rows_decide() -> None:
    logits, _, _ = traffic()
    verdict = judged(noisy(logits, 0.03), Budget(ne=4e-4))
    assert verdict.status is Status.INCONCLUSIVE
    (reason,) = verdict.reasons
    assert "straddles the limit 0.0400 % on 20,000 rows" in reason
    check = verdict.tasks[0].checks[0]
    assert check.more_rows is not None
    assert check.more_rows > 0
    assert f"about {check.more_rows:,} more would decide" in reason


def test_inconclusive_with_the_estimate_over_the_limit_promises_nothing() -> None:
    logits, _, _ = traffic()
    estimate = judged(noisy(logits, 0.03)).delta_ne["ctr"].estimate
    assert estimate > 0.0
    verdict = judged(noisy(logits, 0.03), Budget(ne=0.9 * estimate))
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.tasks[0].checks[0].more_rows is None
    assert "the estimate itself is not under it: more rows would likely fail it" in str(verdict)


def test_more_confidence_asks_for_more() -> None:
    logits, _, _ = traffic()
    after = noisy(logits, 0.01)
    once = judged(after).delta_ne["ctr"]
    later = judged(after, confidence=split_confidence(0.95, 3))
    assert later.confidence == pytest.approx(1 - 0.05 / 16)
    assert later.delta_ne["ctr"].high > once.high


def test_clustering_by_user_is_what_widens_the_interval() -> None:
    random = np.random.default_rng(2)
    logits, _, user = traffic()
    # The model misses something about each user, and so does the copy, by a user's own shift.
    missed = random.normal(size=ROWS // 20)[user]
    labels = {"ctr": (random.random(ROWS) < special.expit(logits + missed)).astype(np.float64)}
    after = {"ctr": logits + 0.02 * random.normal(size=ROWS // 20)[user]}
    by_user = judge({"ctr": logits}, after, labels, LOOSE, group=user)
    by_row = judge({"ctr": logits}, after, labels, LOOSE)
    widened = by_user.delta_ne["ctr"].standard_error / by_row.delta_ne["ctr"].standard_error
    assert widened > 1.3
    assert "rows are taken as independent" in by_row.notes[0]


# --- luck -----------------------------------------------------------------------------------------


def miscalibrated() -> tuple[dict[str, FloatArray], dict[str, FloatArray], dict[str, FloatArray]]:
    """An original that is off by a bias, and a copy whose own bias happens to cancel it."""
    logits, labels, _ = traffic()
    return {"ctr": logits - 0.15}, {"ctr": logits}, {"ctr": labels}


def test_a_lucky_shift_is_not_a_pass() -> None:
    before, after, labels = miscalibrated()
    verdict = judge(before, after, labels, Budget(ne=5e-4, max_rms_shift=None))
    assert verdict.delta_ne["ctr"].high < -5e-4
    assert verdict.status is Status.FAIL
    (reason,) = verdict.reasons
    assert "NE gain" in reason
    assert "was lucky on these rows" in reason


def test_a_gain_after_finetuning_can_be_allowed() -> None:
    before, after, labels = miscalibrated()
    limits = Budget(ne=5e-4, max_rms_shift=None, two_sided=False)
    assert judge(before, after, labels, limits).status is Status.PASS


def test_a_large_shift_that_costs_no_ne_fails_by_its_size() -> None:
    before, after, labels = miscalibrated()
    limits = Budget(ne=0.5, max_rms_shift=0.05)
    verdict = judge(before, after, labels, limits)
    assert measures(verdict) == {
        "ΔNE": Status.PASS,
        "NE gain": Status.PASS,
        "rms logit shift": Status.FAIL,
    }


def test_one_row_far_off_is_seen_by_the_largest_shift() -> None:
    logits, _, _ = traffic()
    after = logits.copy()
    after[17] += 3.0
    verdict = judged(after, Budget(ne=5e-3, max_shift=1.0))
    assert verdict.shift["ctr"].largest_row == 17
    assert verdict.status is Status.FAIL
    assert "largest logit shift 3" in verdict.reasons[0]


def test_saturated_scores_are_counted() -> None:
    logits, labels, _ = traffic()
    before, after = logits.copy(), logits.copy()
    before[5], after[5:8] = 31.0, -40.0
    verdict = judge({"ctr": before}, {"ctr": after}, {"ctr": labels}, LOOSE)
    (task,) = verdict.tasks
    assert (task.before.saturated, task.after.saturated) == (1, 3)
    assert "task 'ctr': 3 rows are saturated" in verdict.notes[-1]
    assert verdict.notes[-1].endswith("1 of the original's")
    capped = np.minimum(1e4 * np.exp(logits), 65504.0)
    told = judge({"watch": capped}, {"watch": capped}, None, LOOSE, regression={"watch"})
    assert told.tasks[0].after.saturated == int((capped == 65504.0).sum()) > 0


def test_the_top_of_a_group_that_stays() -> None:
    logits, labels, user = traffic()
    after = noisy(logits, 0.3)
    limits = Budget(ne=None, recall_at=(3, 0.5), max_rms_shift=None)
    verdict = judge({"ctr": logits}, {"ctr": after}, {"ctr": labels}, limits, group=user)
    (ranking,) = verdict.tasks[0].ranking
    assert ranking.k == 3
    assert ranking.hard.estimate == recall_at_k(logits, after, user, 3)
    assert ranking.soft == recall_at_k(special.expit(logits), after, user, 3, soft=True)
    assert ranking.hard.estimate < ranking.soft < 1.0  # a near tie swapped costs little
    assert "ctr: of the original's top 3, " in str(verdict)
    assert Verdict.from_json(verdict.to_json()) == verdict
    by_value = judge({"t": logits}, {"t": after}, None, limits, group=user, regression={"t"})
    assert by_value.tasks[0].ranking[0].soft is None  # scores below 0 don't add up


def test_few_positives_cannot_prove_a_pass() -> None:
    logits, _, _ = traffic()
    labels = np.zeros(ROWS)
    labels[np.argsort(-logits)[:4]] = 1.0
    before, after = logits - 8.0, logits - 8.0 + 0.3
    after[labels == 1.0] -= 0.2999
    limits = Budget(ne=0.3, max_rms_shift=None, two_sided=False)
    verdict = judge({"ctr": before}, {"ctr": after}, {"ctr": labels}, limits)
    assert verdict.delta_ne["ctr"].high <= 0.3
    assert verdict.status is Status.INCONCLUSIVE
    assert "rests on fewer than 10 rows of the rarer class; about 30,000 more" in verdict.reasons[0]
    # A copy that can't cost that much whatever the labels needs no positives.
    assert judge({"ctr": before}, {"ctr": before + 1e-9}, {"ctr": labels}, limits).status == "pass"


# --- labels ---------------------------------------------------------------------------------------


def test_without_labels_the_original_is_the_teacher() -> None:
    logits, _, user = traffic()
    after = noisy(logits, 0.02)
    verdict = judge({"ctr": logits}, {"ctr": after}, None, LOOSE, group=user)
    p, q = special.expit(logits), special.expit(after)
    divergence = special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)
    entropy = special.entr(p) + special.entr(1 - p)
    assert verdict.delta_ne["ctr"].estimate == pytest.approx(divergence.mean() / entropy.mean())
    assert verdict.status is Status.PASS
    assert verdict.labels == "soft labels"
    assert "soft labels" in str(verdict)
    assert "task 'ctr': no labels, judged on the original's own scores" in verdict.notes[0]


def test_tasks_without_labels_are_named() -> None:
    logits, labels, user = traffic()
    scores = {"ctr": logits, "cvr": logits - 1.0}
    verdict = judge(scores, scores, {"ctr": labels}, LOOSE, group=user)
    assert [task.labels for task in verdict.tasks] == ["labels", "soft labels"]
    assert verdict.labels == "soft labels"
    assert verdict.notes[0].startswith("task 'cvr': no labels")


def test_given_soft_labels_are_labels() -> None:
    logits, _, user = traffic()
    soft = {"ctr": special.expit(logits)}
    after = {"ctr": noisy(logits, 0.01)}
    given_labels = judge({"ctr": logits}, after, soft, LOOSE, group=user)
    assert given_labels.labels == "labels"
    by_teacher = judge({"ctr": logits}, after, None, LOOSE, group=user)
    assert given_labels.delta_ne["ctr"].high == pytest.approx(by_teacher.delta_ne["ctr"].high)


def test_metrics_before_and_after_are_reported() -> None:
    logits, _, _ = traffic()
    result = judged(noisy(logits, 1.0)).tasks[0]
    assert result.before.ne is not None
    assert result.after.ne is not None
    relative = result.after.ne / result.before.ne - 1.0
    assert result.delta_ne.estimate == pytest.approx(relative)
    assert result.before.auc is not None
    assert result.after.auc is not None
    assert result.before.auc > result.after.auc
    assert result.before.calibration == pytest.approx(1.0, abs=0.05)
    assert result.before.gauc is not None


def test_a_regression_task_is_judged_on_its_squared_error() -> None:
    random = np.random.default_rng(3)
    truth = random.normal(100.0, 5.0, 4000)
    before = truth + random.normal(size=4000)
    after = before + 0.01 * random.normal(size=4000)
    verdict = judge(
        {"watch": before}, {"watch": after}, {"watch": truth}, Budget(ne=0.01), regression={"watch"}
    )
    old, new = np.square(before - truth).mean(), np.square(after - truth).mean()
    assert verdict.delta_ne["watch"].estimate == pytest.approx(new / old - 1.0)
    assert verdict.status is Status.PASS
    assert verdict.tasks[0].before.auc is None
    assert verdict.tasks[0].before.ne == pytest.approx(old / truth.var())


def test_a_regression_task_without_labels_is_charged_its_shift() -> None:
    random = np.random.default_rng(4)
    before = random.normal(0.0, 2.0, 4000)
    after = before + 0.02 * random.normal(size=4000)
    verdict = judge({"watch": before}, {"watch": after}, None, LOOSE, regression=["watch"])
    assert verdict.delta_ne["watch"].estimate == pytest.approx(1e-4, rel=0.1)
    assert verdict.labels == "soft labels"


# --- several tasks --------------------------------------------------------------------------------


def test_every_task_must_pass() -> None:
    logits, labels, user = traffic()
    before = {"ctr": logits, "cvr": logits}
    after = {"ctr": noisy(logits, 0.005), "cvr": noisy(logits, 1.0)}
    truth = {"ctr": labels, "cvr": labels}
    verdict = judge(before, after, truth, LOOSE, group=user)
    assert [task.status for task in verdict.tasks] == [Status.PASS, Status.FAIL]
    assert verdict.status is Status.FAIL
    assert all("'cvr'" in reason for reason in verdict.reasons)
    own = Budget(ne=5e-4, tasks={"cvr": Budget(ne=0.9, max_rms_shift=None)})
    assert judge(before, after, truth, own, group=user).status is Status.PASS


# --- cohorts --------------------------------------------------------------------------------------


def planted() -> tuple[FloatArray, FloatArray, NDArray[np.str_]]:
    """A copy that is sound for most and broken for one occupation in twenty."""
    logits, _, user = traffic()
    occupation = np.array([f"job{u % 20}" for u in user])
    after = noisy(logits, 0.002)
    broken = occupation == "job7"
    after[broken] = noisy(logits[broken], 1.0)
    return logits, after, occupation


def test_damage_to_a_minority_passes_the_mean_and_fails_the_cohorts() -> None:
    _, after, occupation = planted()
    limits = Budget(ne=0.015, max_rms_shift=None)
    assert judged(after, limits).status is Status.PASS
    verdict = judged(after, limits, cohorts={"occupation": occupation})
    assert verdict.status is Status.FAIL
    worst = verdict.cohorts[0]
    assert (worst.axis, worst.value, worst.status) == ("occupation", "job7", CohortStatus.FAIL)
    assert worst.corrected_low is not None
    assert worst.corrected_low > 3 * 0.015
    assert [cohort.status for cohort in verdict.cohorts].count(CohortStatus.FAIL) == 1
    lost = [cohort.delta_ne.estimate for cohort in verdict.cohorts if cohort.delta_ne]
    assert lost == sorted(lost, reverse=True)
    (reason,) = verdict.reasons
    assert "cohort occupation=job7" in reason
    assert "over 3 times the limit (4.5000 %)" in reason
    assert worst.calibration_before is not None


def test_cohorts_can_be_chosen_and_switched_off() -> None:
    _, after, occupation = planted()
    limits = Budget(ne=0.015, max_rms_shift=None, cohorts=("half",))
    cohorts = {"occupation": occupation, "half": np.arange(ROWS) % 2}
    verdict = judged(after, limits, cohorts=cohorts)
    assert verdict.status is Status.PASS
    assert {cohort.axis for cohort in verdict.cohorts} == {"half"}
    off = judged(after, dataclasses.replace(limits, cohorts=False), cohorts=cohorts)
    assert off.cohorts == ()
    with pytest.raises(DataError, match="gates cohort half; the rows bring occupation"):
        judged(after, limits, cohorts={"occupation": occupation})
    with pytest.raises(DataError, match=re.escape("cohort 'half': shape [3], expected one entry")):
        judged(after, limits, cohorts={"half": [1, 2, 3]})


def test_tiny_cohorts_are_unknown_and_come_last() -> None:
    logits, _, _ = traffic()
    region = np.where(np.arange(ROWS) < 100, "tiny", "rest")
    verdict = judged(noisy(logits, 0.005), cohorts={"region": region})
    assert [(c.value, c.status.value) for c in verdict.cohorts] == [
        ("rest", "pass"),
        ("tiny", "unknown"),
    ]
    assert verdict.cohorts[1].delta_ne is None
    assert "1 cohorts are too small to judge: unknown, not passed" in verdict.notes
    assert verdict.status is Status.PASS


def test_an_axis_of_many_tiny_cohorts_is_counted_not_listed() -> None:
    logits, _, user = traffic()
    verdict = judged(noisy(logits, 0.005), cohorts={"user": user})
    assert len(verdict.cohorts) == 20
    assert "1,000 cohorts are too small to judge" in verdict.notes[-1]


def test_sound_cohorts_rarely_raise_a_false_alarm() -> None:
    random = np.random.default_rng(5)
    # Every cohort sits exactly at the border, three times the limit: the hardest sound case.
    alarms = 0
    for _ in range(200):
        rows = 20 * 100
        reference = np.ones(rows)
        loss = reference * (1.0 + 3e-3) + 0.05 * random.normal(size=rows)
        tested = []
        for value in range(20):
            part = slice(value * 100, (value + 1) * 100)
            interval = paired_delta(reference[part], loss[part])
            tested.append(
                CohortResult("ctr", "axis", str(value), 100, CohortStatus.INCONCLUSIVE, interval)
            )
        decided = _control_false_alarms(tested, Budget(ne=1e-3))
        alarms += any(cohort.status is CohortStatus.FAIL for cohort in decided)
        for cohort in decided:
            assert cohort.corrected_low is not None
            over = cohort.corrected_low > 3e-3
            assert over == (cohort.status is CohortStatus.FAIL)
    assert alarms / 200 <= 0.06  # 0.025 is promised; uncorrected it would be 0.4


# --- what is refused ------------------------------------------------------------------------------

GOOD = {"ctr": np.array([0.5, -0.5, 1.0])}
LABELS = {"ctr": np.array([1.0, 0.0, 1.0])}


@pytest.mark.parametrize(
    ("before", "after", "labels", "more", "expected"),
    [
        ({}, {}, None, {}, "there is no task to judge"),
        ({"ctr": []}, {"ctr": []}, None, {}, "task 'ctr': the evaluation set is empty"),
        (GOOD, {"cvr": GOOD["ctr"]}, None, {}, "the original has ['ctr'], the optimized model"),
        (GOOD, {"ctr": [1.0]}, None, {}, "task 'ctr': 3 rows of the original, 1 of the optimized"),
        (
            GOOD,
            {"ctr": [0.5, math.nan, math.inf]},
            None,
            {},
            "optimized logits of task 'ctr': 2 of 3 rows are NaN or infinite, the first in row 1",
        ),
        (
            {"ctr": [math.inf, 0.0, 0.0]},
            GOOD,
            None,
            {},
            "original logits of task 'ctr': 1 of 3 rows is NaN or infinite, the first in row 0",
        ),
        (GOOD, GOOD, {"ctr": [1.0, 0.0]}, {}, "task 'ctr': 2 labels for 3 rows"),
        (GOOD, GOOD, {"cvr": [1.0, 0.0, 1.0]}, {}, "unknown task cvr; the model has ['ctr']"),
        (GOOD, GOOD, LABELS, {"regression": ["x"]}, "unknown task x"),
        (
            GOOD,
            GOOD,
            {"ctr": [1.0, 2.0, -1.0]},
            {},
            "labels of task 'ctr': 2 of 3 rows are outside [0, 1], the first in row 1 (2)",
        ),
        (GOOD, GOOD, {"ctr": [1.0, math.inf, 0.0]}, {}, "labels of task 'ctr': 1 of 3 rows is NaN"),
        (
            GOOD,
            GOOD,
            {"ctr": [math.nan] * 3},
            {},
            "none of the 3 evaluation rows of task 'ctr' has",
        ),
        (GOOD, GOOD, {}, {"weights": [1.0, -1.0, 1.0]}, "weights: 3 for 3 rows, the least -1"),
        (GOOD, GOOD, {}, {"weights": [0.0] * 3}, "expected one a row, none negative and not all 0"),
        (
            GOOD,
            GOOD,
            {"ctr": [0, 0, 0]},
            {},
            "evaluation rows of task 'ctr' are all 0 (3 rows): NE and AUC need both classes; "
            "give more rows",
        ),
        (GOOD, GOOD, {"ctr": [1, 1, 1]}, {}, "evaluation rows of task 'ctr' are all 1"),
        (
            {"a": [0.0, 1.0], "b": [0.0, 1.0, 2.0]},
            {"a": [0.0, 1.0], "b": [0.0, 1.0, 2.0]},
            None,
            {},
            "the tasks have different numbers of rows: {'a': 2, 'b': 3}",
        ),
        (GOOD, GOOD, LABELS, {"group": [1, 2]}, "group has shape [2], expected one entry for 3"),
        (
            GOOD,
            GOOD,
            LABELS,
            {"budget": Budget(recall_at=(2, 0.9))},
            "the budget limits recall_at, which is measured within requests: give every row its",
        ),
        (GOOD, GOOD, LABELS, {"budget": Budget(gauc=0.1)}, "the budget limits gauc"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    labels: Mapping[str, Any] | None,
    more: dict[str, Any],
    expected: str,
) -> None:
    arguments = {"budget": LOOSE, **more}
    with pytest.raises(DataError, match=re.escape(expected)):
        judge(before, after, labels, **arguments)


def test_a_budget_for_a_task_the_model_has_not_is_refused() -> None:
    with pytest.raises(BudgetError, match="it limits task cvr, the model has ctr"):
        judge(GOOD, GOOD, LABELS, Budget(tasks={"cvr": Budget()}))
