"""`Finish`: a built artifact that waits for its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..data.rows import Rows
from ..ir.program import Program
from ..ir.scratch import Scratch
from ..ir.signature import Signature
from ..pipeline.passbase import Exactness
from ..quality.budget import Budget
from ..quality.verdict import Verdict
from ..report.records import Outcome
from ..report.report import Report
from ..requests.entry import one_user
from ..requests.equivalence import disagreement
from ..target import Target
from .artifact import Artifact
from .chunks import best_pieces
from .manifest import Manifest
from .reopened import close_all
from .translation import Sample, check_artifact, unlike


class Finish:
    """A built artifact that waits for its verdict.

    Attributes:
        report: What the passes did.
        backend: What built it.
        entry: What it is called in a race.
        program: What was built, as flat rows are scored; None where it is too large to keep.
    """

    def __init__(
        self, scratch: Scratch, manifest: Manifest, report: Report, program: Program | None
    ) -> None:
        self._scratch = scratch
        self._artifact = Artifact(scratch.path, manifest, report, scratch=scratch)
        self.report = report
        self.backend = self.entry = manifest.backend
        self.program = program

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self._artifact.signature

    @property
    def fingerprint(self) -> tuple[str, str]:
        """What tells it from others: the backend, and the program that it was made from."""
        return self.backend, self._artifact.manifest.fingerprints["optimized"]

    @property
    def seconds(self) -> float:
        """Estimated, at the largest batch served; infinite where nothing was estimated."""
        known = [r.estimate[1] for r in self.report.records if r.estimate is not None]
        return known[-1] if known else math.inf

    @property
    def lossy(self) -> bool:
        """Whether a lossy pass changed something."""
        lossy = (Exactness.LOSSY, Exactness.TRAINED)
        changed = (r for r in self.report.records if r.outcome is Outcome.CHANGED)
        return any(record.exactness in lossy for record in changed)

    def run(self, features: Any) -> Any:
        """Scores features with the built artifact."""
        return self._artifact.run(features)

    def open(self) -> Any:
        """The artifact's runner on one thread; where it takes requests, all rows are one."""
        entry = self._artifact.manifest.request
        if entry is None:
            return self._artifact.open(1)
        runner = self._artifact.open_request(1)
        return lambda arrays: runner(one_user(arrays, entry.shared))

    def split(self, rows: Rows, batch_sizes: Sequence[int]) -> None:
        """Finds out whether large batches are faster in pieces, and runs them so."""
        if self._artifact.manifest.request is not None:
            return
        pieces = best_pieces(self._artifact.open(1), self.signature, rows, batch_sizes)
        self._artifact.manifest = replace(self._artifact.manifest, pieces=pieces)
        self.report.notes += [
            f"batches from {start} rows on are run in pieces of {piece} a thread, which was "
            "measured to be faster"
            for start, piece in pieces
            if piece
        ]

    def disagreement(self, rows: Rows, budget: Budget) -> tuple[str, ...]:
        """Where requests are scored otherwise than flat rows; told in the report besides."""
        made, entry = self._artifact, self._artifact.manifest.request
        if entry is None:
            return ()
        told, note = disagreement(
            made.run, made.run_request, entry.shared, self.signature, rows, budget, lossy=self.lossy
        )
        self.report.notes.append(note)
        return told

    def compare(
        self,
        captured: Program,
        program: Program,
        sample: Sample,
        target: Target,
        batch_sizes: Sequence[int],
    ) -> None:
        """Holds it against the model on ordinary and on hostile rows; told in the report.

        Raises:
            TranslationError: Which row is scored otherwise, where and how.
        """
        told = check_artifact(
            captured, program, self._artifact, sample, target, batch_sizes, lossy=self.lossy
        )
        self.report.notes.append(told)
        if self.program is None:
            close_all(self._scratch)  # what is opened to be timed would be in memory besides

    def differs(self, rows: Rows) -> str:
        """Where it scores rows otherwise than the program it was built of, beyond rounding.

        Args:
            rows: Real rows; up to 2,048 are scored, from all over them.

        Returns:
            A sentence; empty where it doesn't, or where the program is too large to keep.
        """
        if self.program is None:
            return ""
        return unlike(self.program, self._artifact.run, rows, self.backend)

    def discard(self) -> None:
        """Removes what was built, from memory as well; nothing can be asked of it any more."""
        self._scratch.remove()
        self.program = None
        del self._artifact

    def __call__(self, verdict: Verdict) -> Artifact:
        """The artifact with its verdict, beside which stands what failed on the way."""
        verdict = replace(verdict, failed=self.report.failed)
        self.report.verdict = verdict
        self._artifact.manifest = replace(self._artifact.manifest, verdict=verdict)
        return self._artifact
