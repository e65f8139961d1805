"""What observes passes: nothing of this is ever inside a pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError
from ..ir.printer import diff, text
from ..ir.scratch import write_whole
from ..ir.verifier import verify
from ..report.records import Outcome, PassRecord
from .passbase import Instrument

if TYPE_CHECKING:
    from ..ir.program import Program
    from .passbase import Pass

_LOG = logging.getLogger("rankc")


class Verify(Instrument):
    """Verifies the program after every pass that changed it."""

    def check(self, pass_: Pass, before: Program, program: Program) -> None:
        """Raises `VerifyError` if the program breaks an invariant."""
        verify(program)


class Disable(Instrument):
    """Keeps some passes from running."""

    def __init__(self, names: tuple[str, ...], reason: str = "") -> None:
        self.names = names
        self.reason = reason

    def should_run(self, pass_: Pass, program: Program) -> bool:
        """False for the named passes."""
        return pass_.name not in self.names


class Limit(Instrument):
    """Stops after so many passes, and after so many rewrites of the last one: for bisecting.

    Passes are numbered from 1 as they run. With ``passes=5, sites=2`` the first five run, and the
    fifth only makes its first two rewrites.
    """

    def __init__(self, passes: int | None = None, sites: int | None = None) -> None:
        self.passes = passes
        self.sites = sites
        self.ran: list[str] = []
        self.rewrites: list[str] = []

    def should_run(self, pass_: Pass, program: Program) -> bool:
        """True up to the limit."""
        allowed = self.passes is None or len(self.ran) < self.passes
        if allowed:
            self.ran.append(pass_.spec())
            self.rewrites = []
        _LOG.debug("[%d] %s: %s", len(self.ran), pass_.spec(), "run" if allowed else "not run")
        return allowed

    def may_rewrite(self, pass_: Pass, where: str) -> bool:
        """True up to the limit, counted in the last pass that may run."""
        last = self.passes is not None and len(self.ran) == self.passes
        if last and self.sites is not None and len(self.rewrites) >= self.sites:
            return False
        self.rewrites.append(where)
        return True


class Dump(Instrument):
    """Writes ``NNN-pass.txt`` and ``NNN-pass.diff`` after every pass that changed something."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def after(self, record: PassRecord, before: Program, program: Program) -> None:
        """Writes the two files."""
        if record.outcome is not Outcome.CHANGED:
            return
        name = record.spec.split("{", 1)[0]
        stem = self.folder / f"{record.index:03d}-{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(stem.with_suffix(".txt"), text(program))
            write_whole(stem.with_suffix(".diff"), diff(before, program))
        except OSError as error:
            raise ArtifactError(f"{self.folder} can't be written to: {error}") from error


class Progress(Instrument):
    """Tells a listener which pass and which site is being worked on."""

    def __init__(self, listener: Callable[[str], None]) -> None:
        self.listener = listener

    def before(self, pass_: Pass, program: Program) -> None:
        """Says the pass's name."""
        self.listener(pass_.name)

    def may_rewrite(self, pass_: Pass, where: str) -> bool:
        """Says the pass's name and the site."""
        self.listener(f"{pass_.name}: {where}")
        return True


class Time(Instrument):
    """Adds up the seconds each pass took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def after(self, record: PassRecord, before: Program, program: Program) -> None:
        """Adds the record's seconds."""
        name = record.spec.split("{", 1)[0]
        self.seconds[name] = self.seconds.get(name, 0.0) + record.seconds
