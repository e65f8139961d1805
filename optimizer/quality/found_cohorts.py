"""Slices of the rows on which two models differ most: cohorts that nobody named.

Damage can sit in a corner of the traffic that no cohort column marks: one id, the tail of a dense
feature, a pair of both. After C2AL (2510.02215), whose cohorts are those of the strongest
divergence, such slices are found where the optimized model's probabilities differ most from the
original's. They are found on the rows that chose the plan and judged on the rows that prove it,
never on the same ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.ragged import bounds_of
from ..data.rows import Rows
from .metrics import FloatArray, IntArray
from .task_rows import TaskRows
from .verdict import CohortStatus, Verdict

Columns = Mapping[str, NDArray[Any]]
Parts = Sequence[tuple["Part", ...]]

_PER_TASK: Final = 5
"""Slices judged for each task: every further one makes each test a little stricter."""

_MAX_ROWS: Final = 200_000
"""Rows searched: of more, evenly spaced ones."""

_MAX_WIDTH: Final = 64
"""A dense feature of more columns is an embedding, whose columns mean nothing by themselves."""

_VALUES, _BINS, _TAIL = 32, 10, 0.01
_PAIRED_COLUMNS: Final = 24
_OVERLAP: Final = 0.5
_SPARE: Final = 1.25
"""So many times the rows a cohort needs, so that chance doesn't leave it with too few."""


@dataclass(frozen=True)
class Part:
    """The values of one column that are in a slice.

    Attributes:
        column: The column's name.
        value: The one value; None for a range or for what is left of a column.
        low: The least value of a range.
        high: The value that ends it, itself outside.
        others: The values that are left out, where all others are in.
    """

    column: str
    value: Any = None
    low: float = -math.inf
    high: float = math.inf
    others: tuple[Any, ...] = ()

    def members(self, columns: Columns) -> NDArray[np.bool_]:
        """Which rows are in, ``[N]``."""
        column = columns[self.column]
        if self.others:
            return ~np.isin(column, self.others)
        if self.value is not None:
            return np.asarray(column == self.value)
        return np.asarray((column >= self.low) & (column < self.high))

    def __str__(self) -> str:
        if self.others:
            return f"other than {len(self.others)} frequent ones"
        if self.value is not None:
            return str(self.value)
        if self.low == -math.inf:
            return f"under {self.high:.4g}"
        return f"from {self.low:.4g}" + ("" if self.high == math.inf else f" to {self.high:.4g}")


@dataclass(frozen=True)
class Slice:
    """Rows on which two models differ much in one task.

    Attributes:
        task: The task.
        parts: What a row has to be; all of it.
    """

    task: str
    parts: tuple[Part, ...]

    @property
    def axis(self) -> str:
        """The columns it is cut by."""
        return " and ".join(part.column for part in self.parts)

    @property
    def value(self) -> str:
        """Their values."""
        return " and ".join(map(str, self.parts))

    def fails(self, verdict: Verdict) -> bool:
        """Whether a verdict that judged it says that it surely lost too much."""
        return any(
            (cohort.task, cohort.axis, cohort.value) == (self.task, self.axis, self.value)
            for cohort in verdict.cohorts
            if cohort.found and cohort.status is CohortStatus.FAIL
        )

    def members(self, columns: Columns) -> NDArray[np.bool_]:
        """Which rows are in, ``[N]``."""
        first, *rest = [part.members(columns) for part in self.parts]
        return functools.reduce(np.logical_and, rest, first)


def columns_of(rows: Rows, reference: Mapping[str, FloatArray]) -> dict[str, NDArray[Any]]:
    """What rows can be sliced by, ``{name: [N]}``.

    The features at hand, column by column, how many ids a row has where that differs, the cohorts
    the rows bring, and the original's scores.
    """
    found: dict[str, NDArray[Any]] = {}
    ragged = {name for one in rows.ragged for name in (one.delimiter, *one.values)}
    for name, tensor in rows.features.items():
        if name in ragged or tensor.dim() > 2:
            continue
        if tensor.dim() == 1:
            found[name] = tensor.numpy()
        elif tensor.shape[1] <= _MAX_WIDTH:
            found |= {f"{name}[{i}]": tensor[:, i].numpy() for i in range(tensor.shape[1])}
    for one in rows.ragged:
        lengths = bounds_of(one, rows.features).diff().to(torch.float64)
        found[f"number of {' and '.join(one.values)}"] = lengths.numpy()
    for name, column in (rows.cohorts or {}).items():
        found[f"cohort {name}"] = np.asarray(column).astype(np.str_)
    for task, scores in reference.items():
        found[f"score of {task}"] = scores
    return found


def find_slices(
    task: TaskRows, columns: Columns, limit: float, least: int, count: int = _PER_TASK
) -> tuple[Slice, ...]:
    """The slices of a task whose damage would show most clearly, worst first.

    The rows' divergence is that on soft labels, the original's own probabilities, and so free of
    label noise: what a slice is chosen for is the models' difference and not the luck of labels.
    With labels, a slice of damage ``S`` in all and loss ``B`` would be measured with a standard
    error of ``√(2S) / B`` (see `placement.allowance`), so slices are ordered by how many of those
    ``S / B`` is over the limit.

    Args:
        task: Both models' scores on soft labels.
        columns: What to slice by, as of `columns_of`.
        limit: The relative rise of loss that fails a cohort.
        least: Rows a slice must have here.
        count: How many to give; fewer where two of them would mostly hold the same rows.
    """
    total = len(task.loss)
    keep = np.unique(np.linspace(0, total - 1, min(total, _MAX_ROWS)).astype(np.int64))
    least = max(math.ceil(least * len(keep) / total), 2)
    some = {name: column[keep] for name, column in columns.items()}
    damage = (task.loss - task.reference_loss)[keep]
    base = task.base[keep]
    noise = 4.0 * float(base.mean()) if task.regression else 2.0

    def measured(codes: IntArray, parts: Parts) -> list[_Found]:
        rows = np.bincount(codes, minlength=len(parts))
        lost = np.bincount(codes, damage, minlength=len(parts))
        loss = np.bincount(codes, base, minlength=len(parts))
        clear = (lost - limit * loss) / np.sqrt(noise * np.maximum(lost, 1e-300))
        large = (rows >= least) & (rows <= len(keep) // 2) & (lost > 0.0)
        kept = np.flatnonzero(large).tolist()
        return [_Found(float(clear[i]), Slice(task.name, parts[i])) for i in kept]

    cuts = [cut for name, column in some.items() if len((cut := _cut(name, column, least))[1]) > 1]
    singles = [measured(codes, [(part,) for part in parts]) for codes, parts in cuts]
    clearest = [max((one.clear for one in found), default=-math.inf) for found in singles]
    paired = sorted(np.argsort(-np.array(clearest), kind="stable")[:_PAIRED_COLUMNS].tolist())
    found = [one for several in singles for one in several]
    for left, right in combinations(paired, 2):
        (codes, parts), (others, more) = cuts[left], cuts[right]
        both = [(part, other) for part in parts for other in more]
        found += measured(codes * len(more) + others, both)
    return _apart(found, some, count)


@dataclass(frozen=True)
class _Found:
    """A slice, and how clearly it would fail."""

    clear: float
    slice: Slice


def _apart(found: list[_Found], columns: Columns, count: int) -> tuple[Slice, ...]:
    """The clearest that don't mostly hold the rows of clearer ones; simple ones first if equal."""
    taken: list[tuple[Slice, NDArray[np.bool_]]] = []
    for one in sorted(found, key=lambda f: (-f.clear, len(f.slice.parts))):
        if len(taken) == count:
            break
        members = one.slice.members(columns)
        if all(_jaccard(members, other) <= _OVERLAP for _, other in taken):
            taken.append((one.slice, members))
    return tuple(slice_ for slice_, _ in taken)


def _jaccard(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    return float((left & right).sum() / (left | right).sum())


def _cut(name: str, column: NDArray[Any], least: int) -> tuple[IntArray, list[Part]]:
    """A column as codes ``[N]``, and what each code stands for."""
    values, codes, counts = np.unique(column, return_inverse=True, return_counts=True)
    if column.dtype.kind == "f" and len(values) > _VALUES:
        edges = _edges(column, least)
        ends = [-math.inf, *edges.tolist(), math.inf]
        parts = [Part(name, low=low, high=high) for low, high in pairwise(ends)]
        return np.searchsorted(edges, column, side="right").astype(np.int64), parts
    frequent = np.sort(np.argsort(-counts, kind="stable")[:_VALUES])
    frequent = frequent[counts[frequent] >= least]
    if len(frequent) == 0:
        return np.zeros(len(column), dtype=np.int64), []
    renumbered = np.full(len(values), len(frequent))
    renumbered[frequent] = np.arange(len(frequent))
    own = values[frequent].tolist()
    parts = [Part(name, value=value) for value in own]
    if len(frequent) < len(values):
        parts.append(Part(name, others=tuple(own)))
    return renumbered[codes].astype(np.int64), parts


def _edges(column: NDArray[Any], least: int) -> FloatArray:
    """Where bins of equal rows begin, and the tails, which clipping hits."""
    bins = max(min(_BINS, len(column) // least), 1)
    tail = max(_TAIL, least / len(column))
    shares = [share / bins for share in range(1, bins)]
    if tail < 1.0 / bins:
        shares = [tail, *shares, 1.0 - tail]
    edges: FloatArray = np.unique(np.quantile(column, shares, method="higher"))
    inner: FloatArray = edges[edges > column.min()]
    return inner


def rows_needed(rows: int, proving: int, cohort_rows: int) -> int:
    """How many of ``rows`` a slice must have so that it has enough among those that prove."""
    return math.ceil(_SPARE * cohort_rows * rows / max(proving, 1))
