"""What a probe knows already: from a checkpoint of an interrupted run, or from an artifact.

The damage of a candidate depends on the model and the rows alone: not on the budget, the target's
times or the batch sizes. It is the dearest thing a probe measures, and this spares measuring it
twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..data.rows import Rows
from ..errors import CheckpointError
from ..fitting import MisfitError, is_finite, reading, require, require_fit
from ..ir.program import Program, content_hash
from ..ir.scratch import write_whole
from ..report.records import SiteRecord

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
    """What was measured of a candidate, as a file has it."""

    site: str
    recipe: str
    damage: Mapping[str, float]

    @classmethod
    def read(cls, site: Any, recipe: Any, damage: Any, place: str) -> _Entry:
        """The entry, if it can have been measured.

        Raises:
            MisfitError: Of what it can't, and the place.
        """
        entry = cls(site, recipe, damage)
        require_fit(entry, place)
        for task, lost in entry.damage.items():
            possible = is_finite(lost) and lost >= 0.0
            require(possible, place, f"has a damage of {lost!r} for {task!r}: none is below 0")
        return entry


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
            CheckpointError: It is of another model, of other rows, no checkpoint, or holds what
                can't have been measured; in which line.
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
            with _told(path, f"line {number}"):
                learned = _Entry.read(
                    entry["site"], entry["recipe"], entry["damage"], f"line {number}"
                )
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
            CheckpointError: The artifact is of another model or other rows, or its report holds
                what can't have been measured.
        """
        other = Subject(fingerprints.get("captured", ""), fingerprints.get("rows", ""))
        _require_same(other, subject, "the artifact")
        known = cls(subject)
        for site in sites:
            for candidate in site.candidates:
                if not candidate.get("damage"):
                    continue
                where = f"the artifact's report, site {site.site!r}"
                try:
                    found = _Entry.read(
                        site.site, candidate.get("format"), candidate["damage"], where
                    )
                except MisfitError as error:
                    raise CheckpointError(
                        f"{error}. Optimize without it: what it should know is measured anew."
                    ) from error
                known.damages[found.site, found.recipe] = dict(found.damage)
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


@contextmanager
def _told(path: Path, line: str) -> Iterator[None]:
    """What goes wrong inside is the fault of a line, without which the checkpoint is good."""
    try:
        with reading(path, CheckpointError):
            yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} Remove {line}: what it should hold is measured anew."
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
