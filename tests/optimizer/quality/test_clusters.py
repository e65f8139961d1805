"""What rows hang together by: time, groups, repeats; and what that does to verdicts."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rankc
import torch
from numpy.typing import NDArray
from rankc.optimizer.data.parquet import Parquet
from rankc.optimizer.data.rows import collect, split
from rankc.optimizer.data.times import time_column
from rankc.optimizer.errors import DataError
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.clusters import BLOCKS, Clusters
from rankc.optimizer.quality.gate import judge
from rankc.optimizer.quality.intervals import paired_delta
from rankc.optimizer.quality.task_rows import rare_bound
from rankc.optimizer.quality.verdict import CohortStatus, Status, Verdict
from rankers import EAGER_FP32, LOOSE, drawn_labels, small, small_inputs
from scipy.special import expit
from support import capture_small

FloatArray = NDArray[np.float64]
ROWS = 12_000


def lasting(random: np.random.Generator, rows: int, each: int) -> FloatArray:
    """Noise that holds for so many rows."""
    return np.repeat(random.normal(size=-(-rows // each)), each)[:rows]


def drawn(seed: int, rows: int = ROWS) -> tuple[np.random.Generator, FloatArray, FloatArray]:
    random = np.random.default_rng(seed)
    scores = random.normal(-1.0, 1.5, rows)
    return random, scores, (random.random(rows) < expit(scores)).astype(np.float64)


def judged(scores: FloatArray, after: FloatArray, labels: Any, **more: Any) -> Verdict:
    budget = Budget(ne=more.pop("ne", 1e-3), max_rms_shift=None)
    return judge({"ctr": scores}, {"ctr": after}, {"ctr": labels}, budget, **more)


# --- time -----------------------------------------------------------------------------------------


def test_what_lasts_widens_the_interval_as_much_as_it_should() -> None:
    """The interval's width beside how much ΔNE varies from one stretch of traffic to the next."""
    estimates, errors, plain = [], [], []
    for seed in range(60):
        random, scores, _ = drawn(seed)
        truth = scores + 0.7 * lasting(random, ROWS, 100)
        labels = (random.random(ROWS) < expit(truth)).astype(np.float64)
        after = scores + 0.1 * lasting(random, ROWS, 100)
        verdict = judged(scores, after, labels, time=np.arange(ROWS))
        interval = verdict.delta_ne["ctr"]
        estimates.append(interval.estimate)
        errors.append(interval.standard_error)
        losses = [np.logaddexp(0, z) - labels * z for z in (scores, after)]
        plain.append(paired_delta(*losses).standard_error)
    spread = float(np.std(estimates))
    assert 0.85 < np.mean(errors) / spread < 1.35
    assert np.mean(plain) / spread < 0.6


@pytest.mark.parametrize("each", [1, 30, 200, 400, 1000])
def test_intervals_cover_however_long_it_lasts(each: int) -> None:
    """What holds for a twelfth of the rows, several blocks, is no more evidence than it is."""
    random = np.random.default_rng(0)
    before, covered, widths = np.ones(ROWS), 0, []
    for _ in range(400):
        change = 0.01 * np.roll(lasting(random, ROWS, each), int(random.integers(each)))
        interval = paired_delta(before, before + change, Clusters.of(ROWS))
        covered += interval.low <= 0.0 <= interval.high
        widths.append(interval.high - interval.low)
    assert covered / 400 >= 0.92
    if each == 1:  # nothing lasts, and the interval is hardly wider for it
        assert np.mean(widths) < 1.15 * 2 * 1.96 * 0.01 / ROWS**0.5


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_of_few_blocks_all_waves_are_used(blocks: int) -> None:
    """They are then what independent clusters of equal size come to."""
    random = np.random.default_rng(0)
    change = 0.01 * lasting(random, ROWS, 1000)
    block = np.arange(ROWS) // (ROWS // blocks)
    by_time = paired_delta(np.ones(ROWS), 1.0 + change, Clusters.of(ROWS, time=block))
    by_group = paired_delta(np.ones(ROWS), 1.0 + change, block)
    assert by_time.by == "time"
    assert by_time.standard_error == pytest.approx(by_group.standard_error)
    assert by_time.freedom == by_group.freedom == blocks - 1


def test_the_order_tells_time_where_none_is_given_and_shuffling_takes_it_away() -> None:
    random, scores, _ = drawn(0)
    labels = (random.random(ROWS) < expit(scores + lasting(random, ROWS, 100))).astype(np.float64)
    after = scores + 0.1 * lasting(random, ROWS, 100)
    given = judged(scores, after, labels, time=np.arange(ROWS)).delta_ne["ctr"]
    ordered = judged(scores, after, labels).delta_ne["ctr"]
    assert ordered == given
    assert ordered.by == "time"
    mixed = random.permutation(ROWS)
    shuffled = judged(scores[mixed], after[mixed], labels[mixed]).delta_ne["ctr"]
    assert shuffled.standard_error < 0.6 * ordered.standard_error
    again = judged(scores[mixed], after[mixed], labels[mixed], time=mixed).delta_ne["ctr"]
    assert again.standard_error == pytest.approx(given.standard_error)


def test_rows_of_one_time_are_in_one_block() -> None:
    random = np.random.default_rng(0)
    day = np.sort(random.integers(0, 90, 5000))
    clusters = Clusters.of(5000, time=day)
    assert clusters.block is not None
    assert 10 <= clusters.blocks <= BLOCKS
    for value in np.unique(day):
        assert len(np.unique(clusters.block[day == value])) == 1
    sizes = np.bincount(clusters.block)
    assert sizes.max() < 3 * sizes.mean()


def test_blocks_that_differ_are_told() -> None:
    random, scores, labels = drawn(3)
    sudden = np.where(np.arange(ROWS) < ROWS * 7 // 8, 0.0, -1.0)
    verdict = judged(scores, scores + sudden, labels)
    blocks = verdict.tasks[0].blocks
    assert blocks is not None
    assert blocks.differ
    assert [block.rows for block in blocks.blocks] == [ROWS // 8] * 8
    assert blocks.blocks[-1].delta_ne > 0.05 > 1e-9 > abs(blocks.blocks[0].delta_ne)
    assert "ΔNE differs from block to block of time, by more than chance" in str(verdict)
    steady = judged(scores, scores + 0.02 * random.normal(size=ROWS), labels).tasks[0].blocks
    assert steady is not None
    assert not steady.differ


def test_few_times_are_told_with_how_many_would_do() -> None:
    _, scores, labels = drawn(0)
    verdict = judged(scores, scores + 0.001, labels, time=np.arange(ROWS) // (ROWS // 4))
    (told,) = [note for note in verdict.notes if "too few" in note]
    assert told.startswith("time cuts the rows into 4 blocks")
    assert "rows of 10 different times or more" in told
    many = judged(scores, scores + 0.001, labels, time=np.arange(ROWS) // (ROWS // 12))
    assert not [note for note in many.notes if "blocks" in note]


def test_a_constant_time_is_told_and_the_order_taken() -> None:
    _, scores, labels = drawn(0)
    verdict = judged(scores, scores + 0.001, labels, time=np.full(ROWS, 20240501))
    assert "time is 20240501 in all 12,000 rows: their order is taken for it" in verdict.notes
    assert verdict.delta_ne == judged(scores, scores + 0.001, labels).delta_ne


def test_groups_of_one_row_each_are_told() -> None:
    _, scores, labels = drawn(0)
    verdict = judged(scores, scores + 0.001, labels, group=np.arange(ROWS))
    assert any(note.startswith("every row is a group of its own") for note in verdict.notes)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (np.arange(3), r"time has shape \[3\], expected one entry for 4 rows"),
        ([1.0, float("nan"), 2.0, float("nan")], "time is missing in 2 rows, first in row 1"),
        (np.array(["2024", None, "2025", "2026"], dtype=object), "time is missing in 1 rows"),
        (np.array(["2024-05-01", "NaT", "2024", "2025"], dtype="datetime64[D]"), "is missing in 1"),
        (np.array([1j, 2, 3, 4]), "time holds complex numbers"),
        (np.array(["a", 1, "b", 2], dtype=object), "time holds int, str, which can't be put in"),
    ],
)
def test_a_time_that_can_not_be_sorted(time: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        time_column(time, 4)


@pytest.mark.parametrize(
    "time",
    [
        [3, 1, 2],
        [3.5, 1.5, 2.5],
        ["2024-03", "2024-01", "2024-02"],
        [datetime.datetime(2024, month, 1) for month in (3, 1, 2)],
        np.array(["2024-03-01", "2024-01-01", "2024-02-01"], dtype="datetime64[D]"),
        np.array([datetime.date(2024, month, 1) for month in (3, 1, 2)], dtype=object),
    ],
)
def test_times_sort(time: Any) -> None:
    assert np.argsort(time_column(time, 3)).tolist() == [1, 2, 0]


def batches(order: NDArray[np.int64], time: Any) -> list[rankc.Batch]:
    dense, ids = small_inputs(len(order), seed=1)
    return [
        rankc.Batch((dense[part], ids[part]), torch.zeros(len(part)), time=time[part])
        for part in np.array_split(order, 3)
    ]


def test_rows_that_go_backwards_in_time_are_sorted_and_the_latest_prove() -> None:
    program = capture_small(small(), *small_inputs(4, seed=0))
    time = np.arange(300)
    straight = collect(batches(np.arange(300), time), program)
    assert straight.notes == ()
    backwards = collect(batches(np.arange(299, -1, -1), time), program)
    assert backwards.time is not None
    assert backwards.time.tolist() == list(range(300))
    assert "were sorted by time, which goes backwards first in row 1" in backwards.notes[0]
    for name, value in straight.features.items():
        assert torch.equal(backwards.features[name], value)
    parts = split(backwards)
    assert parts.choice.time is not None
    assert parts.proof.time is not None
    assert parts.choice.time.max() < parts.proof.time.min()
    some = batches(np.arange(300), time)
    some[1] = rankc.Batch(some[1].inputs, some[1].labels)
    with pytest.raises(DataError, match="time is missing from some batches: 200 of 300 rows"):
        collect(some, program)


def test_a_parquet_column_of_times(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    program = capture_small(small(), *small_inputs(4, seed=0))
    dense, ids = small_inputs(60, seed=1)
    columns = {
        "dense": list(dense.numpy()),
        "ids": list(ids.numpy()) if ids.dim() > 1 else ids.numpy(),
        "day": pandas.date_range("2024-01-01", periods=60)[::-1],
    }
    path = tmp_path / "traffic.parquet"
    pandas.DataFrame(columns).to_parquet(path)
    rows = collect(Parquet(path, time="day").batches(program), program)
    assert rows.time is not None
    assert (rows.time[1:] > rows.time[:-1]).all()
    assert torch.equal(rows.features["dense"], dense.flip(0))
    with pytest.raises(DataError, match=r"has no column \['when'\]"):
        list(Parquet(path, time="when").batches(program))


# --- repeats --------------------------------------------------------------------------------------


def test_a_row_counts_once_however_often_it_comes() -> None:
    random, scores, labels = drawn(0, 3000)
    after = scores + 0.05 * random.normal(size=3000)
    once = judged(scores, after, labels).delta_ne["ctr"]
    order = random.permutation(np.repeat(np.arange(3000), 10))
    verdict = judged(scores[order], after[order], labels[order])
    ten = verdict.delta_ne["ctr"]
    assert ten.standard_error == pytest.approx(once.standard_error, rel=0.15)
    assert ten.clusters == 3000
    assert any(note.startswith("27,000 of 30,000 rows repeat others") for note in verdict.notes)


def test_rows_that_prove_and_chose_are_told() -> None:
    model = small()
    inputs = small_inputs(900, seed=1)
    labels = drawn_labels(model, inputs)
    data = [rankc.Batch(inputs, labels)]
    told = rankc.optimize(model, EAGER_FP32, data=[*data, *data, *data], budget=LOOSE).report.notes
    assert any("rows that prove are among those that chose the plan" in note for note in told)
    once = rankc.optimize(model, EAGER_FP32, data=data, budget=LOOSE).report.notes
    assert not any("are among those that chose" in note for note in once)


def test_users_that_share_rows_count_as_one() -> None:
    random, scores, labels = drawn(0, 2000)
    after = scores + 0.05 * random.normal(size=2000)
    twice = [np.tile(column, 2) for column in (scores, after, labels)]
    user = np.arange(4000) // 4  # the second copy comes under other names
    verdict = judged(*twice, group=user)
    assert verdict.delta_ne["ctr"].clusters == 500
    assert any("2,000 of 4,000 rows repeat others" in note for note in verdict.notes)


def test_rows_alike_by_chance_are_no_repeats() -> None:
    """Three features of four values: many rows are alike, but their labels are not."""
    random = np.random.default_rng(0)
    scores = random.integers(0, 4, (ROWS, 3)) @ np.array([0.5, 0.3, 0.1]) - 2.0
    labels = (random.random(ROWS) < expit(scores)).astype(np.float64)
    verdict = judged(scores, scores + 0.01 * np.round(scores, 1), labels)
    assert verdict.delta_ne["ctr"].clusters == ROWS
    assert not any("repeat" in note for note in verdict.notes)


# --- few rows -------------------------------------------------------------------------------------


def test_damage_on_few_rows_is_told_and_left_open() -> None:
    random, scores, labels = drawn(1, 30_000)
    moved = random.normal(size=30_000) * (random.random(30_000) < 1e-3)
    interval = judged(scores, scores + moved, labels, ne=0.5).delta_ne["ctr"]
    assert interval.carriers is not None
    assert 1.0 < interval.carriers == interval.freedom < 10.0
    verdict = judged(scores, scores + moved, labels, ne=1.02 * interval.high)
    assert verdict.status is Status.INCONCLUSIVE
    assert "rests on fewer than 10 rows, or groups of rows, that carry the change" in str(verdict)
    # So little that even the widest interval of few rows is within the limit.
    assert judged(scores, scores + 0.02 * moved, labels).status is Status.PASS


def test_a_bound_for_few_rows() -> None:
    assert rare_bound(np.zeros(5), 0.95) == 0.0
    assert rare_bound(np.array([0.0, 2.0, 0.0]), 0.95) == pytest.approx(2 * 5.572, rel=1e-3)
    assert rare_bound(np.ones(10_000), 0.95) == pytest.approx(10_000 + 1.96 * 100, rel=2e-3)


def test_labels_that_hardly_could_have_shown_the_damage_do_not_hide_it() -> None:
    """300 rows of 1 in 250 are lowered, and by luck none of them is a positive."""
    random = np.random.default_rng(5)
    scores = random.normal(-6.0, 1.0, 30_000)
    labels = (random.random(30_000) < expit(scores)).astype(np.float64)
    hit = (random.random(30_000) < 0.01) & (labels == 0.0)
    verdict = judged(scores, scores - 1.34 * hit, labels)
    assert verdict.delta_ne["ctr"].estimate < 0.0
    assert verdict.status is not Status.PASS


# --- cohorts --------------------------------------------------------------------------------------


def in_cohort(size: float, rows: int = 360, **more: Any) -> Verdict:
    random, scores, labels = drawn(7, 30_000)
    cohort = np.where(np.arange(30_000) % (30_000 // rows) == 0, "few", "most")
    noise = np.where(cohort == "few", size, 0.002) * random.normal(size=30_000)
    return judged(scores, scores + noise, labels, cohorts={"c": cohort}, **more)


@pytest.mark.parametrize(("rows", "size"), [(360, 0.45), (1000, 0.2)])
def test_a_cohort_that_loses_on_soft_labels_fails_whatever_its_labels_say(
    rows: int, size: float
) -> None:
    verdict = in_cohort(size, rows)
    cohort = next(one for one in verdict.cohorts if one.value == "few")
    assert cohort.status is CohortStatus.FAIL
    assert verdict.status is Status.FAIL
    assert "on soft labels: over 3 times the limit (0.3000 %)" in str(verdict)


@pytest.mark.parametrize(("rows", "size"), [(360, 0.12), (1000, 0.126)])
def test_a_cohort_that_may_have_lost_leaves_the_verdict_open(rows: int, size: float) -> None:
    verdict = in_cohort(size, rows)
    cohort = next(one for one in verdict.cohorts if one.value == "few")
    assert cohort.status is CohortStatus.INCONCLUSIVE
    assert verdict.status is Status.INCONCLUSIVE
    assert f"cohort c=few ({cohort.rows:,} rows) is inconclusive" in str(verdict)
    assert "more rows of it would decide" in str(verdict)
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("rows", [360, 1000])
def test_a_cohort_whose_labels_are_noisy_is_bounded_by_soft_labels(rows: int) -> None:
    verdict = in_cohort(0.06, rows)
    cohort = next(one for one in verdict.cohorts if one.value == "few")
    assert cohort.bounded
    assert verdict.status is Status.PASS


def test_soft_labels_do_not_fail_what_was_finetuned() -> None:
    random, scores, labels = drawn(7, 30_000)
    cohort = np.where(np.arange(30_000) % 30 == 0, "few", "most")
    after = scores + np.where(cohort == "few", 0.45, 0.002) * random.normal(size=30_000)
    budget = Budget(ne=1e-3, max_rms_shift=None, two_sided=False)
    verdict = judge({"ctr": scores}, {"ctr": after}, {"ctr": labels}, budget, cohorts={"c": cohort})
    assert verdict.status is not Status.PASS
    assert "on soft labels: over" not in str(verdict)
