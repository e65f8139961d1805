"""The latency/quality curve: every plan that is best for some budget, from one probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, TargetError
from ..formats import UNPLACED
from ..ir.scratch import written_whole
from .probe import Candidate, Probe

#: Damages that plans are solved for, besides none at all.
_LIMITS = tuple(float(limit) for limit in np.logspace(-7, -1, 49))


@dataclass(frozen=True)
class Point:
    """A plan that no other beats in both cost and damage.

    Attributes:
        damage: The sum of its sites' damages, NE relative, of the task or cohort that loses most.
        milliseconds: What its sites take a batch, by batch size: measured or estimated, and without
            what lies between the sites.
        nbytes: Of the sites' weights and tables.
        plan: ``{site: format}`` of the sites that don't stay in fp32.
        chosen: Whether the artifact was built with it.
    """

    damage: float
    milliseconds: Mapping[int, float]
    nbytes: float
    plan: Mapping[str, str]
    chosen: bool = False


@dataclass(frozen=True)
class Pareto:
    """The curve, from fp32 to the fastest plan there is.

    Attributes:
        points: By rising damage.
        measured: Whether times were measured, rather than estimated.
    """

    points: tuple[Point, ...]
    measured: bool

    @classmethod
    def of(cls, probe: Probe, chosen: Mapping[str, str]) -> Pareto:
        """Solves the probe for a range of limits.

        Args:
            probe: What was measured.
            chosen: ``{site: format}`` of the artifact; its point is marked, and added if the
                artifact had to settle for less than the best.
        """
        tasks = sorted({t for s in probe.sites for c in s.candidates for t in c.damage})
        plans = [probe.solve(dict.fromkeys(tasks, limit)) for limit in (0.0, *_LIMITS)]
        own = tuple(
            _named(site.candidates, chosen.get(site.name, UNPLACED)) for site in probe.sites
        )
        found = {_key(plan): plan for plan in (*plans, own) if plan is not None}
        points = [_point(probe, plan, tasks, plan == own) for plan in found.values()]
        points.sort(key=lambda point: (point.damage, sum(point.milliseconds.values())))
        return cls(tuple(points), probe.measured)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "measured": self.measured,
            "points": [
                {
                    "damage": point.damage,
                    "milliseconds": {str(b): ms for b, ms in point.milliseconds.items()},
                    "bytes": point.nbytes,
                    "plan": dict(point.plan),
                    "chosen": point.chosen,
                }
                for point in self.points
            ],
        }

    def save(self, path: str | Path, batch: int | None = None) -> Path:
        """Draws the curve; the ending says how: ``.png``, ``.svg`` or ``.pdf``.

        Args:
            path: The file.
            batch: Whose times are drawn; the largest batch size when None.

        Raises:
            TargetError: matplotlib isn't installed.
            ArtifactError: The file can't be written, or its ending says nothing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise TargetError(
                "drawing needs matplotlib: pip install matplotlib; to_json() has the points"
            ) from error
        size = batch if batch is not None else max(self.points[0].milliseconds)
        damages = [100 * max(point.damage, _LIMITS[0]) for point in self.points]
        times = [point.milliseconds[size] for point in self.points]
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.step(damages, times, where="post", color="0.7")
        axes.scatter(damages, times, color="0.4", s=18)
        for point, x, y in zip(self.points, damages, times, strict=True):
            if point.chosen:
                axes.scatter([x], [y], color="tab:red", zorder=3, label="the artifact")
        axes.set_xscale("log")
        axes.set_xlabel("predicted rise of NE on soft labels, %")
        how = "measured" if self.measured else "estimated"
        axes.set_ylabel(f"{how} milliseconds of the sites, batch {size}")
        axes.set_ylim(bottom=0.0)
        axes.legend()
        try:
            with written_whole(Path(path)) as place:
                figure.savefig(place)
        except (OSError, ValueError) as error:  # no place to write to, or an ending it can't draw
            raise ArtifactError(f"{path} can't be drawn to: {error}") from error
        return Path(path)

    def __str__(self) -> str:
        sizes = sorted(self.points[0].milliseconds) if self.points else []
        how = "measured" if self.measured else "estimated"
        times = " ".join(f"batch {size:>5} ms" for size in sizes)
        lines = [f"  damage %  {times}  MiB  sites below fp32"]
        lines += [
            f"{'*' if p.chosen else ' '} {100 * p.damage:8.5f}  "
            f"{' '.join(f'{p.milliseconds[s]:14.3f}' for s in sizes)}  "
            f"{p.nbytes / 2**20:.2f}  {len(p.plan)}"
            for p in self.points
        ]
        return "\n".join([f"plans for every budget, times {how}; * is the artifact", *lines])


def _named(candidates: Sequence[Candidate], recipe: str) -> Candidate:
    return next((c for c in candidates if c.recipe == recipe), candidates[0])


def _key(plan: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(candidate.recipe for candidate in plan)


def _point(probe: Probe, plan: Sequence[Candidate], tasks: Sequence[str], chosen: bool) -> Point:
    seconds: dict[int, float] = {}
    for candidate in plan:
        for batch, own in candidate.seconds.items():
            seconds[batch] = seconds.get(batch, 0.0) + own
    return Point(
        max((sum(max(c.damage.get(t, 0.0), 0.0) for c in plan) for t in tasks), default=0.0),
        {batch: round(1e3 * total, 5) for batch, total in sorted(seconds.items())},
        sum(candidate.nbytes for candidate in plan),
        {
            site.name: candidate.recipe
            for site, candidate in zip(probe.sites, plan, strict=True)
            if candidate.precision is not None
        },
        chosen,
    )
