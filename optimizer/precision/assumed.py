"""What is assumed of the rows when there are none: made-up rows, and the ranges of values.

Ranges of lookups are known from the tables, and interval arithmetic carries them on; where that
bounds nothing, or too little, they come from made-up rows with room to spare. A dense feature's
scale can't be known: it comes from an example, or the first linear that reads it keeps its format.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..analysis.feature_moments import Moments, as_seen, feature_moments
from ..compare.ordinary import ordinary
from ..data.limits import id_limits
from ..data.rows import CALIBRATION_ROWS, CHOICE_SHARE, Rows, features_of
from ..errors import DataError, TargetError
from ..formats import LINEAR, TABLE, UNPLACED
from ..ir.program import Program
from ..ir.signature import Feature, FeatureKind, Signature
from ..quality.budget import Budget
from ..quality.damage import rows_to_use
from ..quality.judge import Judge
from ..quality.scores import Runner, score
from ..quality.verdict import Status, Verdict
from ..report.report import AssumedRange
from ..target import targets_with

if TYPE_CHECKING:
    from ..pipeline.passbase import PassContext
    from ..report.report import Report

#: Made-up rows that give ranges, and that damages are measured on.
_RANGE_ROWS, _JUDGED_ROWS = 1024, 2048
#: The share of the budget that a plan may use of it when the labels are to be of use at all.
_HALF = 0.5
#: Kinds of features that are no numbers of any size.
_BOUNDED = (FeatureKind.UNUSED, FeatureKind.MASK, FeatureKind.LENGTHS, FeatureKind.OFFSETS)
KNOWN = "known from tables, bounds and operators"
_NOTHING = (
    "no data was given, and no format was placed on what can be assumed: the report says why, site "
    "by site"
)
#: What the reason says of a linear that keeps its format for a feature it reads.
OPEN = "feature of unknown scale"


class Formats(StrEnum):
    """Whether tables and linears may take the target's formats."""

    AUTO = "auto"
    NONE = "none"


def chosen_formats(name: str) -> Formats:
    """What ``formats=`` asks for.

    Raises:
        TargetError: It is neither.
    """
    try:
        return Formats(name)
    except ValueError:
        having = targets_with(name)
        owners = f" {name} is a format of the targets {', '.join(having)}." if having else ""
        raise TargetError(
            f"formats is {name!r}, expected 'auto' (the target's, where the budget allows them) or "
            "'none' (tables and linears keep theirs). rankc.Target(formats=…) names single ones."
            f"{owners}"
        ) from None


def example_of(program: Program, inputs: Any) -> dict[str, Tensor]:
    """The features of an example by name; empty where none was given."""
    return features_of(program, inputs) if inputs is not None else {}


@dataclass(frozen=True)
class Assumptions:
    """What formats are placed on without data.

    Attributes:
        calibration: Made-up rows that give ranges.
        judge: Measures damages on other made-up rows, on the original's own scores.
        fresh: Measures what was built, on made-up rows that nothing was chosen on.
        bounds: ``{feature: (low, high)}`` of floating-point features that are known to be bounded.
        unknown: Features that are numbers and whose scale isn't known.
        normed: Those whose scale batch norms know.
    """

    calibration: Rows
    judge: Judge
    fresh: Judge
    bounds: Mapping[str, tuple[Tensor, Tensor]]
    unknown: tuple[str, ...]
    normed: tuple[str, ...]

    @classmethod
    def of(
        cls, program: Program, example: Mapping[str, Tensor], budget: Budget, seed: int
    ) -> Assumptions:
        """The assumptions for a model.

        Args:
            program: As captured.
            example: Features of the example that was given, by name; may be empty.
            budget: What a plan may damage on made-up rows.
            seed: For the rows.

        Raises:
            DataError: The model's scores of made-up rows are NaN or Inf, or all alike.
        """
        signature, budget = program.signature, _of_scores_alone(budget)
        open_ = [f.name for f in signature if _is_open(f)]
        silent = [name for name in open_ if not _tells(example.get(name))]
        row = _scored(program, 1, seed, example)
        moments = feature_moments(program, row.features, silent)
        ranges, choice, fresh = (
            made_up(program, count, seed + step, example, moments)
            for step, count in enumerate((_RANGE_ROWS, _JUDGED_ROWS, _JUDGED_ROWS), 1)
        )
        judge, last = (Judge.of(program, rows, budget) for rows in (choice, fresh))
        for one in (judge, last):
            _require_spread(one)
            one.on(one.reference)  # rows that can't be judged on are found before the work
        return cls(
            ranges,
            judge,
            last,
            {f.name: found for f in signature if (found := _bounds(f)) is not None},
            tuple(name for name in silent if name not in moments),
            tuple(moments),
        )

    def scaled(self, share: float) -> Assumptions:
        """The same, and a plan may use this share of the budget."""
        budget = self.judge.budget.scaled(share)
        return replace(self, judge=replace(self.judge, budget=budget))

    def placing(self, context: PassContext, contending: Collection[str]) -> PassContext:
        """The context of passes that place formats on this.

        Args:
            context: Of passes without data; its target names one backend and the formats it has.
            contending: The formats of all backends that the fastest is chosen of.
        """
        target = replace(
            context.target,
            formats=formats_without_data(context.target.formats, contending),
            table_formats=tuple(f for f in context.target.table_formats if TABLE[f].any_rows),
        )
        return replace(
            context,
            target=target,
            judge=self.judge,
            calibration=tuple(self.calibration.batches()),
            resources=[*context.resources, self],
        )

    def measured(self, run: Runner, signature: Signature) -> Verdict:
        """What was built, on made-up rows that nothing was chosen on.

        Raises:
            DataError: Its scores of them are NaN or Inf.
        """
        return self.fresh.on(score(run, self.fresh.rows, signature))

    def allows(self, found: Verdict) -> bool:
        """Whether what was measured on made-up rows is within every limit.

        How many rows carry a change, which makes a real verdict inconclusive, says nothing here.
        """
        return found.status is not Status.FAIL and all(
            check.interval.high <= check.limit for task in found.tasks for check in task.checks
        )

    def verdict(self, found: Verdict | None, report: Report) -> Verdict:
        """The verdict of what was built: unverified, with what was assumed.

        Args:
            found: What was measured on made-up rows; None where no format was placed.
            report: Of the passes.
        """
        said = [self._normed(), self._unknown(report), self._settling()]
        placed = self._placed(found, report) if found is not None else [_NOTHING]
        empty = Verdict.unverified("", self.judge.budget.confidence)
        return replace(empty, reasons=tuple(reason for reason in (*placed, *said) if reason))

    def _placed(self, found: Verdict, report: Report) -> list[str]:
        """What was placed, at which cost on made-up rows, and on which ranges."""
        low: dict[str, list[str]] = {}
        for site in report.sites:
            if site.chosen != UNPLACED:
                low.setdefault(site.kind, []).append(site.chosen)
        placed = " and ".join(
            f"{len(chosen)} {kind}{'s' * (len(chosen) > 1)} in {', '.join(dict.fromkeys(chosen))}"
            for kind, chosen in low.items()
        )
        damages = ", ".join(
            f"task {task.task!r} by ΔNE {100 * task.delta_ne.estimate:+.4f} %"
            for task in found.tasks
        )
        return [
            f"no data was given: {placed}, and what that costs on your rows is not known",
            f"on {found.rows:,} made-up rows, and the original's own scores as soft labels, it "
            f"moves {damages}",
            *(f"assumed range: {one}" for one in report.assumed),
        ]

    def _normed(self) -> str:
        """What is said of features that batch norms know, where there are any."""
        names = ", ".join(map(repr, self.normed))
        return f"assumed: {names} like what the batch norms have seen of it" if names else ""

    def _unknown(self, report: Report) -> str:
        """What is said of features of unknown scale, where there are any."""
        if not self.unknown:
            return ""
        kept = [site.site for site in report.sites if OPEN in site.reason]
        verb = "keeps" if len(kept) == 1 else "keep"
        first = f"; {', '.join(kept)} {verb} fp32 for it" if kept else ""
        return (
            f"assumed: {', '.join(map(repr, self.unknown))} of unknown scale, made up with mean 0 "
            f"and standard deviation 1{first}; give inputs=, an example whose values are typical"
        )

    def _settling(self) -> str:
        """What data would settle it."""
        needed = self.rows_to_settle()
        proving = f"{CALIBRATION_ROWS:,} rows of traffic would settle the ranges"
        if needed is not None:
            proving = (
                f"about {needed:,} labelled rows of traffic as data= would settle it: "
                f"{CALIBRATION_ROWS:,} give the ranges, the others choose and prove a plan within "
                f"{self.judge.budget.spec()}"
            )
        return f'{proving}; formats="none" leaves every format as it is'

    @property
    def one_row(self) -> Mapping[str, Tensor]:
        """A single made-up row."""
        return self.calibration.part(0, 1).features

    def range_of(
        self, site: str, number_format: str, samples: Tensor, known: tuple[float, float]
    ) -> AssumedRange:
        """The static range of a linear's input.

        Args:
            site: The linear.
            number_format: One with a static range.
            samples: ``[rows, K]``, its input on made-up rows.
            known: Beyond which it can't be; infinite where nothing is known.
        """
        room = LINEAR[number_format].room
        seen = float(samples.min()), float(samples.max())
        wide = min(seen[0] * room, seen[0] / room), max(seen[1] * room, seen[1] / room)
        low, high = max(wide[0], known[0]), min(wide[1], known[1])
        exact = (low, high) == known
        source = KNOWN if exact else f"{room:g} times what made-up rows give"
        return AssumedRange(site, low, high, source)

    def rows_to_settle(self) -> int | None:
        """How many labelled rows as data= would prove a plan that uses half of the budget."""
        judge = self.judge
        needed = []
        for task, entropy in judge.entropies.items():
            limit = judge.budget.for_task(task).ne
            if limit:
                confidence = judge.budget.confidence
                needed.append(rows_to_use(_HALF, limit, entropy, confidence))
        if not needed:
            return None
        return CALIBRATION_ROWS + math.ceil(max(needed) / (1.0 - CHOICE_SHARE))


def formats_without_data(formats: Sequence[str], contending: Collection[str]) -> tuple[str, ...]:
    """The formats of a linear that can be placed on assumed ranges.

    A range per row finds itself, so that it comes before the static one of the same codes, also
    where only another backend has it; and the codes of FP8, whose steps shrink with the value,
    before those of INT8.

    Args:
        formats: What the backend has.
        contending: What all backends have that the fastest is chosen of.
    """
    ahead = {*formats, *(name for name in contending if not LINEAR[name].room)}
    behind = {other for name in ahead for other in LINEAR[name].before}
    return tuple(name for name in formats if name not in behind)


def _require_spread(judge: Judge) -> None:
    """Raises where all rows score alike: then nothing can be damaged."""
    alike = [task for task, scores in judge.reference.items() if np.ptp(scores) == 0.0]
    if alike:
        raise DataError(
            f"task {alike[0]!r} scores all of them alike; give inputs=, an example whose values "
            "are typical, or data="
        )


def _scored(program: Program, count: int, seed: int, example: Mapping[str, Tensor]) -> Rows:
    """Rows made up of the signature, or of the example where the model scores no such row."""
    try:
        return ordinary(program, count, seed)
    except DataError:
        if not example:
            raise
        return ordinary(program, count, seed, example)


def made_up(
    program: Program,
    count: int,
    seed: int,
    example: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
) -> Rows:
    """Made-up rows whose numbers are like an example's, or as batch norms have seen them.

    Raises:
        DataError: The model scores no such row with a finite number.
    """
    rows = _scored(program, count, seed, example)
    generator = torch.Generator().manual_seed(seed)
    features = dict(rows.features)
    for feature in program.signature:
        given, made = example.get(feature.name), features.get(feature.name)
        if feature.delimiter or made is None or not _is_open(feature):
            continue
        if feature.name in moments:
            features[feature.name] = as_seen(moments, feature.name, made, generator)
        elif given is not None and _tells(given) and given.shape[1:] == made.shape[1:]:
            dense = _like(given, made, generator)
            ids = torch.tensor(id_limits(feature) > 0 if feature.cardinalities else False)
            features[feature.name] = torch.where(ids, made, dense)
    return replace(rows, features=features)


def _of_scores_alone(budget: Budget) -> Budget:
    """The limits that made-up rows can be held to: they have no labels, groups or cohorts."""
    tasks = {task: _of_scores_alone(own) for task, own in budget.overrides.items()}
    left = budget.ne, budget.calibration, budget.max_shift, budget.max_rms_shift
    return replace(
        budget,
        ne=Budget().ne if left == (None,) * len(left) else budget.ne,
        auc=None,
        gauc=None,
        recall_at=None,
        measures=(),
        tasks=tasks,
        cohorts=False,
        find_cohorts=False,
    )


def _is_open(feature: Feature) -> bool:
    """Whether a feature may have values of any size, which the model takes as they are."""
    if feature.bounds is not None or feature.kind in _BOUNDED or feature.dtype == "bool":
        return False
    return not feature.cardinalities or not all(feature.cardinalities)


def _bounds(feature: Feature) -> tuple[Tensor, Tensor] | None:
    """What is known of a floating-point feature's values."""
    if feature.is_integer:
        return None
    if feature.bounds is not None:
        low, high = (torch.tensor(end, dtype=torch.float64) for end in feature.bounds)
        return low, high
    return None


def _tells(example: Tensor | None) -> bool:
    """Whether an example tells of what size a feature is: by two numbers that differ at least."""
    if example is None:
        return False
    finite = example[torch.isfinite(example)]
    return finite.numel() > 1 and bool((finite != finite[0]).any())


def _like(example: Tensor, made: Tensor, generator: torch.Generator) -> Tensor:
    """Values like those of an example: its own, column by column, each moved somewhat.

    Args:
        example: ``[n, …]``.
        made: ``[rows, …]``, in whose place they are.
        generator: Draws.
    """
    finite = torch.where(torch.isfinite(example), example, torch.zeros_like(example)).double()
    picked = finite[torch.randint(len(example), (len(made),), generator=generator)]
    if not made.is_floating_point():
        return picked.to(made.dtype)  # of a time, an id or a count what is between says nothing
    spread = finite.std(0, correction=0)
    # Of a column that never changes, its size is what is known.
    overall = finite.square().mean().sqrt()
    alone = torch.where(finite[0] == 0, overall, finite[0].abs())
    spread = torch.where(spread > 0, 0.25 * spread, 0.5 * alone)
    moved = picked + torch.randn(made.shape, generator=generator).double() * spread
    if bool((finite >= 0).all()):
        moved = moved.abs()
    return moved.to(made.dtype)
