"""What a runtime can't score: found out in the user's words, and refused before it where need be.

ONNX Runtime refuses ids that are beyond their table, in its own words. What is wrong is then told
by the signature, or by a small program beside the artifact that computes the ids of lookups behind
arithmetic. Runtimes that read whatever lies there are asked only after the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.arrays import arrays_of
from ..data.checks import Plan, check_features
from ..errors import RankcError, SignatureError
from ..ir.signature import BATCH, Signature
from .chunks import ArrayRunner
from .empty import is_empty, scores_of_nothing
from .integrity import OpenFiles
from .reopened import reopened

#: The name of the program that computes ids behind arithmetic.
CHECKS = "checks"
#: The backend that builds and runs it.
CHECKED_BY = "onnxruntime"


@dataclass(frozen=True)
class Check:
    """Ids that a lookup takes, and which of them.

    Attributes:
        output: The ids' name in the program that computes them.
        table: Where they are looked up, by the user's name.
        rows: How many rows that has.
        features: What the ids are computed of.
    """

    output: str
    table: str
    rows: int
    features: tuple[str, ...]

    def to_json(self) -> list[Any]:
        """Plain values; `from_json` reads them back."""
        return [self.output, self.table, self.rows, list(self.features)]

    @classmethod
    def from_json(cls, data: Any) -> Check:
        """The check that `to_json` wrote."""
        output, table, rows, features = data
        return cls(str(output), str(table), int(rows), tuple(map(str, features)))


def opened_checks(folder: Path, files: OpenFiles | None, held: object) -> ArrayRunner:
    """The program that computes ids behind arithmetic, opened.

    Args:
        folder: The artifact's.
        files: What watches a loaded artifact's files.
        held: What must live as long as the runner.
    """
    run = reopened(CHECKED_BY, folder, CHECKS, 1, held)
    return run if files is None else files.watched(run)


class Guard:
    """Runs runners, and tells why one couldn't score a batch.

    Args:
        signature: What they take.
        checks: The ids behind arithmetic.
        open_checks: Opens the program that computes these.
        first: Whether to check before a runner is asked, since it refuses nothing itself.
        shared: The features of which a request has one row.
    """

    def __init__(
        self,
        signature: Signature,
        checks: tuple[Check, ...],
        open_checks: Callable[[], ArrayRunner],
        *,
        first: bool,
        shared: tuple[str, ...] = (),
    ) -> None:
        self._signature = signature
        self._checks = checks
        self._open = open_checks
        self._opened: ArrayRunner | None = None
        self._first = first
        self._shared = shared
        self._plan = Plan(signature)
        rowwise = (f.name for f in signature if f.shape[:1] == (BATCH,))
        #: A feature that tells whether there are rows.
        self._counted = next(rowwise, signature.names[0] if signature.names else "")

    def run(self, runner: ArrayRunner, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What the runner makes of some features.

        Raises:
            SignatureError: They can't be scored; which feature, row and id, where that is known.
            DataError: NaN or Inf, for which they can't be scored.
        """
        if self._first:
            self.check(arrays)
        try:
            # A runtime's own kernels may end the process over nothing: LSTMs of ONNX Runtime do.
            if not np.size(arrays.get(self._counted, 1)) and is_empty(self._signature, arrays):
                return scores_of_nothing(runner, self._signature, arrays)
            return runner(arrays)
        except RankcError:
            raise
        except Exception as error:
            self._tell(arrays)
            raise SignatureError(f"the batch can't be scored: {_reason(error)}") from error

    def around(self, runner: ArrayRunner) -> ArrayRunner:
        """The runner, guarded."""

        def guarded(arrays: Mapping[str, Any]) -> dict[str, Any]:
            return self.run(runner, arrays_of(arrays))

        return guarded

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Raises if ids are beyond their tables, or offsets or lengths don't cut a list of ids.

        Raises:
            SignatureError: Which feature, row and id.
        """
        if not self._plan.bounds_fit(arrays):
            self._tell(arrays)
        self._plan.check_delimiters(arrays)
        if self._checks:
            self._check_computed(arrays)

    def _tell(self, arrays: Mapping[str, Any]) -> None:
        """Raises if it is known what is wrong with a batch.

        Raises:
            SignatureError: A feature is missing or doesn't fit, or leads to an id that doesn't.
            DataError: NaN or Inf in a feature.
        """
        names = set(self._signature.names)
        missing = names - set(arrays)
        if missing and not set(arrays) - names:
            raise SignatureError(f"features {sorted(missing)} are missing.")
        known = tuple(
            f
            for f in self._signature
            if f.name in arrays and (not f.delimiter or f.delimiter in arrays)
        )
        given = {f.name: arrays[f.name] for f in known}
        check_features(replace(self._signature, features=known), given)
        if not missing:
            self._check_computed(arrays)

    def _check_computed(self, arrays: Mapping[str, Any]) -> None:
        """Raises if ids behind arithmetic are beyond their tables."""
        if not self._checks or any(n not in arrays for c in self._checks for n in c.features):
            return
        if self._opened is None:
            self._opened = self._open()
        found = self._opened(self._flat(arrays))
        for one in self._checks:
            ids = np.asarray(found[one.output])
            bad = (ids < 0) | (ids >= one.rows)
            if bad.any():
                raise SignatureError(self._sentence(one, ids, bad, arrays))

    def _flat(self, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request's features, the shared ones once a candidate."""
        if not self._shared:
            return arrays
        own = (f for f in self._signature if f.name not in self._shared and f.shape[0] == BATCH)
        rows = len(arrays[next(own).name])
        return {
            name: np.repeat(value, rows, 0) if name in self._shared and len(value) == 1 else value
            for name, value in arrays.items()
        }

    def _sentence(
        self, one: Check, ids: np.ndarray[Any, Any], bad: np.ndarray[Any, Any], arrays: Any
    ) -> str:
        wrong = bad.reshape(len(ids), -1).any(axis=1) if ids.ndim else np.ones(1, bool)
        rows = np.flatnonzero(wrong)
        names = " and ".join(map(repr, one.features))
        plural = "s" if len(one.features) > 1 else ""
        whole = all(self._by_row(name) for name in one.features)
        where = "row" if whole else "place"
        return (
            f"feature{plural} {names} lead{'' if plural else 's'} to ids beyond {one.table}, which "
            f"has {one.rows:,} rows, in {len(rows):,} {where}s: from {int(ids[bad].min())} to "
            f"{int(ids[bad].max())}, first in {where} {int(rows[0])}. Map unknown ids to a known "
            "row, or hash them into the table."
        )

    def _by_row(self, name: str) -> bool:
        shape = self._signature.feature(name).shape
        return name in self._shared or shape[:1] == (BATCH,)


def _reason(error: Exception) -> str:
    """What a runtime says, less where in its own code it says so."""
    text = str(error)
    _, _, said = text.rpartition("Status Message: ")
    first = (said or text).strip().split("\n", 1)[0]
    if "by zero" in first:
        return "an integer is divided by 0. Leave such rows out, or divide by at least 1 (clamp)."
    return re.sub(r"^\S+\.(?:cc|h|cpp|cu):\d+ .*?\)?\s(?=\w)", "", first)[:300]
