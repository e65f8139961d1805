"""Scoring rows with any program or artifact, and judging the scores against the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import norm
from torch import Tensor

from ..data.rows import Rows, spread_over
from ..ir.program import Program
from ..ir.signature import Signature, TaskKind
from .budget import Budget
from .damage import allowance, rows_to_use
from .found_cohorts import Slice, columns_of, find_slices, rows_needed
from .gate import (
    COHORT_FACTOR,
    MIN_COHORT_ROWS,
    SOFT_COHORT_ROWS,
    FoundCohort,
    judge,
    split_confidence,
)
from .measures import columns_of as measured_columns
from .repeats import shared
from .replay import Replay
from .scores import Scores, score
from .task_rows import task_rows
from .verdict import Status, Verdict

#: Soft labels have no noise, so this many rows measure a damage to a few percent.
_DAMAGE_ROWS = 4096
#: So many rows with a label tell what a task loses; with fewer, all rows do.
_LABELLED_ROWS = 256
#: Where a plan may use less of its budget than this, more rows would help much.
_FEW = 0.25


@dataclass
class Judge:
    """Compares programs with the original on one set of rows.

    Attributes:
        rows: The rows.
        reference: The original's scores on them.
        signature: Of the original.
        budget: The limits.
        confidence: In place of the budget's.
        base: What damages are measured from: a program that was let differ already; None for the
            original.
        trained: Whether it was finetuned, so that its scores are others on purpose.
        proof_rows: How many rows will prove what these choose; as many as these where None.
        slices: Found on other rows; judged, and watched, like cohorts that are given.
    """

    rows: Rows
    reference: Scores
    signature: Signature
    budget: Budget
    confidence: float | None = None
    base: Program | None = None
    trained: bool = False
    proof_rows: int | None = None
    slices: tuple[Slice, ...] = ()

    @classmethod
    def of(cls, original: Program, rows: Rows, budget: Budget) -> Judge:
        """A judge that takes the original's scores as reference."""
        return cls(rows, score(original.run, rows, original.signature), original.signature, budget)

    def __call__(self, program: Program) -> Verdict:
        """The verdict on a program, run in PyTorch."""
        return self.on(score(program.run, self.rows, program.signature))

    def scaled(self, share: float) -> Judge:
        """The same judge with a share of the budget."""
        return replace(self, budget=self.budget.scaled(share))

    def against(self, program: Program, rows: Rows) -> Judge:
        """A judge of other rows, with another original and the same limits."""
        return Judge.of(program, rows, self.budget)

    def rebased(self, program: Program, *, trained: bool = False) -> Judge:
        """A judge whose damages are what is lost from here on, out of what is left to lose.

        Args:
            program: What the budget has been spent on so far.
            trained: Whether it was finetuned: then what is left is told by its labelled rows, else
                by its damage.
        """
        return replace(self, base=program.clone(), trained=self.trained or trained)

    def damages(self, program: Program) -> dict[str, float]:
        """How much NE each task, and each cohort that is gated, loses on soft labels.

        On up to 4,096 rows, evenly spaced: without label noise these measure what a plan is chosen
        by.
        """
        return self._lost(self._base_scores, program)

    def sample(self) -> Mapping[str, Tensor]:
        """Features of up to 4,096 of the rows, evenly spaced."""
        return self._few.features

    @property
    def entropies(self) -> dict[str, float]:
        """The original's mean loss of each task, in nats; of a regression as a log loss has it."""
        return {t: 0.5 if t in self._regressions else self._bases[t] for t in self.reference}

    @cached_property
    def _few(self) -> Rows:
        return self.rows.spread(_DAMAGE_ROWS)

    @cached_property
    def _first_scores(self) -> Scores:
        places = spread_over(len(self.rows), _DAMAGE_ROWS)
        return {name: values[places] for name, values in self.reference.items()}

    @cached_property
    def _base_scores(self) -> Scores:
        if self.base is None:
            return self._first_scores
        return score(self.base.run, self._few, self.base.signature)

    @cached_property
    def _spent(self) -> dict[str, float]:
        """The damage of what was let differ already."""
        if self.base is None or self.trained:
            return {}
        return self._lost(self._first_scores, self.base)

    def _lost(self, before: Scores, program: Program) -> dict[str, float]:
        rows = self._few
        after = score(
            lambda features: self._replay.run(program), rows, program.signature, _DAMAGE_ROWS
        )
        found = {}
        for task in task_rows(before, after, {}, self._regressions, rows.weights):
            lost = task.loss - task.reference_loss
            for name, members in self._watched(task.name, rows).items():
                known = members & self._known(task.name, rows)
                kept = known if known.sum() >= _LABELLED_ROWS else members
                mean = float(lost[kept].sum() / max(float(task.weights[kept].sum()), 1e-300))
                found[name] = max(mean, 0.0) / self._bases[name]
        return found

    @staticmethod
    def _known(task: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Which rows are judged for a task: those with a label, all where none has one."""
        labels = (rows.labels or {}).get(task)
        return np.ones(len(rows), dtype=bool) if labels is None else ~np.isnan(labels)

    @cached_property
    def _so_far(self) -> Verdict | None:
        """The verdict on a finetuned base."""
        return self(self.base) if self.base is not None and self.trained else None

    def allowances(self) -> dict[str, float]:
        """The damage of each task and gated cohort whose bound, with labels, is at the limit."""
        confidence = self.confidence or self.budget.confidence
        z = float(norm.ppf(0.5 + split_confidence(confidence, 0) / 2.0))
        found = {}
        for task in self.reference:
            slices = {f"{task}@{one.axis}={one.value}" for one in self.slices}
            given = set(self._watched(task, self.rows)) - slices - {task}
            limit = self.budget.for_task(task).ne
            if limit is None:
                continue
            estimate = margin = 0.0
            if self._so_far is not None:
                delta = self._so_far.delta_ne[task]
                narrower = math.sqrt(len(self.rows) / self._proof_rows)
                estimate, margin = delta.estimate, (delta.high - delta.estimate) * narrower
            known = self._known(task, self.rows)
            for name, every in self._watched(task, self.rows).items():
                members = every & known
                if name != task:
                    found[name] = COHORT_FACTOR * limit
                    if name in given:  # must surely be within; damages of rows differ twofold
                        expected = max(float(members.mean()) * self._proof_rows, 1.0)
                        found[name] /= 1.0 + 2.0 * z / math.sqrt(expected)
                    continue
                if task not in (self.rows.labels or {}):
                    # Soft labels have no noise to leave room for.
                    found[name] = max(limit - estimate - margin, 0.0)
                    continue
                # A squared error's spread is that of a log loss of half a nat.
                entropy = 0.5 if task in self._regressions else self._bases[name]
                rows = int(float(members.mean()) * self._proof_rows)
                found[name] = allowance(limit, rows, entropy, confidence, estimate, margin)
        return {name: max(room - self._spent.get(name, 0.0), 0.0) for name, room in found.items()}

    def promises(self, program: Program, spare: float = 1.0) -> bool:
        """Whether the program will most likely pass on the rows that prove.

        Fewer rows choose than prove, and labels are noisy: a plan needn't pass on these rows. What
        is expected of ΔNE is its damage, which has no noise, and what the labels say beyond it as
        far as that stands out of their noise (James and Stein's shrinkage): a model that is off
        calibration loses or gains at first order. The bound on the proof rows then has the width of
        this one, narrower by the root of their number.

        Args:
            program: Run in PyTorch.
            spare: Standard errors that are left to chance; with none it passes as often as not.
        """
        verdict = self(program)
        if verdict.status is Status.FAIL:
            return False
        if verdict.status is Status.PASS and not self.slices:
            return True
        lost, limits = self.damages(program), self.allowances()
        cohorts = [name for name in limits if name not in self.reference]
        if any(lost.get(name, 0.0) > limits[name] for name in cohorts):
            return False  # a cohort may be too small here for the verdict to say so
        if verdict.status is Status.PASS:
            return True
        damages = self._lost(self._first_scores, program)
        if self.trained:  # its scores are others on purpose: only labels tell what is lost
            damages = {task.task: task.delta_ne.estimate for task in verdict.tasks}
        z = float(norm.ppf(0.5 + split_confidence(verdict.confidence, 0) / 2.0))
        here = float(norm.ppf(0.5 + verdict.confidence / 2.0))
        for task in verdict.tasks:
            if any(c.status is not Status.PASS for c in task.checks if c.name != "ne"):
                return False
            limit = self.budget.for_task(task.task).ne
            if limit is None:
                continue
            # All that widens the interval here will widen it there: time, and few rows.
            error = (task.delta_ne.high - task.delta_ne.estimate) / here
            beyond = task.delta_ne.estimate - damages[task.task]
            kept = max(0.0, 1.0 - (error / beyond) ** 2) if beyond else 0.0
            narrower = error * math.sqrt(len(self.rows) / self._proof_rows)
            if damages[task.task] + kept * beyond + (z + spare) * narrower > limit:
                return False
        return True

    def advice(self) -> list[str]:
        """How many rows would do, for each task that these are few for."""
        found = []
        for task, allowed in self.allowances().items():
            limit = self.budget.for_task(task).ne if task in self.reference else None
            if not limit or allowed >= _FEW * limit:
                continue
            entropy = 0.5 if task in self._regressions else self._bases[task]
            needed = rows_to_use(0.5, limit, entropy, self.confidence or self.budget.confidence)
            known = int(self._known(task, self.rows).sum())
            with_label = " with a label" if known < len(self.rows) else ""
            found.append(
                f"task {task!r}: {known:,} rows{with_label} that prove are few for ΔNE within "
                f"{100 * limit:.3g} %: a plan may use {allowed / limit:.1%} of it, since the noise "
                f"of labels takes the rest; with about {needed:,} it may use half"
            )
        return found

    def seen_by(self, other: Judge) -> tuple[str, ...]:
        """What to say of rows that are among another's: the same features and labels."""
        both = {
            name: np.concatenate([other.reference[name], self.reference[name]])
            for name in self.reference
        }
        mine, theirs = self.rows.labels or {}, other.rows.labels or {}
        labels = {
            name: np.concatenate([theirs[name], mine[name]])
            for name in both
            if name in mine and name in theirs
        }
        rows = task_rows(both, both, labels, self._regressions)
        known = shared(rows, len(other.rows))
        if not known:
            return ()
        return (
            f"{known:,} of the {len(self.rows):,} rows that prove are among those that chose the "
            "plan, features and labels alike: they prove less than new ones",
        )

    @property
    def _proof_rows(self) -> int:
        return self.proof_rows if self.proof_rows is not None else len(self.rows)

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self._few.features)

    @cached_property
    def _regressions(self) -> frozenset[str]:
        return frozenset(t.name for t in self.signature.served if t.kind is TaskKind.REGRESSION)

    @cached_property
    def _bases(self) -> dict[str, float]:
        """What a rise of loss is relative to: the original's mean loss."""
        labels = {k: v for k, v in (self.rows.labels or {}).items() if k in self.reference}
        found = {}
        for task in task_rows(
            self.reference, self.reference, labels, self._regressions, self.rows.weights
        ):
            for name, members in self._watched(task.name, self.rows).items():
                known = members & self._known(task.name, self.rows)
                kept = known if known.any() else members
                mean = float(task.base[kept].sum() / max(float(task.weights[kept].sum()), 1e-300))
                found[name] = max(mean, 1e-12)
        return found

    def found_slices(self, scores: Scores, proving: int) -> tuple[Slice, ...]:
        """The slices of these rows on which scores differ most from the original's.

        Args:
            scores: Of these rows.
            proving: How many other rows the slices will be judged on.
        """
        if not self.budget.find_cohorts or self.budget.cohorts is False:
            return ()
        least = rows_needed(len(self.rows), proving, MIN_COHORT_ROWS)
        before = {name: self.reference[name] for name in scores}
        found: list[Slice] = []
        for task in task_rows(before, scores, {}, self._regressions, self.rows.weights):
            limit = self.budget.for_task(task.name).ne
            if limit is not None and least <= len(self.rows) // 2:
                found += find_slices(task, self._columns, COHORT_FACTOR * limit, least)
        return tuple(found)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray[Any, Any]]:
        return columns_of(self.rows, self.reference)

    @cached_property
    def _read(self) -> dict[str, np.ndarray[Any, Any]]:
        """The features that the budget's measures read."""
        features = self.rows.features
        return {c: features[c].numpy() for c in measured_columns(self.budget) if c in features}

    def _watched(self, task: str, rows: Rows) -> dict[str, np.ndarray[Any, Any]]:
        """The rows of a task, and of each of its cohorts that is gated and large enough."""
        watched = {task: np.ones(len(rows), dtype=bool)}
        gated = self.budget.cohorts
        for axis, values in (rows.cohorts or {}).items():
            if gated is False or (gated is not True and axis not in gated):
                continue
            for value in np.unique(self.rows.cohorts[axis]):  # type: ignore[index]
                members = values == value
                whole = int((self.rows.cohorts[axis] == value).sum())  # type: ignore[index]
                if whole >= SOFT_COHORT_ROWS and members.any():
                    watched[f"{task}@{axis}={value}"] = members
        places = spread_over(len(self.rows), len(rows))
        for one in self.slices:
            members = one.members(self._columns)[places]
            if one.task == task and members.any():
                watched[f"{task}@{one.axis}={one.value}"] = members
        return watched

    def on(self, scores: Scores, confidence: float | None = None) -> Verdict:
        """The verdict on scores of the same rows, from whatever made them."""
        return judge(
            {name: self.reference[name] for name in scores},
            scores,
            self.rows.labels,
            self.budget,
            group=self.rows.group,
            time=self.rows.time,
            cohorts=self.rows.cohorts,
            columns=self._read,
            found=[
                FoundCohort(one.task, one.axis, one.value, one.members(self._columns))
                for one in self.slices
            ],
            regression=self._regressions,
            confidence=confidence or self.confidence,
            weights=self.rows.weights,
        )
