"""Intervals against simulation, closed forms and the jackknife."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from rankc.optimizer.errors import DataError
from rankc.optimizer.quality import intervals
from rankc.optimizer.quality import metrics as quality
from rankc.optimizer.quality.intervals import Interval
from scipy import special

REPETITIONS = 3000


def coverage(users: int, spread: float, *, clustered: bool, sizes: str = "equal") -> float:
    """Share of simulated evaluation sets whose interval holds the true relative change."""
    random = np.random.default_rng(7)
    truth, hits = 0.02, 0
    for _ in range(REPETITIONS):
        rows = np.full(users, 8) if sizes == "equal" else 1 + random.geometric(0.15, users)
        group = np.repeat(np.arange(users), rows)
        # Losses and their changes resemble one another within a user, by `spread`.
        reference = random.gamma(2.0, 0.25, len(group)) * (1 + spread * random.random(users))[group]
        change = (
            0.1 * random.normal(size=len(group)) + 0.1 * spread * random.normal(size=users)[group]
        )
        loss = reference * (1.0 + truth) + change
        found = intervals.paired_delta(reference, loss, group if clustered else None)
        hits += found.low <= truth <= found.high
    return hits / REPETITIONS


def test_interval_covers_on_independent_rows() -> None:
    assert 0.93 <= coverage(60, 0.0, clustered=False) <= 0.975
    assert 0.93 <= coverage(60, 0.0, clustered=True) <= 0.975


@pytest.mark.parametrize("sizes", ["equal", "geometric"])
def test_interval_covers_on_rows_clustered_by_user(sizes: str) -> None:
    assert 0.93 <= coverage(60, 1.0, clustered=True, sizes=sizes) <= 0.975


def test_interval_that_ignores_users_is_too_narrow() -> None:
    assert coverage(60, 1.0, clustered=False) < 0.75


def test_interval_covers_real_log_losses_of_a_perturbed_model() -> None:
    random = np.random.default_rng(3)

    def draw(rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        z = random.normal(-1.0, 1.5, rows)
        y = (random.random(rows) < special.expit(z)).astype(np.float64)
        new = z + 0.1 + 0.2 * np.sin(3.0 * z)
        return quality.log_loss_per_row(z, y), quality.log_loss_per_row(new, y)

    before, after = draw(2_000_000)
    truth = float((after - before).mean() / before.mean())
    hits = 0
    for _ in range(REPETITIONS):
        found = intervals.paired_delta(*draw(400))
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / REPETITIONS <= 0.975


def test_the_noise_of_the_denominator_counts_when_the_change_is_large() -> None:
    random = np.random.default_rng(5)
    fixed_hits = hits = 0
    for _ in range(REPETITIONS):
        reference = random.gamma(0.5, 1.0, 200)
        loss = 1.5 * reference + 0.1 * random.normal(size=200)  # a broken copy: +50 %
        found = intervals.paired_delta(reference, loss)
        hits += found.low <= 0.5 <= found.high
        change = (loss - reference) / reference.mean()
        half = 1.972 * change.std(ddof=1) / math.sqrt(200)
        fixed_hits += abs(change.mean() - 0.5) <= half
    assert 0.93 <= hits / REPETITIONS <= 0.975
    assert fixed_hits / REPETITIONS > 0.99  # a fixed denominator gets the width wrong
    tiny = intervals.paired_delta(reference, reference + 1e-4 * random.normal(size=200))
    change = 1e-4 / reference.mean()
    assert tiny.standard_error == pytest.approx(change / math.sqrt(200), rel=0.2)


def test_equal_clusters_give_the_sandwich_with_its_correction() -> None:
    random = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 5)
    change = random.normal(size=60)
    found = intervals.ratio_interval(change, np.ones(60), group)
    sums = np.bincount(group, change - change.mean())
    sandwich = math.sqrt(12 / 11 * float(np.square(sums).sum())) / 60
    assert found.standard_error == pytest.approx(sandwich)
    assert (found.rows, found.clusters) == (60, 12)
    assert found.high - found.estimate == pytest.approx(special.stdtrit(11, 0.975) * sandwich)


def test_standard_error_is_the_jackknife_over_clusters() -> None:
    random = np.random.default_rng(2)
    group = np.repeat(np.arange(9), random.integers(1, 30, 9))
    top, bottom = random.normal(size=len(group)), random.gamma(1.0, 1.0, len(group))
    found = intervals.ratio_interval(top, bottom, group)
    left_out = np.array([top[group != g].sum() / bottom[group != g].sum() for g in range(9)])
    variance = 8 / 9 * float(np.square(left_out - found.estimate).sum())
    assert found.standard_error == pytest.approx(math.sqrt(variance))


def test_one_heavy_user_widens_the_interval() -> None:
    random = np.random.default_rng(4)
    group = np.concatenate([np.zeros(900), np.arange(1, 101)])
    user_shift = random.normal(size=101)[group.astype(int)]
    found = intervals.ratio_interval(user_shift, np.ones(1000), group)
    # Nine tenths of the rows are one draw of N(0, 1): the truth, 0, is about one unit away.
    assert found.low <= 0.0 <= found.high


def test_identical_copies_have_no_interval_at_all() -> None:
    loss = np.array([0.1, 0.2, 0.3])
    found = intervals.paired_delta(loss, loss)
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)
    assert intervals.paired_delta(np.zeros(3), np.zeros(3)).high == 0.0


def simulated_delta(kind: str, repetitions: int, rows: int) -> float:
    """Coverage of the AUC or GAUC difference, against the truth from a large sample."""
    random = np.random.default_rng(11)

    def draw(count: int) -> tuple[NDArray[np.float64], ...]:
        group = random.integers(0, count // 10, count).astype(np.float64)
        z = random.normal(size=count)
        y = (random.random(count) < special.expit(2.0 * z)).astype(np.float64)
        return z, z + 0.3 * random.normal(size=count), y, group

    delta = intervals.auc_delta if kind == "auc" else intervals.gauc_delta
    truth = delta(*draw(400_000)).estimate
    found = [delta(*draw(rows)) for _ in range(repetitions)]
    return float(np.mean([i.low <= truth <= i.high for i in found]))


@pytest.mark.parametrize("kind", ["auc", "gauc"])
def test_auc_intervals_cover(kind: str) -> None:
    assert 0.92 <= simulated_delta(kind, 1000, 400) <= 0.98


def test_auc_delta_is_the_difference_of_the_aucs() -> None:
    random = np.random.default_rng(6)
    before, after = random.normal(size=80), random.normal(size=80)
    labels, group = random.integers(0, 2, 80), random.integers(0, 8, 80)
    difference = quality.auc(after, labels) - quality.auc(before, labels)
    assert intervals.auc_delta(before, after, labels).estimate == pytest.approx(difference)
    difference = quality.gauc(after, labels, group) - quality.gauc(before, labels, group)
    assert intervals.gauc_delta(before, after, labels, group).estimate == pytest.approx(difference)


def test_calibration_delta_is_the_change_of_the_ratio() -> None:
    random = np.random.default_rng(8)
    before = random.normal(size=500)
    after, labels = before + 0.05, random.integers(0, 2, 500)
    ratio = quality.calibration_ratio(after, labels) / quality.calibration_ratio(before, labels)
    found = intervals.calibration_delta(before, after)
    assert found.estimate == pytest.approx(ratio - 1.0)
    assert 0.0 < found.low < found.estimate < found.high


def test_relative_shift_interval_brackets_the_summary() -> None:
    random = np.random.default_rng(9)
    before = random.normal(size=4000)
    after = before + 0.05 * random.normal(size=4000)
    found = intervals.relative_shift_interval(before, after)
    assert found.estimate == pytest.approx(quality.shift_summary(before, after).relative)
    assert found.low < 0.05 < found.high


def test_relative_shift_interval_of_a_constant_reference_is_in_logits() -> None:
    before = np.full(7, 0.1)
    assert intervals.relative_shift_interval(before, before + 0.5).estimate == pytest.approx(0.5)


def test_recall_interval_counts_groups_as_units_and_rows_as_rows() -> None:
    random = np.random.default_rng(10)
    golden, group = random.random(100), np.repeat(np.arange(20), 5)
    group[:5] = np.arange(100, 105)  # five requests of one row: nothing to cut
    found = intervals.recall_interval(golden, golden + 0.3 * random.random(100), group, 2)
    assert (found.rows, found.clusters) == (95, 19)
    assert found.low < found.estimate < 1.0


def test_string_groups_cluster_like_numbers() -> None:
    random = np.random.default_rng(12)
    loss, group = random.random(50), random.integers(0, 9, 50)
    words = np.array([f"user-{g}" for g in group])
    by_number = intervals.paired_delta(loss, 2 * loss + random.random(50), group)
    assert quality.cluster_codes(words, 50)[1] == by_number.clusters
    assert quality.cluster_codes(words.astype(object), 50)[1] == by_number.clusters


def test_interval_forms() -> None:
    interval = Interval(-2.0, -3.0, -1.0, 0.5, 10, 10)
    assert (interval.negated.low, interval.negated.high) == (1.0, 3.0)
    assert (interval.folded.low, interval.folded.high) == (1.0, 3.0)
    straddling = Interval(0.5, -2.0, 3.0, 1.0, 10, 10).folded
    assert (straddling.estimate, straddling.low, straddling.high) == (0.5, 0.0, 3.0)
    assert Interval.from_json(json.loads(json.dumps(interval.to_json()))) == interval


# --- rows to decide -------------------------------------------------------------------------------


def test_rows_to_decide_shrinks_the_half_width_to_the_room_there_is() -> None:
    # Half-width 3, room 1: nine times the rows.
    assert intervals.rows_to_decide(Interval(1.0, -2.0, 4.0, 1.5, 1000, 1000), 2.0) == 8000


def test_rows_to_decide_keeps_its_word() -> None:
    random = np.random.default_rng(13)
    pool = random.gamma(2.0, 1.0, 400_000)
    change = 0.2 * random.normal(size=400_000)
    first = intervals.paired_delta(pool[:2000], pool[:2000] + change[:2000])
    limit = first.estimate + 0.3 * (first.high - first.estimate)
    more = intervals.rows_to_decide(first, limit)
    assert more is not None
    rows = 2000 + more
    later = intervals.paired_delta(pool[:rows], pool[:rows] + change[:rows])
    assert later.high - later.estimate == pytest.approx(limit - first.estimate, rel=0.05)


def test_rows_to_decide_of_a_decided_or_hopeless_interval() -> None:
    interval = Interval(1.0, 0.5, 1.5, 0.25, 100, 100)
    assert intervals.rows_to_decide(interval, 1.5) == 0
    assert intervals.rows_to_decide(interval, 0.4) == 0
    assert intervals.rows_to_decide(interval, 1.0) is None
    assert intervals.rows_to_decide(interval, 0.8) is None


def test_p_value_and_lower_bound_agree() -> None:
    interval = Interval(1.0, 0.0, 2.0, 0.5, 40, 40)
    for tail in (0.001, 0.05, 0.3):
        bound = intervals.lower_bound(interval, tail)
        assert intervals.upper_tail_p_value(interval, bound) == pytest.approx(tail)
    exact = Interval(1.0, 1.0, 1.0, 0.0, 40, 40)
    assert intervals.upper_tail_p_value(exact, 0.5) == 0.0
    assert intervals.upper_tail_p_value(exact, 1.0) == 1.0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: intervals.auc_delta([0.0, 1.0], [0.0, 1.0], [0, 0]), "AUC needs both classes"),
        (
            lambda: intervals.gauc_delta([0.0, 1.0], [0.0, 1.0], [0, 1], [1, 1]),
            "found 1 group with both classes",
        ),
        (
            lambda: intervals.recall_interval([0.1, 1.0], [0.1, 1.0], [0, 0], 1),
            "found 1 group of more than 1 rows",
        ),
        (lambda: intervals.paired_delta([1.0], [1.0]), "needs at least 2"),
        (lambda: intervals.paired_delta([1.0, 1.0], [1.0, 2.0], [5, 5]), "rows are of one group"),
        (lambda: intervals.paired_delta([1.0, 1.0], [1.0, 2.0], [5]), "expected one entry for 2"),
        (
            lambda: intervals.paired_delta([1.0, 1.0], [1.0, 2.0], [1.0, math.nan]),
            "group: 1 of 2 rows is missing, the first in row 1",
        ),
        (
            lambda: intervals.paired_delta([1.0, 1.0], [1.0, 2.0], np.array(["a", None])),
            "group: 1 of 2 rows is missing, the first in row 1",
        ),
        (lambda: intervals.paired_delta([0.0, 0.0], [1.0, 2.0]), "reference loss is 0"),
        (
            lambda: intervals.paired_delta([1.0, 1.0], [1.0, 2.0], confidence=95.0),
            "confidence must lie between 0 and 1, found 95.0",
        ),
    ],
)
def test_bad_rows_are_refused_with_the_reason(call: object, expected: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=re.escape(expected)):
        call()
