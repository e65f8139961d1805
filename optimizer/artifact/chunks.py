"""Large batches in pieces, so that what is computed on the way stays in the caches.

A layer's values for 2,048 rows are written to memory and read again by the next layer; for 64 rows
they stay in the core's own cache. xDeepFM and AutoInt take 2,048 rows 1.5 times as fast in pieces
of 64, and AFM, which has 325 products of 16 numbers a row, 512 rows 1.35 times as fast in pieces of
16 (ONNX Runtime, one thread); models that are all GEMM lose a little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.signature import BATCH, FeatureKind, Signature
from ..timing import side_by_side

if TYPE_CHECKING:
    from ..data.rows import Rows

Arrays = Mapping[str, np.ndarray[Any, Any]]
ArrayRunner = Callable[[Mapping[str, Any]], dict[str, np.ndarray[Any, Any]]]

#: ``(rows of a batch, rows of a piece)``, ascending: how batches from so many rows on are run, up
#: to the next; 0 is whole. A thread's share of each.
Pieces = tuple[tuple[int, int], ...]

#: Rows a piece may have.
_SIZES = (16, 32, 64, 128, 256, 512)
#: Pieces must take less than this share of the whole batch's time.
_WORTH = 0.97
_ROUNDS, _SECONDS = 5, 0.01
_DELIMITERS = (FeatureKind.JAGGED, FeatureKind.OFFSETS, FeatureKind.LENGTHS)


@dataclass(frozen=True)
class InPieces:
    """Runs large batches piece by piece.

    Attributes:
        run: Scores one batch.
        pieces: Which batches, and in how large pieces.
    """

    run: ArrayRunner
    pieces: Pieces

    def __call__(self, features: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs of all rows."""
        count = max(len(value) for value in features.values())
        rows = piece_of(self.pieces, count)
        if rows == 0 or rows >= count:
            return self.run(features)
        parts = [
            self.run({name: value[start : start + rows] for name, value in features.items()})
            for start in range(0, count, rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def piece_of(pieces: Pieces, count: int) -> int:
    """The rows of the pieces that a batch is run in; 0 where it is run whole."""
    return max((rule for rule in pieces if rule[0] <= count), default=(0, 0))[1]


def in_pieces(run: ArrayRunner, pieces: Pieces, threads: int | None) -> ArrayRunner:
    """The runner, with large batches in pieces; without any rule, the runner itself."""
    if not pieces:
        return run
    each = threads or os.cpu_count() or 1
    return InPieces(run, tuple((each * start, each * rows) for start, rows in pieces))


def can_be_split(signature: Signature) -> bool:
    """Whether rows of all features can be told apart by their first dimension."""
    return all(
        f.shape[:1] == (BATCH,) and not f.delimiter and f.kind not in _DELIMITERS for f in signature
    )


def best_pieces(
    run: ArrayRunner, signature: Signature, rows: Rows, batch_sizes: Sequence[int]
) -> Pieces:
    """The pieces in which each batch size is fastest; none where whole batches are.

    Args:
        run: On one thread.
        signature: What it takes.
        rows: Real rows; repeated where there are too few for a batch.
        batch_sizes: The batch sizes that will be served.
    """
    if not can_be_split(signature):
        return ()
    found: list[tuple[int, int]] = []
    for size in sorted(set(batch_sizes)):
        features = {name: value.numpy() for name, value in rows.filled(size).features.items()}
        calls = {"0": partial(run, features)}
        for piece in _SIZES:
            if 2 * piece <= size:
                calls[str(piece)] = partial(InPieces(run, ((0, piece),)), features)
        best = 0
        if len(calls) > 1:
            timed = side_by_side(calls, _ROUNDS, _SECONDS, time.process_time)
            fastest = min(calls, key=lambda name: timed[name].median)
            if timed[fastest].median < _WORTH * timed["0"].median:
                best = int(fastest)
        if best != (found[-1][1] if found else 0):
            found.append((size, best))
    return tuple(found)
