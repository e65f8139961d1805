"""The probe: what every format costs and gains at every site, measured once (LoKA, 2605.10886).

A site is a table or a linear. For each of its candidates the probe records the error of its own
output on real rows, the time it takes (`optimizer/precision/kernel_times.py`), the bytes it holds,
and the damage to the scores when it alone is changed (`optimizer/precision/knapsack.py`). Plans for
any budget are solved from that without another measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..formats import UNPLACED
from ..ir.facts import Precision
from ..report.records import SiteRecord
from ..report.report import AssumedRange
from .knapsack import Choice, place

TOGETHER = "over budget together with the others, and the dearest of them"


@dataclass(frozen=True)
class Candidate:
    """One format of one site.

    Attributes:
        precision: The format; None leaves the site as it is.
        errors: Of the site's own output on real rows: ``relative`` L2, ``sqnr`` in dB, ``mere`` and
            ``mere_floor`` (the mean relative error, with a floor of a tenth of the rms).
        seconds: ``{batch size: CPU seconds}``.
        nbytes: Of its weight or table.
        damage: ``{task or cohort: rise of NE}`` on soft labels, alone.
        refused: Why it can't be taken, or empty.
        assumed: The static range of its input, where no rows were seen for it.
    """

    precision: Precision | None
    seconds: Mapping[int, float]
    nbytes: float
    errors: Mapping[str, float] = field(default_factory=dict)
    damage: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""
    assumed: AssumedRange | None = None

    @property
    def recipe(self) -> str:
        """What a report calls it."""
        return self.precision.recipe if self.precision else UNPLACED

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `from_json` reads it back."""
        return {
            "format": self.recipe,
            "precision": self.precision.to_json() if self.precision else None,
            "errors": dict(self.errors),
            "seconds": {str(batch): seconds for batch, seconds in self.seconds.items()},
            "bytes": self.nbytes,
            "damage": dict(self.damage),
            "refused": self.refused,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """The candidate that `to_json` wrote."""
        return cls(
            Precision(**data["precision"]) if data["precision"] else None,
            {int(batch): seconds for batch, seconds in data["seconds"].items()},
            data["bytes"],
            data["errors"],
            data["damage"],
            data["refused"],
        )


@dataclass(frozen=True)
class SiteProbe:
    """A site with its candidates; the first leaves it as it is.

    Attributes:
        name: The user's name of it.
        kind: ``"linear"`` or ``"table"``.
        shape: Outputs and inputs of a linear, rows and width of a table.
        nodes: The names of its nodes in the program.
        candidates: The first is the site as it is.
        reason: Why there is no other, or empty.
        samples: ``[rows, K]`` real inputs of a linear.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nodes: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    reason: str = ""
    samples: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def open(self) -> tuple[Candidate, ...]:
        """The candidates that may be taken."""
        return tuple(c for c in self.candidates if not c.refused)

    def record(self, chosen: Candidate, measured: bool) -> SiteRecord:
        """For the report: every candidate, and why this one."""
        return SiteRecord(
            self.name,
            self.kind,
            self.shape,
            chosen.recipe,
            tuple(c.to_json() for c in self.candidates),
            self._reason(chosen, measured),
        )

    def _reason(self, chosen: Candidate, measured: bool) -> str:
        others = [c for c in self.candidates if c.precision is not None]
        if chosen.precision is not None:
            worst = max(chosen.damage.values(), default=0.0)
            how = "measured" if measured else "by estimate"
            kept = self.candidates[0]
            batch = max(chosen.seconds)
            times = kept.seconds[batch] / max(chosen.seconds[batch], 1e-12)
            return (
                f"alone ΔNE {100 * worst:+.4f} % on soft labels, {times:.1f} times as fast {how}, "
                f"{chosen.nbytes / max(kept.nbytes, 1.0):.0%} of the bytes"
            )
        if self.reason or not others:
            return self.reason
        if all(c.refused for c in others):
            return others[-1].refused
        return TOGETHER


@dataclass(frozen=True)
class Probe:
    """What was measured at every site.

    Attributes:
        sites: In graph order.
        measured: Whether times were measured, rather than estimated.
        memory_weight: How large a share of the time all bytes together are worth.
    """

    sites: tuple[SiteProbe, ...]
    measured: bool = False
    memory_weight: float = 0.0

    @classmethod
    def from_records(
        cls, sites: Iterable[SiteRecord], measured: bool, memory_weight: float
    ) -> Probe:
        """The probe that a report's decisions were made on."""
        return cls(
            tuple(
                SiteProbe(
                    site.site,
                    site.kind,
                    site.shape,
                    (),
                    tuple(Candidate.from_json(c) for c in site.candidates),
                    site.reason,
                )
                for site in sites
                if site.candidates
            ),
            measured,
            memory_weight,
        )

    def solve(self, limits: Mapping[str, float]) -> tuple[Candidate, ...] | None:
        """The candidates that cost least within the limits, one a site; None if there are none."""
        plan = place([[self._choice(c) for c in site.open] for site in self.sites], limits)
        if plan is None:
            return None
        return tuple(site.open[index] for site, index in zip(self.sites, plan, strict=True))

    def cost(self, candidate: Candidate) -> float:
        """Its share of the fp32 sites' time, averaged over batch sizes, and of their bytes."""
        seconds, nbytes = self._whole()
        share = sum(s / seconds[batch] for batch, s in candidate.seconds.items())
        memory = self.memory_weight * candidate.nbytes / nbytes if nbytes else 0.0
        return share / max(len(candidate.seconds), 1) + memory

    def _choice(self, candidate: Candidate) -> Choice:
        return Choice(self.cost(candidate), candidate.damage)

    def _whole(self) -> tuple[dict[int, float], float]:
        """All sites as they are: seconds by batch size, and bytes."""
        seconds: dict[int, float] = {}
        for site in self.sites:
            for batch, own in site.candidates[0].seconds.items():
                seconds[batch] = seconds.get(batch, 1e-12) + own
        return seconds, sum(site.candidates[0].nbytes for site in self.sites)


def refuse(candidate: Candidate, reason: str) -> Candidate:
    """The same, refused."""
    return replace(candidate, refused=reason)


def tighter(
    limits: Mapping[str, float],
    plan: Sequence[Candidate],
    measured: Mapping[str, float],
    share: float,
) -> dict[str, float]:
    """Limits below what the last plan was predicted to damage, and by how much it did more."""
    found = dict(limits)
    for task in measured:
        predicted = sum(max(c.damage.get(task, 0.0), 0.0) for c in plan)
        more = max(measured[task] / predicted, 1.0) if predicted > 0.0 else 1.0
        allowed = min(limits.get(task, float("inf")), predicted)
        found[task] = allowed * share / more
    return found
