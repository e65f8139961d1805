"""Whether requests are scored as flat rows are: the two entries of an artifact must agree.

Real rows are scored both ways: request by request as they come, rows that agree in all shared
features being one; and all candidates as one user's. Where formats round, a value between two codes
may fall either way, so quantized artifacts agree as far as a row's score may depend on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.delimiters import Ragged, row_count
from ..data.ragged import take
from ..data.rows import Rows
from ..ir.signature import Signature
from ..quality.budget import Budget
from ..quality.scores import Runner, score
from .entry import one_user
from .request import replicated

#: Rows that are scored as they come, and rows that become one request.
_ROWS, _CANDIDATES = 2048, 512
#: What rounding may move an artifact of fp32 by, where no limit is stricter.
_ROUNDING = 1e-4

Arrays = dict[str, np.ndarray[Any, Any]]


def request_shift(
    flat: Runner, request: Runner, rows: Rows, shared: Sequence[str], signature: Signature
) -> dict[str, float]:
    """How far a request's logits are from those of flat rows, per task.

    Args:
        flat: Scores flat rows.
        request: Scores a request: one row of the shared features, any number of the others'.
        rows: Real rows; the first 2,048 are scored.
        shared: What a request shares.
        signature: Says where each task is among the outputs.

    Returns:
        The rms difference over the standard deviation of the task's logits.
    """
    some = rows.part(0, _ROWS)
    few = some.part(0, _CANDIDATES)
    alike = replicated(one_user(few.features, shared), shared, len(few))
    one = Rows(alike, ragged=few.ragged)
    by_request = _by_request(request, shared, rows.ragged)
    logits = score(flat, some, signature)
    # One user's candidates may differ little: the spread is that of all rows.
    spreads = {task: float(values.std()) or 1.0 for task, values in logits.items()}
    pairs = [
        (logits, score(by_request, some, signature)),
        (score(flat, one, signature), score(by_request, one, signature)),
    ]
    return {
        task: max(_rms(expected[task] - got[task]) for expected, got in pairs) / spread
        for task, spread in spreads.items()
    }


def disagreement(
    flat: Runner,
    request: Runner,
    shared: Sequence[str],
    signature: Signature,
    rows: Rows,
    budget: Budget,
    *,
    lossy: bool,
) -> tuple[tuple[str, ...], str]:
    """A sentence for each task whose requests are scored otherwise than flat rows.

    Args:
        flat: Scores flat rows.
        request: Scores a request.
        shared: What a request shares.
        signature: Says where each task is among the outputs.
        rows: Real rows.
        budget: Its ``batch_shift`` limits what quantized artifacts may differ by.
        lossy: Whether the artifact is quantized.

    Returns:
        The sentences, and how far apart they are for the report.
    """
    shifts = request_shift(flat, request, rows, shared, signature)
    note = (
        f"requests are scored as flat batches are, up to {max(shifts.values()):.2g} of the logits' "
        f"spread (rms); they share {', '.join(shared)}"
    )
    reasons = []
    for task, shift in shifts.items():
        limit = budget.for_task(task).batch_shift if lossy else _ROUNDING
        if limit is not None and shift > limit:
            reasons.append(
                f"{task}: the logits of requests differ from those of flat batches by {shift:.3g} "
                f"of their spread (rms); {limit:.3g} is allowed"
            )
    return tuple(reasons), note


def _by_request(request: Runner, shared: Sequence[str], ragged: Sequence[Ragged]) -> Runner:
    """Scores flat rows request by request: rows that agree in the shared features are one."""

    def scored(features: Mapping[str, Tensor]) -> Arrays:
        found: Arrays = {}
        count = row_count(features, ragged)
        for members in _requests_in(features, shared):
            rows = take(features, ragged, torch.from_numpy(members))
            for name, value in request(one_user(rows, shared)).items():
                array = np.asarray(value)
                whole = found.setdefault(name, np.empty((count, *array.shape[1:]), array.dtype))
                whole[members] = array
        return found

    return scored


def _requests_in(
    features: Mapping[str, Tensor], shared: Sequence[str]
) -> list[np.ndarray[Any, Any]]:
    """The positions of the rows of each request: those that agree in all shared features."""
    columns = [
        np.ascontiguousarray(features[name].numpy()).reshape(len(features[name]), -1)
        for name in shared
    ]
    raw = np.concatenate([column.view(np.uint8) for column in columns], axis=1)
    keys = np.ascontiguousarray(raw).view(np.dtype((np.void, raw.shape[1]))).ravel()
    _, number = np.unique(keys, return_inverse=True)
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1)


def _rms(difference: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))
