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
from math import prod
from typing import Any

import numpy as np

from .data import Rows
from .ir.signature import BATCH, FeatureKind, Signature
from .timing import side_by_side

Arrays = Mapping[str, np.ndarray[Any, Any]]
ArrayRunner = Callable[[Mapping[str, Any]], dict[str, np.ndarray[Any, Any]]]

#: Rows a piece may have.
_SIZES = (16, 32, 64, 128, 256)
#: Pieces must take less than this share of the whole batch's time.
_WORTH = 0.95
_ROUNDS, _SECONDS = 5, 0.01
_DELIMITERS = (FeatureKind.JAGGED, FeatureKind.OFFSETS, FeatureKind.LENGTHS)


@dataclass(frozen=True)
class InPieces:
    """Runs batches of two pieces and more piece by piece.

    Attributes:
        run: Scores one batch.
        rows: Of a piece.
    """

    run: ArrayRunner
    rows: int

    def __call__(self, features: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs of all rows."""
        count = max(len(value) for value in features.values())
        if count < 2 * self.rows:
            return self.run(features)
        parts = [
            self.run({name: value[start : start + self.rows] for name, value in features.items()})
            for start in range(0, count, self.rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_pieces(run: ArrayRunner, rows: int | None, threads: int | None) -> ArrayRunner:
    """The runner, with pieces of so many rows a thread; None leaves batches whole."""
    if rows is None:
        return run
    return InPieces(run, rows * (threads or os.cpu_count() or 1))


def can_be_split(signature: Signature) -> bool:
    """Whether rows of all features can be told apart by their first dimension."""
    return all(
        f.shape[:1] == (BATCH,) and not f.delimiter and f.kind not in _DELIMITERS for f in signature
    )


def best_piece(
    run: ArrayRunner, signature: Signature, rows: Rows, batch_sizes: Sequence[int]
) -> int | None:
    """The rows of the pieces in which large batches are fastest, or None for whole batches.

    Args:
        run: On one thread.
        signature: What it takes.
        rows: Real rows; repeated where there are too few for a batch.
        batch_sizes: The batch sizes that will be served.
    """
    large = [size for size in batch_sizes if size >= 2 * _SIZES[0]]
    if not large or not can_be_split(signature):
        return None
    shares: dict[int, list[float]] = {}
    for size in large:
        features = {name: value.numpy() for name, value in rows.filled(size).features.items()}
        calls = {0: partial(run, features)}
        calls |= {
            piece: partial(InPieces(run, piece), features) for piece in _SIZES if 2 * piece <= size
        }
        named = {str(piece): call for piece, call in calls.items()}
        timed = side_by_side(named, _ROUNDS, _SECONDS, time.process_time)
        for piece in _SIZES:
            share = timed[str(piece if piece in calls else 0)].median / timed["0"].median
            shares.setdefault(piece, []).append(share)
    mean = {piece: prod(found) ** (1.0 / len(found)) for piece, found in shares.items()}
    best = min(mean, key=mean.__getitem__)
    return best if mean[best] < _WORTH else None
