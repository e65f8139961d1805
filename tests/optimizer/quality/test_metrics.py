"""Metrics against brute force and closed forms."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rankc.optimizer.errors import DataError
from rankc.optimizer.quality import metrics as quality
from scipy import special


def message(text: str) -> str:
    return re.escape(text)


def brute_auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    won = total = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            weight = labels[i] * (1.0 - labels[j])
            if i == j:
                continue
            total += weight
            won += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return float(won / total)


# --- metrics --------------------------------------------------------------------------------------


@given(st.floats(-700, 700), st.floats(0, 1))
def test_log_loss_is_the_cross_entropy_at_any_logit(z: float, y: float) -> None:
    loss = quality.log_loss_per_row([z], [y])[0]
    exact = -(y * -np.logaddexp(0.0, -z) + (1.0 - y) * -np.logaddexp(0.0, z))
    # A label between the classes is a step of fp64 away from one, times the logit.
    step = 0.0 if y in (0.0, 1.0) else 4.0 * np.finfo(np.float64).eps * abs(z)
    assert loss == pytest.approx(exact, rel=1e-12, abs=max(step, 1e-300))
    assert loss >= 0.0


def test_log_loss_keeps_the_loss_of_a_confident_right_answer() -> None:
    # softplus(z) - z as two terms would cancel to exactly 0.
    assert quality.log_loss_per_row([50.0], [1.0])[0] == pytest.approx(math.exp(-50.0))


def test_ne_of_the_label_mean_is_one() -> None:
    labels = np.array([1.0, 0.0, 0.0, 0.0])
    assert quality.normalized_entropy(special.logit(np.full(4, 0.25)), labels) == pytest.approx(1.0)
    assert quality.log_loss(np.zeros(4), labels) == pytest.approx(math.log(2.0))


def test_calibration_ratio_is_mean_p_over_mean_y() -> None:
    logits = special.logit(np.array([0.2, 0.4]))
    assert quality.calibration_ratio(logits, [0, 1]) == pytest.approx(0.6)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.3, 1.0])), min_size=2).filter(
        lambda rows: 0.0 < sum(y for _, y in rows) < len(rows)
    )
)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, float]]) -> None:
    scores, labels = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    assert quality.auc(scores, labels) == pytest.approx(brute_auc(scores, labels), abs=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_gauc_is_the_row_weighted_auc_within_groups(seed: int) -> None:
    random = np.random.default_rng(seed)
    group = random.integers(0, 5, 60)
    scores = np.round(random.normal(size=60), 1)
    labels = random.integers(0, 2, 60).astype(np.float64)
    total = rows = 0.0
    for name in range(5):
        inside = group == name
        if len(set(labels[inside])) == 2:
            total += inside.sum() * brute_auc(scores[inside], labels[inside])
            rows += inside.sum()
    assert quality.gauc(scores, labels, group) == pytest.approx(total / rows)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_recall_is_the_overlap_of_the_top_k(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    group, golden, scores = random.integers(0, 6, 50), random.random(50), random.random(50)
    hard, soft = [], []
    for name in np.unique(group):
        inside = np.flatnonzero(group == name)
        if len(inside) <= k:
            continue
        truth = inside[np.argsort(-golden[inside])[:k]]
        kept = inside[np.argsort(-scores[inside])[:k]]
        hard.append(len(set(truth) & set(kept)) / k)
        soft.append(golden[kept].sum() / golden[truth].sum())
    assert quality.recall_at_k(golden, scores, group, k) == pytest.approx(np.mean(hard))
    assert quality.recall_at_k(golden, scores, group, k, soft=True) == pytest.approx(np.mean(soft))


def test_recall_gains_nothing_from_ties_in_row_order() -> None:
    golden = np.arange(10.0, 0.0, -1.0) / 10.0  # the log is sorted by the original's score
    group = np.zeros(10)
    assert quality.recall_at_k(golden, np.ones(10), group, 2) == pytest.approx(0.2)
    tied = np.round(golden, 0)
    assert quality.recall_at_k(tied, tied, group, 2) == 1.0


def test_shift_summary() -> None:
    before = np.array([-1.0, 1.0, -1.0, 1.0])
    summary = quality.shift_summary(before, before + np.array([0.0, 0.0, 0.3, -0.4]))
    assert summary.rms == pytest.approx(0.25)
    assert summary.relative == pytest.approx(0.25)
    assert summary.mean == pytest.approx(-0.025)
    assert (summary.largest, summary.largest_row) == (pytest.approx(0.4), 3)
    assert quality.ShiftSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_shift_of_a_constant_reference_is_in_logits() -> None:
    before = np.full(7, 0.1)
    assert quality.shift_summary(before, before + 0.5).relative == pytest.approx(0.5)


# --- probabilities --------------------------------------------------------------------------------


def test_probabilities_become_the_logits_they_came_from() -> None:
    z = np.linspace(-30.0, 30.0, 61)
    back = quality.logits_from_probabilities(special.expit(z))
    np.testing.assert_allclose(back[:50], z[:50], rtol=1e-6)


def test_the_clip_of_probabilities_does_not_hide_a_collapse() -> None:
    original = quality.logits_from_probabilities(np.array([1e-9], dtype=np.float32))
    collapsed = quality.logits_from_probabilities(np.array([0.0], dtype=np.float32))
    assert original[0] == pytest.approx(math.log(1e-9), rel=1e-6)
    assert collapsed[0] < -100.0
    assert quality.logits_from_probabilities(np.ones(1, dtype=np.float32))[0] > 16.6


@pytest.mark.parametrize(
    ("given_rows", "expected"),
    [
        ([0.5, 1.5], "scores: 1 of 2 rows is outside [0, 1], the first in row 1 (1.5)"),
        ([-0.5, -1.0, 0.1], "scores: 2 of 3 rows are outside [0, 1], the first in row 0 (-0.5)"),
        ([0.5, math.nan], "scores: 1 of 2 rows is NaN or infinite, the first in row 1"),
    ],
)
def test_bad_probabilities(given_rows: list[float], expected: str) -> None:
    with pytest.raises(DataError, match=message(expected)):
        quality.logits_from_probabilities(given_rows, "scores")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: quality.log_loss([], []), "logits: the evaluation set is empty"),
        (lambda: quality.log_loss([1.0], [0, 1]), "rows don't match: 1 against 2"),
        (lambda: quality.log_loss([[1.0, 2.0]], [0]), "one number a row, found shape [1, 2]"),
        (lambda: quality.log_loss(["a"], [0]), "logits: expected numbers"),
        (lambda: quality.log_loss([0.0, math.inf], [0, 1]), "infinite, the first in row 1"),
        (lambda: quality.log_loss([0.0, 1.0], [0, 2]), "outside [0, 1], the first in row 1 (2)"),
        (lambda: quality.normalized_entropy([0.0, 1.0], [1, 1]), "every label is 1"),
        (lambda: quality.auc([0.0, 1.0], [0, 0]), "AUC needs both classes; every label is 0"),
        (lambda: quality.gauc([0.0, 1.0], [0, 1], [1, 2]), "needs a group with both classes"),
        (lambda: quality.calibration_ratio([0.0], [0]), "needs a positive row"),
        (lambda: quality.recall_at_k([0.1], [0.1], [0], 1), "a group of more than 1 rows"),
        (lambda: quality.recall_at_k([0.1], [0.1], [0], 0), "k of at least 1, found 0"),
        (
            lambda: quality.recall_at_k([-0.1, 1.0], [0.1, 1.0], [0, 0], 1, soft=True),
            "give probabilities, not logits",
        ),
    ],
)
def test_bad_rows_are_refused_with_the_reason(call: object, expected: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=message(expected)):
        call()
