"""What a probe knows already: from a checkpoint of an interrupted run, or from an artifact.

The damage of a candidate depends on the model and the rows alone: not on the budget, the target's
times or the batch sizes. It is the dearest thing a probe measures, and this spares measuring it
twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from .data import Rows
from .errors import CheckpointError
from .fitting import reading, require, require_fit
from .ir.program import Program, content_hash
from .ir.scratch import write_whole
from .report import SiteRecord

#: Raised when what is measured changes.
_FORMAT = 1


@dataclass(frozen=True)
class Subject:
    """What damages were measured on.

    Attributes:
        model: The captured program's fingerprint.
        rows: A hash of the rows that calibrate and that choose.
    """

    model: str
    rows: str

    @classmethod
    def of(cls, program: Program, *rows: Rows) -> Subject:
        """The subject of a run."""
        digest = hashlib.blake2b(digest_size=16)
        for some in rows:
            for name, value in some.features.items():
                digest.update(name.encode())
                digest.update(content_hash(torch.as_tensor(value)))
        return cls(program.fingerprint(), digest.hexdigest())


@dataclass(frozen=True)
class _Entry:
    """A line of a checkpoint."""

    site: str
    recipe: str
    damage: Mapping[str, float]


@dataclass
class Knowledge:
    """Damages by site and recipe.

    Attributes:
        subject: What they were measured on.
        damages: ``{(site, recipe): {task: damage}}``.
        path: Where new ones are written as they come, a line each; None keeps them in memory.
    """

    #: Damages are of the program as it was captured: a pass that may change scores drops them.
    of_captured: ClassVar[bool] = True
    subject: Subject
    damages: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def open(cls, path: Path, subject: Subject) -> Knowledge:
        """The checkpoint in a file, or a new one.

        Raises:
            CheckpointError: It is of another model, of other rows, or no checkpoint.
        """
        known = cls(subject, path=path)
        if not path.exists():
            known._write_anew()
            return known
        try:
            head, *lines = path.read_text().splitlines() or [""]
            found = json.loads(head)
            other = Subject(found["model"], found["rows"])
            require_fit(other, "the first line")
            stale = found["format"] != _FORMAT
        except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no checkpoint of a probe.") from error
        _require_same(other, subject, f"the checkpoint {path}")
        if stale:
            raise CheckpointError(f"{path} was written by another version of rankc. Remove it.")
        cut_off = False
        for number, line in enumerate(lines, 2):
            try:
                entry = json.loads(line)
            except (RecursionError, ValueError):
                cut_off = True  # the run ended while it wrote this line
                continue
            with reading(path, CheckpointError):
                learned = _Entry(entry["site"], entry["recipe"], entry["damage"])
                require_fit(learned, f"line {number}")
                finite = all(map(math.isfinite, learned.damage.values()))
                require(finite, f"line {number}", "has a damage that is no number")
            known.damages[learned.site, learned.recipe] = dict(learned.damage)
        if cut_off:
            known._write_anew()  # or what is measured next would go on behind half a line
        return known

    def _write_anew(self) -> None:
        assert self.path is not None
        head = json.dumps({"format": _FORMAT, **vars(self.subject)}) + "\n"
        lines = (_line(*key, damage) for key, damage in self.damages.items())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, "".join((head, *lines)))
        except OSError as error:
            raise CheckpointError(f"{self.path} can't be written: {error}") from error

    @classmethod
    def of_artifact(
        cls, fingerprints: Mapping[str, str], sites: Iterable[SiteRecord], subject: Subject
    ) -> Knowledge:
        """What an artifact's report holds.

        Args:
            fingerprints: Of its manifest.
            sites: Of its report.
            subject: This run's.

        Raises:
            CheckpointError: The artifact is of another model or other rows.
        """
        other = Subject(fingerprints.get("captured", ""), fingerprints.get("rows", ""))
        _require_same(other, subject, "the artifact")
        known = cls(subject)
        for site in sites:
            for candidate in site.candidates:
                if candidate.get("damage"):
                    known.damages[site.site, candidate["format"]] = dict(candidate["damage"])
        return known

    def find(self, site: str, recipe: str) -> Mapping[str, float] | None:
        """The damage of a candidate, if it is known."""
        return self.damages.get((site, recipe))

    def learn(self, site: str, recipe: str, damage: Mapping[str, float]) -> None:
        """Keeps a damage; on disk as well, where there is a file."""
        self.damages[site, recipe] = dict(damage)
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(_line(site, recipe, damage))
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {self.path} can't be written: {error}. Free space there, or give "
                "another file; what it holds is kept."
            ) from error


def _line(site: str, recipe: str, damage: Mapping[str, float]) -> str:
    return json.dumps({"site": site, "recipe": recipe, "damage": dict(damage)}) + "\n"


def _require_same(theirs: Subject, ours: Subject, what: str) -> None:
    for found, wanted, kind in (
        (theirs.model, ours.model, "another model"),
        (theirs.rows, ours.rows, "other rows"),
    ):
        if found != wanted:
            raise CheckpointError(
                f"{what} was made with {kind} ({found[:8] or 'none'}, this run has {wanted[:8]}). "
                "Give the same, or start without it."
            )
