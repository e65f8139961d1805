"""Quality of a ranking model on rows: metrics, and what the rows must look like.

Everything here is a pure function over numpy arrays, computed in float64. ``N`` is the number of
rows. ``group`` is the user or request a row belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A probability a rounding error outside [0, 1] is a rounding error; further out it is a bug.
_PROBABILITY_SLACK = 1e-6


@dataclass(frozen=True)
class ShiftSummary:
    """How far the logits moved, row by row; in logits unless said.

    Attributes:
        rms: Root mean square of the shift.
        relative: ``rms`` over the standard deviation of the reference logits (over one logit where
            the reference is constant, which has no standard_deviation to compare with).
        mean: Signed mean shift: a bias moves the calibration.
        p50: Median of the absolute shift.
        p90: Its 90th percentile.
        p99: Its 99th percentile.
        p999: Its 99.9th percentile.
        largest: Its maximum.
        largest_row: The row, counted from 0, where the maximum is.
    """

    rms: float
    relative: float
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    largest: float
    largest_row: int

    def to_json(self) -> dict[str, Any]:
        """A dict of plain numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShiftSummary:
        """The inverse of `to_json`."""
        return cls(**data)


# --- guards ---------------------------------------------------------------------------------------


def finite_rows(values: ArrayLike, what: str) -> FloatArray:
    """Returns values as a float64 column ``[N]``, or says what is wrong with them.

    Args:
        values: ``[N]`` or ``[N, 1]``, any real dtype.
        what: How to call them in a message, e.g. ``"optimized logits of task 'ctr'"``.

    Raises:
        DataError: not one number a row, no rows, or NaN or infinite entries.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{what}: expected one number a row, found shape {list(array.shape)}")
    if array.size == 0:
        raise DataError(f"{what}: the evaluation set is empty; give rows to judge on")
    try:
        rows = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: expected numbers, found dtype {array.dtype}") from error
    bad = ~np.isfinite(rows)
    if bad.any():
        raise DataError(f"{what}: {_bad_rows(bad, 'NaN or infinite')}")
    return rows


def label_rows(values: ArrayLike, what: str) -> FloatArray:
    """Returns labels of a binary task as float64 ``[N]``; soft labels inside [0, 1] are welcome.

    Args:
        values: ``[N]`` or ``[N, 1]``.
        what: How to call them in a message.

    Raises:
        DataError: as `finite_rows`, or labels outside [0, 1].
    """
    labels = finite_rows(values, what)
    bad = (labels < 0.0) | (labels > 1.0)
    if bad.any():
        raise DataError(
            f"{what}: {_bad_rows(bad, 'outside [0, 1]')} ({labels[bad][0]:g}); "
            "map labels to 0 and 1, or declare the task a regression"
        )
    return labels


def logits_from_probabilities(probabilities: ArrayLike, what: str = "probabilities") -> FloatArray:
    """Converts probabilities ``[N]`` to logits ``[N]``, float64, without hiding errors.

    A saturated probability (exactly 0 or 1) is moved to half the last step its *own* dtype can
    resolve: float32 keeps tiny values down to 1e-45 but stops at ``1 - 6e-8``, so the clip is
    asymmetric (logits -104 and +17.3). A common symmetric clip such as 1e-7 would make a copy whose
    small probabilities collapsed to 0 look equal to the original. Capture logits where you can.

    Raises:
        DataError: as `finite_rows`, or a value outside [0, 1] by more than 1e-6.
    """
    given = np.asarray(probabilities)
    p = finite_rows(given, what)
    bad = (p < -_PROBABILITY_SLACK) | (p > 1.0 + _PROBABILITY_SLACK)
    if bad.any():
        raise DataError(
            f"{what}: {_bad_rows(bad, 'outside [0, 1]')} ({p[bad][0]:g}); are these logits already?"
        )
    dtype = given.dtype if given.dtype.kind == "f" else np.dtype(np.float64)
    limits = np.finfo(dtype)
    low = max(float(limits.smallest_subnormal), 1e-300)
    high = float(limits.epsneg) / 2.0
    # log1p(-p) near 1 would lose the clip to rounding in float64, so 1 - p is clipped by itself.
    above = np.clip(p, low, 1.0)
    below = np.clip(1.0 - p, high, 1.0)
    return np.asarray(np.log(above) - np.log(below), dtype=np.float64)


def paired(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both columns, of the same number of rows.

    Raises:
        DataError: their lengths differ.
    """
    if len(first) != len(second):
        raise DataError(f"rows don't match: {len(first)} against {len(second)}")
    return first, second


def cluster_codes(group: ArrayLike, rows: int) -> tuple[IntArray, int]:
    """Numbers the groups: codes ``[N]`` from 0, and how many there are.

    Args:
        group: ``[N]`` of any dtype that can be compared.
        rows: N, to check against.

    Raises:
        DataError: another length than ``rows``, or missing entries.
    """
    names = np.asarray(group)
    if names.shape == (rows, 1):
        names = names[:, 0]
    if names.shape != (rows,):
        raise DataError(f"group has shape {list(names.shape)}, expected one entry for {rows} rows")
    if names.dtype.kind == "O":
        missing = np.fromiter((name is None or name != name for name in names), bool, rows)
        names = names.astype(str)
    else:
        missing = np.isnan(names) if names.dtype.kind == "f" else np.zeros(rows, dtype=np.bool_)
    if missing.any():
        raise DataError(
            f"group: {_bad_rows(missing, 'missing')}; "
            "give every row the user or request it belongs to"
        )
    found, codes = np.unique(names, return_inverse=True)
    return codes.astype(np.int64), len(found)


# --- losses and metrics ---------------------------------------------------------------------------


def log_loss_per_row(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Log loss of each row, in nats: ``softplus(z) - y z``, stable for any finite logit.

    Args:
        logits: ``[N]``.
        labels: ``[N]`` in [0, 1]; a soft label gives the cross entropy.

    Returns:
        ``[N]`` float64, not negative.

    Raises:
        DataError: lengths differ, no rows, non-finite entries, labels outside [0, 1].
    """
    z, y = paired(finite_rows(logits, "logits"), label_rows(labels, "labels"))
    loss = np.maximum(z, 0.0) - y * z + np.log1p(np.exp(-np.abs(z)))
    return np.asarray(loss, dtype=np.float64)


def squared_error_per_row(scores: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Squared error of each row ``[N]``, the loss of a regression task.

    Raises:
        DataError: lengths differ, no rows, non-finite entries.
    """
    s, y = paired(finite_rows(scores, "scores"), finite_rows(labels, "labels"))
    return np.asarray(np.square(s - y), dtype=np.float64)


def log_loss(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean log loss in nats. Arguments and errors as `log_loss_per_row`."""
    return float(log_loss_per_row(logits, labels).mean())


def normalized_entropy(
    logits: ArrayLike, labels: ArrayLike, weights: FloatArray | None = None
) -> float:
    """Log loss over the entropy of the label mean (He et al., ADKDD 2014); 1 is a constant guess.

    Args:
        logits: ``[N]``.
        labels: ``[N]`` in [0, 1].
        weights: ``[N]``, how much each row counts; None where all count the same.

    Raises:
        DataError: as `log_loss_per_row`, or the labels are all 0 or all 1 (the entropy is 0).
    """
    from scipy import special  # slow to import, and a verdict is read without

    loss = float(np.average(log_loss_per_row(logits, labels), weights=weights))
    mean = float(np.average(label_rows(labels, "labels"), weights=weights))
    if mean in (0.0, 1.0):
        raise DataError(f"normalized entropy needs both classes; every label is {mean:g}")
    return loss / float(special.entr(mean) + special.entr(1.0 - mean))


def auc(scores: ArrayLike, labels: ArrayLike, weights: FloatArray | None = None) -> float:
    """Area under the ROC curve: how often a positive row outscores a negative one, ties half.

    A soft label ``y`` makes the row a positive of weight ``y`` and a negative of weight ``1 - y``;
    pairs are of different rows. O(N log N).

    Args:
        scores: ``[N]`` logits or probabilities, only their order counts.
        labels: ``[N]`` in [0, 1].
        weights: ``[N]``, how much each row counts; None where all count the same.

    Raises:
        DataError: bad rows, or no pair of a positive and a negative row.
    """
    s, y = paired(finite_rows(scores, "scores"), label_rows(labels, "labels"))
    return auc_influence(s, y, weights)[0]


def auc_influence(
    scores: FloatArray, labels: FloatArray, weights: FloatArray | None = None
) -> tuple[float, FloatArray]:
    """The AUC, and what each row adds to it to first order, ``[N]``, which sums to 0.

    Raises:
        DataError: no pair of a positive and a negative row.
    """
    w = np.ones_like(labels) if weights is None else weights
    pairs = _count_pairs(scores, labels, w, np.zeros(len(scores), dtype=np.int64), 1)
    total = float(pairs.total[0])
    if total <= 0.0:
        raise DataError(f"AUC needs both classes; every label is {labels[0]:g}")
    value = float(pairs.won[0]) / total
    as_positive = w * labels * (pairs.beaten - value * pairs.negatives)
    as_negative = w * (1.0 - labels) * (pairs.lost_to - value * pairs.positives)
    return value, (as_positive + as_negative) / total


def gauc(
    scores: ArrayLike, labels: ArrayLike, group: ArrayLike, weights: FloatArray | None = None
) -> float:
    """AUC within each group, averaged with the groups' rows as weights (Zhou et al., KDD 2018).

    Groups of one class have no pair to order and are left out.

    Args:
        scores: ``[N]``.
        labels: ``[N]`` in [0, 1].
        group: ``[N]``, the user or request of each row.
        weights: ``[N]``, how much each row counts; None where all count the same.

    Raises:
        DataError: bad rows, or no group holds both classes.
    """
    s, y = paired(finite_rows(scores, "scores"), label_rows(labels, "labels"))
    value, weight = group_aucs(s, y, *cluster_codes(group, len(s)), weights)
    return float(np.average(value, weights=weight))


def group_aucs(
    scores: FloatArray,
    labels: FloatArray,
    codes: IntArray,
    count: int,
    weights: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """AUC and rows, by their weights, of each group that holds both classes.

    Raises:
        DataError: no group does.
    """
    w = np.ones_like(labels) if weights is None else weights
    pairs = _count_pairs(scores, labels, w, codes, count)
    usable = pairs.total > 0.0
    if not usable.any():
        raise DataError("GAUC needs a group with both classes; none has")
    rows = sum_by(codes, w, count)
    return pairs.won[usable] / pairs.total[usable], rows[usable]


def calibration_ratio(
    logits: ArrayLike, labels: ArrayLike, weights: FloatArray | None = None
) -> float:
    """Mean predicted probability over the label mean; 1 is calibrated, above 1 is overconfident.

    Raises:
        DataError: bad rows, or every label is 0.
    """
    from scipy import special  # slow to import, and a verdict is read without

    z, y = paired(finite_rows(logits, "logits"), label_rows(labels, "labels"))
    if not y.any():
        raise DataError("the calibration ratio needs a positive row; every label is 0")
    return float(np.average(special.expit(z), weights=weights) / np.average(y, weights=weights))


def recall_per_group(
    reference_scores: ArrayLike, scores: ArrayLike, group: ArrayLike, k: int
) -> tuple[FloatArray, FloatArray]:
    """Hard and soft recall@k of each group with more than ``k`` rows.

    The original's top k is the truth (early-stage ads ranking, arXiv 2307.11096): *hard* recall is
    the share of it that the optimized model's top k keeps; *soft* recall is the original's value
    collected by the optimized top k, over the most that k rows can collect. Rows tied at the cut
    share the places left, so a copy that collapses scores into ties gains nothing by row order.

    Args:
        reference_scores: ``[N]``; for soft recall they are values, so not negative
            (probabilities, not logits).
        scores: ``[N]``, only their order counts.
        group: ``[N]``, the request each row is a candidate of.
        k: Rows kept for each request, at least 1.

    Returns:
        ``hard [G]`` and ``soft [G]``; ``G`` counts the groups with more than ``k`` rows, since
        smaller ones lose nothing at the cut. Soft recall is NaN where reference scores are
        negative, and 1 where the whole top k is worth 0.

    Raises:
        DataError: bad rows, ``k < 1``, or no group has more than ``k`` rows.
    """
    if k < 1:
        raise DataError(f"recall@k needs k of at least 1, found {k}")
    reference, given = paired(
        finite_rows(reference_scores, "reference scores"), finite_rows(scores, "scores")
    )
    codes, count = cluster_codes(group, len(given))
    large = np.bincount(codes, minlength=count) > k
    if not large.any():
        raise DataError(f"recall@{k} needs a group of more than {k} rows; none has")
    kept = _top_k_share(given, codes, count, k)
    truth = _top_k_share(reference, codes, count, k)
    hard = sum_by(codes, np.minimum(kept, truth), count) / k
    collected = sum_by(codes, kept * reference, count)
    most = sum_by(codes, truth * reference, count)
    soft = np.divide(collected, most, out=np.ones(count), where=most > 0.0)
    if (reference < 0.0).any():
        soft = np.full(count, np.nan)
    return hard[large], soft[large]


def recall_at_k(
    reference_scores: ArrayLike, scores: ArrayLike, group: ArrayLike, k: int, *, soft: bool = False
) -> float:
    """Mean over groups of hard (or soft) recall@k; see `recall_per_group`.

    Raises:
        DataError: as `recall_per_group`, or soft recall asked for with negative reference scores.
    """
    hard_recall, soft_recall = recall_per_group(reference_scores, scores, group, k)
    if not soft:
        return float(hard_recall.mean())
    if np.isnan(soft_recall).any():
        raise DataError("soft recall adds up reference scores; give probabilities, not logits")
    return float(soft_recall.mean())


def shift_summary(reference: ArrayLike, optimized: ArrayLike) -> ShiftSummary:
    """Summarises how far the logits ``[N]`` moved from the reference's ``[N]``.

    Raises:
        DataError: lengths differ, no rows, non-finite entries.
    """
    before, after = paired(
        finite_rows(reference, "reference logits"), finite_rows(optimized, "optimized logits")
    )
    shift = after - before
    size = np.abs(shift)
    p50, p90, p99, p999 = (float(q) for q in np.quantile(size, (0.5, 0.9, 0.99, 0.999)))
    rms = float(np.sqrt(np.mean(np.square(shift))))
    row = int(size.argmax())
    return ShiftSummary(
        rms=rms,
        relative=rms / (standard_deviation(before) or 1.0),
        mean=float(shift.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        largest=float(size[row]),
        largest_row=row,
    )


# --- inside ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a positive and a negative row, weighted by soft labels, ties half.

    Attributes:
        beaten: ``[N]`` weight of negatives a row outscores.
        lost_to: ``[N]`` weight of positives that outscore a row.
        negatives: ``[N]`` weight of the other rows of its group as negatives.
        positives: ``[N]`` weight of the other rows of its group as positives.
        won: ``[G]`` pairs ordered right.
        total: ``[G]`` pairs.
    """

    beaten: FloatArray
    lost_to: FloatArray
    negatives: FloatArray
    positives: FloatArray
    won: FloatArray
    total: FloatArray


def _count_pairs(
    scores: FloatArray, labels: FloatArray, weights: FloatArray, codes: IntArray, count: int
) -> _Pairs:
    mine, other = weights * labels, weights * (1.0 - labels)
    negatives = sum_by(codes, other, count)[codes] - other
    positives = sum_by(codes, mine, count)[codes] - mine
    beaten = _weight_below(scores, other, codes, count)
    lost_to = positives - _weight_below(scores, mine, codes, count)
    won = sum_by(codes, mine * beaten, count)
    total = sum_by(codes, mine * negatives, count)
    return _Pairs(beaten, lost_to, negatives, positives, won, total)


def sum_by(codes: IntArray, values: FloatArray, count: int) -> FloatArray:
    """Sums of values ``[N]`` by code: ``[count]``."""
    return np.asarray(np.bincount(codes, values, minlength=count), dtype=np.float64)


def _weight_below(
    scores: FloatArray, weight: FloatArray, codes: IntArray, count: int
) -> FloatArray:
    """For each row, the weight of its group's other rows that score lower, ties half: ``[N]``."""
    order = np.lexsort((scores, codes))
    s, c, w = scores[order], codes[order], weight[order]
    starts = _run_starts(s, c)
    run = np.cumsum(starts) - 1
    run_weight = np.bincount(run, w)
    before = np.cumsum(run_weight) - run_weight
    run_code = c[starts]
    first_run = np.searchsorted(run_code, np.arange(count))
    rank = before - before[first_run][run_code] + 0.5 * run_weight
    below = np.empty_like(scores)
    below[order] = rank[run] - 0.5 * w
    return below


def _top_k_share(scores: FloatArray, codes: IntArray, count: int, k: int) -> FloatArray:
    """How much of a place in its group's top k each row has, ``[N]``: 1, 0, or between on ties."""
    order = np.lexsort((-scores, codes))
    s, c = scores[order], codes[order]
    starts = _run_starts(s, c)
    run = np.cumsum(starts) - 1
    first_of_group = np.searchsorted(c, np.arange(count))
    better = (np.flatnonzero(starts) - first_of_group[c[starts]])[run]
    share = np.empty_like(scores)
    share[order] = np.clip((k - better) / np.bincount(run)[run], 0.0, 1.0)
    return share


def _run_starts(scores: FloatArray, codes: IntArray) -> NDArray[np.bool_]:
    """Where, in sorted rows, a new group or a new score begins."""
    fresh = np.ones(len(scores), dtype=np.bool_)
    fresh[1:] = (scores[1:] != scores[:-1]) | (codes[1:] != codes[:-1])
    return fresh


def standard_deviation(values: FloatArray) -> float:
    """Standard deviation, and exactly 0 for a constant column whose mean rounds."""
    return 0.0 if bool((values == values[0]).all()) else float(values.std())


def _bad_rows(bad: NDArray[np.bool_], how: str) -> str:
    count = int(bad.sum())
    verb = "is" if count == 1 else "are"
    return f"{count:,} of {bad.size:,} rows {verb} {how}, the first in row {bad.argmax()}"
