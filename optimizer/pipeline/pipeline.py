"""`Pipeline`: passes in order, and the protocol around each of them.

No pass verifies, times, snapshots or compares numbers; this file does, for ours and for third-party
passes alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ..analysis.cost import estimate, size_of
from ..compare.numerics import Divergence, divergence, truth
from ..errors import (
    CheckpointError,
    PassError,
    PipelineError,
    PreconditionError,
    PruneError,
    RecoverError,
)
from ..ir.forms import Form
from ..ir.program import Program
from ..ir.rewrite import sweep
from ..quality.verdict import Status, Verdict
from ..report.records import Kind, Outcome, PassRecord, Remark
from .backoff import REASON, drop_costliest
from .passbase import Exactness, Pass, PassContext, Skip
from .promises import broken_promise
from .registry import named_pipelines, pass_class
from .spec import split_spec, split_top_level

#: Standard errors that a realised plan must leave to chance. Plans are chosen with one to spare;
#: once realised they round in another order, and labels say something else of that.
_SPARE = 0.0


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes in order; is itself a pass.

    Its text form is a comma-separated list of specs, of ``fixpoint(…)``, and of named pipelines. A
    list can be amended: ``default,-fold-constants,+my-pass@after:canonicalize``.
    """

    name: ClassVar[str] = "pipeline"
    requires: ClassVar[Form] = Form.CAPTURED
    passes: tuple[Pass, ...] = ()

    def run(self, program: Program, ctx: PassContext) -> None:
        """Runs every pass under the protocol."""
        for pass_ in self.passes:
            if isinstance(pass_, Pipeline):
                pass_.run(program, ctx)
            else:
                run_pass(pass_, program, ctx)

    def spec(self) -> str:
        """The pipeline as text."""
        return ",".join(pass_.spec() for pass_ in self.passes)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The pipeline that ``text`` describes.

        Raises:
            PipelineError: An unknown pass or option, or an amendment that names a pass that isn't
                in the list.
        """
        passes: list[Pass] = []
        for part in split_top_level(text):
            if part.startswith(("+", "-")):
                _amend(passes, part)
            elif part in named_pipelines():
                passes += cls.parse(named_pipelines()[part]).passes
            else:
                passes.append(_parse_pass(part))
        return cls(passes=tuple(passes))

    def without(self, *exactness: Exactness) -> Pipeline:
        """The pipeline less the passes of some exactness classes, inside of fixpoints too."""
        return self.keeping(lambda pass_: pass_.exactness not in exactness)

    def keeping(self, wanted: Callable[[Pass], bool]) -> Pipeline:
        """The pipeline of the passes that are wanted, inside of fixpoints too."""
        kept = (p.keeping(wanted) if isinstance(p, Pipeline) else p for p in self.passes)
        return replace(self, passes=tuple(p for p in kept if isinstance(p, Pipeline) or wanted(p)))


@dataclass(frozen=True)
class FixedPoint(Pipeline):
    """Repeats its passes until nothing changes: ``fixpoint(fold-constants,eliminate)``."""

    name: ClassVar[str] = "fixpoint"
    rounds: int = 8

    def run(self, program: Program, ctx: PassContext) -> None:
        """Runs the passes until a whole round changes nothing."""
        for _ in range(self.rounds):
            before = program.fingerprint()
            super().run(program, ctx)
            if program.fingerprint() == before:
                return
        ctx.report.notes.append(f"{self.spec()} still changed things after {self.rounds} rounds")

    def spec(self) -> str:
        """The fixpoint as text."""
        return f"fixpoint({super().spec()})"


def run_pass(pass_: Pass, program: Program, ctx: PassContext) -> None:
    """Runs one pass under the protocol, and records what came of it.

    Raises:
        PreconditionError: The program isn't in the form the pass requires: a pipeline bug.
        PassError: The pass failed or broke its promise, and the context is strict.
    """
    if not all(i.should_run(pass_, program) for i in ctx.instruments):
        return
    if not program.form.includes(pass_.requires):
        if any(
            record.outcome in (Outcome.ROLLED_BACK, Outcome.FAILED) for record in ctx.report.records
        ):
            # What would have made it so was undone: that is told, and no bug of this pipeline.
            ctx.report.notes.append(f"{pass_.spec()} did not run: it needs a pass that was undone")
            return
        raise PreconditionError(
            f"{pass_.spec()} requires a program that is {pass_.requires.value}; this one is "
            f"{program.form.value}. Put canonicalize before it."
        )
    if pass_.exactness is Exactness.TRAINED and not ctx.may_train:
        ctx.report.notes.append(f"{pass_.spec()} needs finetuning and was not asked for: not run")
        return
    started = time.perf_counter()
    snapshot = program.clone()
    ctx.current = pass_
    try:
        outcome, note, moved, delta_ne = _with_fewer_sites(pass_, program, snapshot, ctx)
    finally:
        ctx.current = None
    before = size_of(snapshot)
    record = PassRecord(
        index=len(ctx.report.records) + 1,
        spec=pass_.spec(),
        exactness=pass_.exactness.value,
        outcome=outcome,
        seconds=time.perf_counter() - started,
        before=before,
        after=size_of(program) if outcome is Outcome.CHANGED else before,
        divergence=moved.to_json() if moved else None,
        note=note,
        estimate=_estimate(snapshot, program, ctx) if outcome is Outcome.CHANGED else None,
        delta_ne=delta_ne,
    )
    ctx.report.records.append(record)
    for instrument in ctx.instruments:
        instrument.after(record, snapshot, program)


def _estimate(before: Program, after: Program, ctx: PassContext) -> tuple[float, float]:
    """Estimated seconds at the largest batch, before and after."""
    batch = max(ctx.batch_sizes)
    known = [record.estimate for record in ctx.report.records if record.estimate is not None]
    first = known[-1][1] if known else estimate(before, ctx.target, batch)
    return first, estimate(after, ctx.target, batch)


def _with_fewer_sites(
    pass_: Pass, program: Program, snapshot: Program, ctx: PassContext
) -> tuple[Outcome, str, Divergence | None, dict[str, float] | None]:
    """`_attempt`; formats that are over budget together are tried again without those that hurt."""
    told, dropped, begun = list(ctx.report.sites), list[str](), snapshot
    while True:
        ended = _attempt(pass_, program, begun, ctx)
        judged = pass_.exactness is Exactness.LOSSY and ctx.judge is not None
        if ended[0] is not Outcome.ROLLED_BACK or not pass_.realises or not judged:
            break
        undone, ctx.report.sites[:] = list(ctx.report.sites), told
        found = drop_costliest(program, ctx.report, pass_.realises)
        if not found:
            ctx.report.sites[:] = undone
            return ended
        told, begun = list(ctx.report.sites), program.clone()
        dropped += found
        del ctx.report.remarks[-1]  # that it was rolled back, which it may not be in the end
    if dropped:
        ctx.missed(REASON, *dropped)
    return ended


def _attempt(
    pass_: Pass, program: Program, snapshot: Program, ctx: PassContext
) -> tuple[Outcome, str, Divergence | None, dict[str, float] | None]:
    """Runs, checks and if need be undoes a pass."""
    said = len(ctx.report.remarks)
    try:
        pass_.check(program, ctx)
        for instrument in ctx.instruments:
            instrument.before(pass_, program)
        pass_.run(program, ctx)
        if pass_.produces is not None and not program.form.includes(pass_.produces):
            program.form = pass_.produces
        if program.fingerprint() == snapshot.fingerprint():
            return Outcome.UNCHANGED, "", None, None
        sweep(program)
        if program.fingerprint() == snapshot.fingerprint():
            return Outcome.UNCHANGED, "", None, None
        for instrument in ctx.instruments:
            instrument.check(pass_, snapshot, program)
        moved, verdict, broken = _numerics(pass_, snapshot, program, ctx)
    except Skip as skip:
        if program.fingerprint() != snapshot.fingerprint():
            program.restore(snapshot.clone())
        ctx.missed(str(skip))
        return Outcome.SKIPPED, str(skip), None, None
    except (CheckpointError, PruneError, RecoverError):
        raise  # what was asked for by name can't be done, which only the user can mend
    except Exception as error:
        if ctx.strict:
            raise PassError(f"{pass_.spec()} failed: {error}", pass_.spec()) from error
        _undo(program, snapshot, ctx, said, f"failed and was rolled back: {error}")
        return Outcome.FAILED, str(error).split("\n", 1)[0], None, None
    if broken is not None:
        if ctx.strict and pass_.exactness is not Exactness.LOSSY:
            raise PassError(f"{pass_.spec()} broke its promise: {broken}", pass_.spec())
        _undo(program, snapshot, ctx, said, f"rolled back: {broken}")
        return Outcome.ROLLED_BACK, broken, moved, None
    program.recipe = (*program.recipe, pass_.spec())
    if pass_.exactness in (Exactness.LOSSY, Exactness.TRAINED):
        # What it lost is judged; what comes after must round to what it left, not to what was.
        ctx.original = program.clone()
    if ctx.judge is not None and pass_.exactness in (Exactness.LOSSY, Exactness.TRAINED):
        # All passes share one budget: the next ones have what this one left of it.
        ctx.judge = ctx.judge.rebased(program, trained=pass_.exactness is Exactness.TRAINED)
        ctx.resources = [r for r in ctx.resources if not getattr(r, "of_captured", False)]
    found = {task: delta.estimate for task, delta in verdict.delta_ne.items()} if verdict else None
    return Outcome.CHANGED, "", moved, found


def _undo(program: Program, snapshot: Program, ctx: PassContext, said: int, why: str) -> None:
    """Restores the snapshot, and keeps of the pass's remarks only those that still hold."""
    program.restore(snapshot.clone())
    ctx.report.remarks[said:] = [r for r in ctx.report.remarks[said:] if r.kind is not Kind.APPLIED]
    assert ctx.current is not None
    ctx.report.undo_sites(ctx.current.realises, why)
    ctx.report.remarks.append(Remark(Kind.FAILED, ctx.current.name, why))


def _numerics(
    pass_: Pass, before: Program, after: Program, ctx: PassContext
) -> tuple[Divergence | None, Verdict | None, str | None]:
    """How far outputs moved on the real rows, the verdict if lossy, and what broke the promise."""
    if ctx.rows is None:
        return None, None, None
    rows = ctx.rows
    results, earlier = after.run(rows), before.run(rows)
    moved = divergence(earlier, results)
    scores = [value for value in earlier.values() if value.numel()]
    if scores and not any(bool(value.isfinite().any()) for value in scores):
        # NaN is NaN whatever a pass did: that would be no check.
        return moved, None, "no score of the rows is finite, so nothing could be checked"
    error = own = None
    if pass_.exactness is Exactness.ROUNDING and not moved.bit_equal:
        original = ctx.original or before
        reference = truth(original, rows)
        error, own = divergence(reference, results), divergence(reference, original.run(rows))
    broken = None
    if pass_.exactness is not Exactness.ROUNDING or not moved.bit_equal:
        broken = broken_promise(pass_.exactness, moved, error, own)
    if broken is None and pass_.exactness in (Exactness.EXACT, Exactness.ROUNDING):
        broken = _broken_at_the_edges(pass_, before, after, ctx)
    if broken is not None or pass_.exactness not in (Exactness.LOSSY, Exactness.TRAINED):
        return moved, None, broken
    if ctx.judge is None:
        return moved, None, "a lossy pass needs data to be judged on, and none was given"
    verdict = ctx.judge(after)
    lossy = pass_.exactness is Exactness.LOSSY
    if not (ctx.judge.promises(after, _SPARE) if lossy else verdict.status is Status.PASS):
        why = "; ".join(verdict.reasons)
        broken = f"over budget: {why or 'a cohort likely would be, on the rows that prove'}"
    return moved, verdict, broken


def _broken_at_the_edges(
    pass_: Pass, before: Program, after: Program, ctx: PassContext
) -> str | None:
    """Why hostile rows aren't scored as the pass promised, or None."""
    if ctx.hostile is None or not len(ctx.hostile):
        return None
    found = ctx.edges(before).difference(after.run(ctx.hostile.features), other=after)
    if found is None:
        return None
    return (
        f"it is declared {pass_.exactness.value}, but scores hostile row {found.row} otherwise: "
        f"{found}"
    )


def _parse_pass(text: str) -> Pass:
    if text.startswith("fixpoint(") and text.endswith(")"):
        inner = Pipeline.parse(text.removeprefix("fixpoint(").removesuffix(")"))
        return FixedPoint(passes=inner.passes)
    name, _ = split_spec(text)
    return pass_class(name).parse(text)


def _amend(passes: list[Pass], part: str) -> None:
    """Applies ``+pass``, ``+pass@after:other``, ``+pass@before:other`` or ``-pass`` to a list."""
    if part.startswith("-"):
        name = part[1:].strip()
        found = _drop(passes, name)
        if not found:
            raise PipelineError(f"{part!r}: no {name!r} in {_names(passes)}")
        return
    spec, place = _split_place(part[1:])
    added = _parse_pass(spec.strip())
    if not place:
        passes.append(added)
        return
    where, _, other = place.partition(":")
    if where not in ("after", "before") or not other:
        raise PipelineError(f"{part!r}: write the place as @after:pass or @before:pass")
    positions = [index for index, p in enumerate(passes) if other in _flat_names(p)]
    if not positions:
        raise PipelineError(f"{part!r}: no {other!r} in {_names(passes)}")
    passes.insert(positions[-1] + 1 if where == "after" else positions[0], added)


def _split_place(text: str) -> tuple[str, str]:
    """``pass{…}@after:other`` at its ``@``, which an option's value may hold too."""
    spec, brace, rest = text.rpartition("}")
    name, _, place = rest.partition("@")
    return spec + brace + name, place


def _drop(passes: list[Pass], name: str) -> bool:
    """Removes every pass called ``name``, inside of fixpoints too."""
    before = [pass_.spec() for pass_ in passes]
    kept: list[Pass] = []
    for pass_ in passes:
        if isinstance(pass_, Pipeline):
            inner = list(pass_.passes)
            _drop(inner, name)
            kept.append(replace(pass_, passes=tuple(inner)))
        elif pass_.name != name:
            kept.append(pass_)
    passes[:] = kept
    return before != [pass_.spec() for pass_ in passes]


def _flat_names(pass_: Pass) -> set[str]:
    if isinstance(pass_, Pipeline):
        return {name for inner in pass_.passes for name in _flat_names(inner)}
    return {pass_.name}


def _names(passes: list[Pass]) -> list[str]:
    return [pass_.name for pass_ in passes]
