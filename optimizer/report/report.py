"""What happened, for people and for programs: `Report` as text and JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from ..formats import UNPLACED
from ..quality.verdict import Verdict
from .records import Bought, Kind, Outcome, PassRecord, Remark, SiteRecord

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


#: Exactness classes that no budget pays for: who breaks one has an error.
_PROMISES = ("exact", "rounding")
#: Passes that change less than this share of the estimated time are left out of the waterfall.
_WORTH_TELLING = 0.005


class Measured(Protocol):
    """What a probe found out, as far as a report tells it."""

    @property
    def measured(self) -> bool:
        """Whether kernels were timed, not estimated."""

    @property
    def memory_weight(self) -> float:
        """What a share of the bytes is worth, in shares of the time."""


class Times(Protocol):
    """A race of backends: as text, and by backend and batch size."""

    @property
    def milliseconds(self) -> Mapping[str, Mapping[int, float]]:
        """``{backend: {batch size: milliseconds a call}}``."""


@dataclass
class Report:
    """Everything `optimize` did, found and left alone.

    Attributes:
        title: Model and target in a line.
        records: One per pass run, in order.
        remarks: What the passes said.
        sites: The decision per table and linear.
        verdict: The judgement on the proof rows.
        notes: Sentences about the whole: how it was verified, what wasn't measured.
        timings: Benchmark rows, if any were taken.
        probe: What every format costs and gains at every site, if it was measured.
        race: The times of what several backends made of the program, if there were several.
        assumed: Static ranges that were placed without data.
    """

    title: str = ""
    records: list[PassRecord] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    sites: list[SiteRecord] = field(default_factory=list)
    verdict: Verdict | None = None
    notes: list[str] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    probe: Measured | None = None
    race: Times | None = None
    assumed: list[AssumedRange] = field(default_factory=list)

    @property
    def passes(self) -> list[PassRecord]:
        """The pass records."""
        return self.records

    @property
    def failures(self) -> list[str]:
        """Passes that failed or broke their promise and were undone, and why.

        Without what they would have done, what was built may be slower than it could be. A lossy
        pass that was over budget isn't one of them.
        """
        judged = ("lossy", "trained")
        return [
            f"{record.spec}: {record.note}"
            for record in self.records
            if record.outcome is Outcome.FAILED
            or (record.outcome is Outcome.ROLLED_BACK and record.exactness not in judged)
        ]

    @property
    def table_bytes(self) -> tuple[int, int]:
        """Bytes of the tables in fp32, and in the formats they got."""
        tables = [(prod(s.shape), s) for s in self.sites if s.kind == "table"]
        before = sum(4 * count for count, _ in tables)
        after = sum(c["bytes"] for s in self.sites for c in s.candidates if _taken(s, c))
        return before, int(after + sum(4 * count for count, s in tables if not s.candidates))

    @property
    def waterfall(self) -> list[Bought]:
        """What each pass bought of time and bytes, and for how much of the budget, in order."""
        first = next((r.estimate[0] for r in self.records if r.estimate), 0.0)
        found, before = [], dict[str, float]()
        for record in self.records:
            if record.outcome is not Outcome.CHANGED or record.estimate is None:
                continue
            seconds = (record.estimate[0] - record.estimate[1]) / first if first else 0.0
            nbytes = record.before.nbytes - record.after.nbytes
            after = record.delta_ne or before
            if abs(seconds) < _WORTH_TELLING and not nbytes and record.delta_ne is None:
                continue
            rise = {task: after[task] - before.get(task, 0.0) for task in record.delta_ne or {}}
            found.append(Bought(record.spec, seconds, nbytes, rise, dict(after)))
            before = after
        return found

    @property
    def failed(self) -> tuple[str, ...]:
        """A sentence for each pass that failed, or broke a promise that isn't the budget's."""
        return tuple(
            f"{record.spec} failed and did nothing: {record.note}"
            for record in self.records
            if record.outcome is Outcome.FAILED
            or (record.outcome is Outcome.ROLLED_BACK and record.exactness in _PROMISES)
        )

    def undo_sites(self, kind: str, why: str) -> None:
        """Says of sites of a kind that they stayed as they were, since what changed them didn't."""
        self.sites[:] = [
            replace(s, chosen=UNPLACED, reason=why)
            if s.kind == kind and s.chosen != UNPLACED
            else s
            for s in self.sites
        ]

    def said(self, kind: Kind, pass_name: str | None = None) -> list[Remark]:
        """Remarks of one kind, of one pass or of all."""
        return [
            r
            for r in self.remarks
            if r.kind is kind and (pass_name is None or r.pass_name == pass_name)
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dicts and lists, the same for the same input."""
        return {
            "title": self.title,
            "verdict": self.verdict.to_json() if self.verdict else None,
            "notes": list(self.notes),
            "passes": [record.to_json() for record in self.records],
            "waterfall": [asdict(bought) for bought in self.waterfall],
            "sites": [asdict(site) for site in self.sites],
            "assumed": [assumed.to_json() for assumed in self.assumed],
            "placement": None
            if self.probe is None
            else {"measured": self.probe.measured, "memory_weight": self.probe.memory_weight},
            "remarks": [{**asdict(r), "kind": r.kind.value} for r in self.remarks],
        }

    def __str__(self) -> str:
        """The report as text; without seconds, so that the same input gives the same bytes."""
        from rich.console import Console

        buffer = io.StringIO()
        self.print(Console(file=buffer, width=110, highlight=False), seconds=False)
        return buffer.getvalue()

    def print(self, console: Console, *, seconds: bool = True) -> None:
        """Prints the report to a terminal, and how many seconds each pass took."""
        from rich.markup import escape

        if self.title:
            console.rule(escape(self.title))
        if self.verdict is not None:
            console.print(str(self.verdict), markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)
        if self.race is not None and seconds:
            console.print(f"note: {self.race}", markup=False)
        for part in (self._passes(seconds), self._waterfall(), self._sites(), self._remarks()):
            if part is not None:
                console.print(part)

    def _passes(self, seconds: bool) -> RenderableType | None:
        from rich.markup import escape
        from rich.table import Table

        if not self.records:
            return None
        table = Table(title="passes", title_justify="left")
        names = ("pass", "promise", "outcome", "nodes", "bytes", "moved by", "seconds")
        for name in names if seconds else names[:-1]:
            table.add_column(name, justify="left" if name in ("pass", "outcome") else "right")
        for record in self.records:
            moved = record.divergence
            table.add_row(
                escape(record.spec),
                record.exactness,
                escape(record.outcome.value + (f": {record.note}" if record.note else "")),
                _change(record.before.nodes, record.after.nodes),
                _change(record.before.nbytes, record.after.nbytes, readable_bytes),
                ""
                if moved is None
                else ("0" if moved["bit_equal"] else f"{moved['relative']:.1e}"),
                *((f"{record.seconds:.2f}",) if seconds else ()),
            )
        return table

    def _waterfall(self) -> RenderableType | None:
        from rich.markup import escape
        from rich.table import Table

        if not any(bought.delta_ne for bought in self.waterfall):
            return None
        table = Table(title="what each pass bought", title_justify="left")
        for name in ("pass", "estimated time", "bytes", "ΔNE", "ΔNE so far"):
            table.add_column(name, justify="left" if name == "pass" else "right")
        for bought in self.waterfall:
            table.add_row(
                escape(bought.spec),
                f"{-100 * bought.seconds:+.1f} %",
                readable_bytes(-bought.nbytes),
                _worst(bought.delta_ne),
                _worst(bought.so_far),
            )
        return table

    def _sites(self) -> RenderableType | None:
        from rich.markup import escape
        from rich.table import Table

        if not self.sites:
            return None
        table = Table(title="sites", title_justify="left")
        for name in ("site", "kind", "shape", "format", "why"):
            table.add_column(name)
        for site in self.sites:
            shape = "×".join(str(size) for size in site.shape)
            table.add_row(escape(site.site), site.kind, shape, site.chosen, escape(site.reason))
        return table

    def _remarks(self) -> RenderableType | None:
        from rich.markup import escape
        from rich.table import Table

        grouped: dict[tuple[str, str, str], list[str]] = {}
        for remark in self.remarks:
            if remark.kind is not Kind.ANALYSIS:
                key = (remark.kind.value, remark.pass_name, remark.message)
                grouped.setdefault(key, []).extend(remark.sites)
        if not grouped:
            return None
        table = Table(title="what was done, and what was left alone", title_justify="left")
        for name in ("", "pass", "what", "where"):
            table.add_column(name)
        for (kind, name, message), sites in grouped.items():
            shown = ", ".join(dict.fromkeys(sites))
            shown = shown if len(shown) < 60 else shown[:57] + "…"
            table.add_row(kind, name, escape(message), escape(shown))
        return table


def _taken(site: SiteRecord, candidate: dict[str, Any]) -> bool:
    return site.kind == "table" and candidate["format"] == site.chosen


def _worst(deltas: dict[str, float]) -> str:
    return f"{100 * max(deltas.values()):+.4f} %" if deltas else ""


def readable_bytes(count: float) -> str:
    """``1536`` as ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _change(before: float, after: float, show: Any = str) -> str:
    return show(after) if before == after else f"{show(before)} → {show(after)}"


@dataclass(frozen=True)
class AssumedRange:
    """A static range that no row of data was seen for.

    Attributes:
        site: The user's name of the linear whose input it is of.
        low: Its least value.
        high: Its largest.
        source: Where it is from.
    """

    site: str
    low: float
    high: float
    source: str

    def __str__(self) -> str:
        return f"{self.site} reads {self.low:.4g} to {self.high:.4g} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)
