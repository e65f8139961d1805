"""Which rows hang together: those of one user or request, those of one time, and repeats of a row.

Rows of one user resemble one another, and so do rows that came at about the same time: the weather
of a week delays all its flights. An interval that takes them as independent is too narrow. Errors
are therefore clustered two ways, by group and by time, and the widest of the three counts: by
group, by time, and by both at once (Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 2011).

What lasts doesn't end where a block of time does, so the error over time is made from the slow
waves of the blocks' contributions: the equal-weighted cosine estimator, whose Student's t has as
many degrees of freedom as waves are used (Lazarus, Lewis, Stock and Watson, J. Bus. Econ. Stat.
2018). The longer the contributions are found to last, the fewer and slower the waves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from ..data.times import time_column
from .metrics import FloatArray, IntArray, cluster_codes, sum_by

BLOCKS: Final = 64
"""Blocks that rows are cut into by time."""

WAVES: Final = (3, 24)
"""Waves over the blocks that their error is made from, at least and at most."""

MIN_BLOCKS: Final = 10
"""Fewer blocks than this say little of how much blocks differ, and the interval is wide for it."""

_ORDERED_ROWS: Final = 500
"""Fewer rows than this, without a time, aren't taken to be in its order."""


@dataclass(frozen=True)
class Spread:
    """How much an estimate may be off, by what its rows contribute.

    Attributes:
        error: The standard error.
        degrees: Of freedom, of Student's t.
        carriers: How many independent contributions the error rests on: ``(Σw²)² / Σw⁴ - 1``, or
            all but one where they aren't more concentrated than draws of a normal.
        by: What rows were clustered by: ``"row"``, ``"group"``, ``"time"`` or ``"group and time"``.
    """

    error: float
    degrees: float
    carriers: float
    by: str

    def half(self, confidence: float) -> float:
        """Half the width of the two-sided interval."""
        from scipy.special import stdtrit  # slow to import, and a verdict is read without

        return float(stdtrit(self.degrees, (1.0 + confidence) / 2.0)) * self.error


@dataclass(frozen=True)
class Clusters:
    """The clusters of each row.

    Attributes:
        rows: How many rows there are.
        group: ``[N]`` codes from 0 of the users or requests; None where every row is its own.
        groups: How many there are.
        block: ``[N]`` codes from 0 of the blocks of time, in its order; None for no blocks.
        blocks: How many there are.
        given: Whether a time was given for the rows, rather than taken from their order.
        own: ``[N]`` codes from 0 of the users or requests themselves, where ``group`` may have put
            several together that share rows; None where none were given.
        owners: How many there are.
        repeats: Rows that repeat others.
        notes: What there is to say of the time.
    """

    rows: int
    group: IntArray | None = None
    groups: int = 0
    block: IntArray | None = None
    blocks: int = 0
    given: bool = False
    own: IntArray | None = None
    owners: int = 0
    repeats: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        rows: int,
        group: ArrayLike | None = None,
        time: ArrayLike | None = None,
        repeats: IntArray | None = None,
    ) -> Clusters:
        """Clusters from columns.

        Args:
            rows: N.
            group: ``[N]``, the user or request of each row.
            time: ``[N]``, when each row came; None takes the order of the rows for it.
            repeats: ``[N]`` codes; rows that repeat one another share one.

        Raises:
            DataError: a column of another length, or with entries missing.
        """
        own, owners = (None, 0) if group is None else cluster_codes(group, rows)
        codes, count, more = own, owners, 0
        if repeats is not None:
            more = rows - int(repeats.max()) - 1
            codes, count = _joined(codes, count, repeats)
        block, blocks, notes = _by_order(rows) if time is None else _by_time(time, rows)
        return cls(rows, codes, count, block, blocks, time is not None, own, owners, more, notes)

    def __len__(self) -> int:
        """How many independent units there are, but for time."""
        return self.groups if self.group is not None else self.rows

    @property
    def timeless(self) -> Clusters:
        """The same without blocks of time."""
        return replace(self, block=None, blocks=0)

    @property
    def middles(self) -> FloatArray:
        """``[blocks]`` the middle of each block, as the share of rows that came before it."""
        assert self.block is not None
        sizes = np.bincount(self.block, minlength=self.blocks)
        return np.asarray((np.cumsum(sizes) - sizes / 2.0) / self.rows, dtype=np.float64)

    def part(self, rows: IntArray) -> Clusters:
        """Those of some rows."""
        group, groups = _renumbered(self.group, rows)
        block, blocks = _renumbered(self.block, rows)
        own, owners = _renumbered(self.own, rows)
        return Clusters(
            len(rows), group, groups, block, blocks, self.given, own, owners, self.repeats
        )

    def of_groups(self, kept: IntArray) -> Clusters:
        """Those of the groups themselves, each with what its first row hangs together with.

        Args:
            kept: Codes of the groups, as in ``own``, that are left, one unit each.
        """
        assert self.own is not None
        first = np.zeros(self.owners, dtype=np.int64)
        first[self.own[::-1]] = np.arange(self.rows - 1, -1, -1)
        return self.part(first[kept])

    def spread(self, contribution: FloatArray, share: FloatArray, confidence: float) -> Spread:
        """How far the sum of what rows contribute may be off.

        The variance is the delete-one-cluster jackknife, in its closed form: a cluster's
        contribution over ``1 - share`` of the denominator in it.

        Args:
            contribution: ``[N]``, summing to about 0.
            share: ``[N]`` of the denominator in each row, summing to 1; zeros where it has none.
            confidence: Of the interval that is to be widest.
        """
        fine = self.group if self.group is not None else np.arange(self.rows)
        ways = [
            (_moved(contribution, share, fine, len(self)), "row" if self.own is None else "group")
        ]
        if self.block is not None and self.blocks > 1:
            ways.append((_moved(contribution, share, self.block, self.blocks), "time"))
        found = [_spread(moved, by) for moved, by in ways]
        if len(found) > 1:
            found[1] = _lasting(found[1], ways[1][0], self.middles)
        if len(found) > 1 and self.group is not None and self.block is not None:
            found.append(self._both(contribution, share, found[0], found[1]))
        # Few contributions are few whichever way they are added up. A few of the blocks widen the
        # interval by their degrees of freedom, and need no other rule.
        widest = max(found, key=lambda one: one.half(confidence))
        return replace(widest, carriers=found[0].carriers)

    def _both(
        self, contribution: FloatArray, share: FloatArray, group: Spread, time: Spread
    ) -> Spread:
        """Clustered by both: the two variances less that of what is in both."""
        assert self.group is not None
        assert self.block is not None
        cells = np.unique(self.group * self.blocks + self.block, return_inverse=True)[1]
        inner = _spread(_moved(contribution, share, cells, int(cells.max()) + 1), "cell")
        variance = max(group.error**2 + time.error**2 - inner.error**2, 0.0)
        degrees = min(group.degrees, time.degrees)
        return Spread(variance**0.5, degrees, group.carriers, "group and time")


def _moved(contribution: FloatArray, share: FloatArray, codes: IntArray, count: int) -> FloatArray:
    left = np.maximum(1.0 - sum_by(codes, share, count), np.finfo(np.float64).eps)
    return sum_by(codes, contribution, count) / left


def _spread(moved: FloatArray, by: str) -> Spread:
    count = len(moved)
    squares = np.square(moved)
    total = float(squares.sum())
    error = ((count - 1) / count * total) ** 0.5
    if total == 0.0 or count < 2:
        return Spread(error, max(count - 1.0, 1.0), max(count - 1.0, 0.0), by)
    shares = squares / total  # of the variance: no underflow, whatever the scale
    kurtosis = count * float(np.square(shares).sum())
    # Draws of a normal have a kurtosis of 3, and so few of them of anything up to this.
    if kurtosis <= 3.0 + 2.0 * (24.0 / count) ** 0.5:
        return Spread(error, count - 1.0, count - 1.0, by)
    carriers = count / kurtosis - 1.0
    return Spread(error, max(carriers, 1.0), carriers, by)


def _lasting(independent: Spread, moved: FloatArray, middles: FloatArray) -> Spread:
    """The error of a sum of blocks' contributions that hang together with those next to them.

    Args:
        independent: What it would be if they didn't.
        moved: ``[T]`` contributions, in the order of time, summing to about 0.
        middles: ``[T]`` where each block is, from 0 to 1.
    """
    count = len(moved)
    size = float(np.abs(moved).max())
    if not size or count < 2:
        return independent
    each = moved / size
    waves = _waves(each)
    slow = np.cos(np.pi * np.outer(np.arange(1, waves + 1), middles)) @ each
    variance = 2.0 * float(np.square(slow).mean())
    # Waves leave the mean out anyway: of the jackknife only what is unequal is wanted.
    return replace(
        independent,
        error=size * variance**0.5 * (count - 1) / count,
        degrees=min(float(waves), independent.degrees),
    )


def _waves(each: FloatArray) -> int:
    """How many waves over the blocks are slow beside what lasts.

    If a block has ``r`` of the one before it, the spectrum at wave ``j`` of ``T`` blocks is lower
    than at none by ``r (π j / T)² / (1 - r)²`` of it. Waves are taken until the variance is too
    small by ``2 / T`` for it, which is little beside how well they tell it.
    """
    count = len(each)
    apart = each - each.mean()
    squares = float(np.square(apart).sum())
    found = float(apart[1:] @ apart[:-1]) / squares if squares else 0.0
    # Found too low by (1 + 3 r) / T (Kendall, Biometrika 1954), and give or take 1 / √T: half of
    # that is left out, or blocks that don't last at all would often be judged by few waves.
    lasts = found + (1.0 + 3.0 * found) / count - 0.5 / count**0.5
    lasts = min(max(lasts, 1e-6), 0.97)
    # All count - 1 waves are what independent blocks would be judged by: of a few, all.
    least = min(WAVES[0], count - 1)
    most = min(max(count // 2, 2 * least), count - 1, WAVES[1])
    fitting = count / np.pi * (1.0 - lasts) * (6.0 / (count * lasts)) ** 0.5
    return int(np.clip(fitting, least, most))


def _renumbered(codes: IntArray | None, rows: IntArray) -> tuple[IntArray | None, int]:
    if codes is None:
        return None, 0
    found, inside = np.unique(codes[rows], return_inverse=True)
    return inside.astype(np.int64), len(found)


def _joined(group: IntArray | None, groups: int, repeats: IntArray) -> tuple[IntArray, int]:
    """Groups, with those that share a repeated row put together."""
    if group is None:
        return repeats, int(repeats.max()) + 1
    from scipy import sparse  # slow to import, and hardly ever needed
    from scipy.sparse import csgraph

    count = int(repeats.max()) + 1
    links = sparse.coo_array(
        (np.ones(len(group), dtype=np.bool_), (group, groups + repeats)),
        shape=(groups + count, groups + count),
    )
    part = csgraph.connected_components(links, directed=False)[1]
    codes = np.unique(part[group], return_inverse=True)[1].astype(np.int64)
    return codes, int(codes.max()) + 1


# --- time -----------------------------------------------------------------------------------------


def _by_order(rows: int) -> tuple[IntArray | None, int, tuple[str, ...]]:
    if rows < _ORDERED_ROWS:
        return None, 0, ()
    return _block_at(2 * np.arange(rows, dtype=np.int64) + 1, rows), BLOCKS, ()


def _block_at(twice: IntArray, rows: int) -> IntArray:
    """The block of rows whose place among all is half of this."""
    return np.asarray(twice * BLOCKS // (2 * rows), dtype=np.int64)


def _by_time(time: ArrayLike, rows: int) -> tuple[IntArray | None, int, tuple[str, ...]]:
    """Blocks of about equal rows; rows of one time are in one block."""
    values, codes = np.unique(time_column(time, rows), return_inverse=True)
    if len(values) == 1:
        told = f"time is {values[0]} in all {rows:,} rows: their order is taken for it"
        block, blocks, _ = _by_order(rows)
        return block, blocks, (told,)
    counts = np.bincount(codes)
    of_value = np.unique(_block_at(2 * np.cumsum(counts) - counts, rows), return_inverse=True)[1]
    blocks = int(of_value.max()) + 1
    notes: tuple[str, ...] = ()
    if blocks < MIN_BLOCKS:
        notes = (
            f"time cuts the rows into {blocks} blocks, too few to tell how much blocks differ, so "
            f"intervals are wide: rows of {MIN_BLOCKS} different times or more, about alike in "
            f"number, would do ({BLOCKS} are best)",
        )
    return of_value[codes].astype(np.int64), blocks, notes
