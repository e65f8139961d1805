"""`optimize`: capture → pipeline → lower → prove. The whole way, top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._version import __version__
from .amendments import with_recovery, with_requests, with_windows
from .analysis.operator_forms import require_forms
from .artifact.artifact import Artifact
from .artifact.pending import Finish
from .artifact.translation import Sample
from .capture import captured, given_rows, rows_of
from .compare.domain import naming_rows
from .compare.lockstep import compare
from .compare.ordinary import ordinary
from .data.parquet import Parquet
from .data.rows import Rows, Split
from .errors import (
    BudgetExceeded,
    DataError,
    RankcError,
    TranslationError,
    VerifyError,
)
from .heads.windows import Windows
from .ir.program import Program
from .ir.signature import Signature
from .ir.torchapi import forgetting
from .lowering import Lowering, formats_had, lacking
from .milestones import Milestones
from .pipeline.instruments import Progress, Verify
from .pipeline.passbase import Exactness, Instrument, PassContext
from .pipeline.pipeline import Pipeline
from .precision.assumed import Assumptions, Formats, chosen_formats, example_of
from .precision.probe_cache import Knowledge, Subject
from .quality.batch_dependence import batch_shift, too_far
from .quality.budget import Budget
from .quality.found_cohorts import Slice
from .quality.gate import split_confidence
from .quality.judge import Judge
from .quality.scores import score
from .quality.verdict import Status, Verdict, least
from .report.report import Report
from .requests.request import Request, as_request
from .target import Target
from .training.distill import Distill, Recovery, prepare

#: Rows the numerics of passes are checked on.
_CHECK_ROWS = 256
#: Shares of the budget that a backend's plan may be expected to use, attempt by attempt; the last
#: applies no lossy pass at all.
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.0)
#: The same without data, of the damage on made-up rows, before no format is placed.
_GUESSED_SHARES = (1.0, 0.25)


@forgetting()
def optimize(
    model: nn.Module | Program | str | Path,
    target: str | Target = "cpu-int8",
    *,
    data: Iterable[Any] | Parquet | str | Path | None = None,
    calibration: Iterable[Any] | None = None,
    inputs: Any = None,
    budget: Budget | None = None,
    signature: Signature | None = None,
    outputs: Sequence[str] | None = None,
    windows: Windows | None = None,
    request: Request | None = None,
    pipeline: str | Pipeline = "default",
    recover: Distill | None = None,
    formats: str = "auto",
    batch_sizes: tuple[int, ...] = (64, 512),
    checkpoint: str | Path | Artifact | None = None,
    cache: str | Path | None = None,
    strict: bool = False,
    seed: int = 0,
    trust_code: bool = False,
    instruments: Sequence[Instrument] = (),
    progress: Callable[[str, float], None] | None = None,
) -> Artifact:
    """Turns a trained ranking model into an artifact that is faster and provably ranks as well.

    Args:
        model: An ``nn.Module``, a captured or consolidated `Program`, ``"pkg.module:factory"``, a
            ``.pt2`` file of `Program.save` or ``torch.export.save``, or an ``.onnx`` file.
        target: A target's name, or a `Target`.
        data: Labelled rows: an iterable of `Batch` or of ``(inputs, labels)``, a DataLoader, a
            `Parquet`, or the path of a parquet file whose label columns are named like the tasks.
            Without data formats are placed on assumed ranges and the verdict is *unverified*.
        calibration: Rows to calibrate on; taken from the head of ``data`` when None.
        inputs: One example, as the model takes it. Not needed with data, or when the model has
            ``example_inputs()``. Without data it also tells of what size dense features are.
        budget: How much quality may be given up; ΔNE of 0.02 % when None.
        signature: Overrides the inferred features and tasks.
        outputs: Names for the outputs in order, or the names of the outputs to keep.
        windows: Conversion windows whose heads become two heads and a formula, with the window as
            one more feature.
        request: What the candidates of a request have in common; the artifact then scores requests
            as well, of one user and many candidates, and computes the user's part once.
        pipeline: The passes, as text or as a `Pipeline`.
        formats: ``"auto"`` places the target's formats; ``"none"`` leaves every table and linear
            in its own.
        recover: Lets units go and the program be finetuned, on rows of its own; never unasked.
        batch_sizes: The batch sizes that will be served.
        checkpoint: A file in which the probe keeps what it measured, so that an interrupted run
            goes on from there; or an artifact of the same model and rows, whose probe is used.
        cache: The folder of measured kernel times; ``~/.cache/rankc`` when None.
        strict: Raise when a pass fails or breaks its promise, instead of rolling it back.
        seed: For whatever samples.
        trust_code: Whether a ``.pt2`` file, or what a checkpoint of ``recover=`` has reached, may
            be opened: it is unpickled, and can do whatever this process can.
        instruments: Observers of the passes.
        progress: Called with what is being worked on, and the share that is done.

    Raises:
        CaptureError: The model can't be captured; where in its code, and what to change.
        DataError: Rows, labels or weights that can't be used; which, and where first.
        TargetError: An unknown target, or unknown formats.
        CheckpointError: The checkpoint is of another model or other rows, or may not be opened.
        TranslationError: What was built scores rows otherwise than the model, with every backend.
        UnsupportedError: An operator that no backend of the target has a form for.
        BudgetExceeded: Not even the original in the target's highest format is within the budget.
        RecoverError: A checkpoint of something else.
    """
    say = Milestones(progress)
    wanted = Target.of(target)
    low = chosen_formats(formats)
    if data is not None:
        _check_iterable(data)
    limits = budget or Budget()
    steps = pipeline if isinstance(pipeline, Pipeline) else Pipeline.parse(pipeline)
    say("capturing the model", 0.0)
    program, data = captured(model, data, inputs, signature, outputs, trust_code)
    require_forms(program, wanted)
    if windows is not None:
        steps = with_windows(steps, windows, program.signature)
        if data is None:
            raise DataError("windows are fitted to data and judged on it; give data= as well.")
    shared: tuple[str, ...] = ()
    if request is not None:
        shared, steps = request.features(program.signature), with_requests(steps)
    say("reading the data", 0.15)
    rows = rows_of(program, data, calibration, shared)
    if rows is not None and low is Formats.NONE:
        steps = steps.keeping(lambda pass_: not (pass_.places or pass_.realises))
    guesses = rows is None and low is Formats.AUTO
    job = _Job(
        program=program,
        target=wanted,
        budget=limits,
        pipeline=steps,
        batch_sizes=batch_sizes,
        strict=strict,
        seed=seed,
        instruments=tuple(instruments),
        say=say,
        cache=None if cache is None else Path(cache),
        request=request,
        shared=shared,
        example=example_of(program, inputs) if guesses else None,
        given=given_rows(program, model, inputs) if rows is None else None,
    )
    if recover is not None:
        recovery = prepare(recover, program, rows, seed, say.detail, trust_code=trust_code)
        job = job.finetuned(recover, recovery)
    if rows is not None:
        subject = Subject.of(as_request(program, shared), rows.calibration, rows.choice)
        job = job.reading(rows.proof.notes, _knowledge(checkpoint, subject))
    artifact = job.unverified() if rows is None else job.proved(rows)
    say("done", 1.0)
    return artifact


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One call of `optimize`, once its inputs are understood.

    Attributes:
        recovery: What passes that finetune are given.
        knowledge: What the probe needn't measure.
        example: An example's features, where formats are placed without data.
        read: What there is to say of how the rows were read.
        given: Rows of the example, without data.
        unasked: What the job would be had finetuning not been asked for.
    """

    program: Program
    target: Target
    budget: Budget
    pipeline: Pipeline
    batch_sizes: tuple[int, ...]
    strict: bool
    seed: int
    instruments: tuple[Instrument, ...]
    say: Milestones
    cache: Path | None
    request: Request | None
    shared: tuple[str, ...]
    example: Mapping[str, Tensor] | None
    given: dict[str, Tensor] | None
    recovery: Recovery | None = None
    knowledge: Knowledge | None = None
    read: tuple[str, ...] = ()
    unasked: _Job | None = None

    @property
    def arms(self) -> tuple[_Job, ...]:
        """This job, and what it would be had finetuning not been asked for."""
        return (self,) if self.unasked is None else (self, self.unasked)

    def finetuned(self, plan: Distill, recovery: Recovery) -> _Job:
        """The job that finetunes as well; it knows what it would be without."""
        return replace(
            self,
            budget=plan.relaxed(self.budget),
            pipeline=with_recovery(self.pipeline),
            recovery=recovery,
            unasked=replace(self, pipeline=self.pipeline.without(Exactness.TRAINED)),
        )

    def reading(self, notes: tuple[str, ...], knowledge: Knowledge) -> _Job:
        """The job with what was read, and what is known of it."""
        unasked = None if self.unasked is None else self.unasked.reading(notes, knowledge)
        return replace(self, read=(*self.read, *notes), knowledge=knowledge, unasked=unasked)

    def lowering(self, sample: Sample) -> Lowering:
        """What builds; each build is compared with the model on the sample."""
        return Lowering(
            program=self.program,
            target=self.target,
            budget=self.budget,
            batch_sizes=self.batch_sizes,
            strict=self.strict,
            seed=self.seed,
            sample=sample,
            request=self.request,
            shared=self.shared,
            rows=self.knowledge.subject.rows if self.knowledge else "",
            say=self.say,
        )

    def unverified(self) -> Artifact:
        """Without data: formats on assumed ranges, where there are any; checked on made-up rows."""
        rows = ordinary(self.program, _CHECK_ROWS, self.seed, self.given)
        lowering = self.lowering(Sample.of(self.program, rows, self.seed))
        given_up: list[str] = []
        assumed = self._assumptions(given_up)
        for share in _GUESSED_SHARES if assumed is not None else ():
            assert assumed is not None
            finish = self._first(lowering, rows, assumed.scaled(share))
            verdict, why = self._guessed(finish, assumed, rows)
            if verdict is not None:
                finish.report.notes += [f"a faster plan was given up: {why}" for why in given_up]
                return finish(verdict)
            given_up.append(why)
            finish.discard()
        finish = self._first(lowering, rows, None)
        self._require_agreement(finish, rows)
        reason = "no data was given; give data= to measure ΔNE and to allow lossy formats"
        finish.report.notes += [f"no format was placed without data: {why}" for why in given_up]
        return finish(Verdict.unverified(reason, self.budget.confidence))

    def _require_agreement(self, finish: Finish, rows: Rows) -> None:
        reasons = finish.disagreement(rows, self.budget)
        if reasons:
            raise VerifyError("; ".join(reasons))

    def _guessed(
        self, finish: Finish, assumed: Assumptions, rows: Rows
    ) -> tuple[Verdict | None, str]:
        """The verdict on what was built without data; or None, and what speaks against it."""
        if not finish.lossy:
            self._require_agreement(finish, rows)
            return assumed.verdict(None, finish.report), ""
        try:
            apart = finish.disagreement(rows, self.budget)
            found = assumed.measured(finish.run, self.program.signature)
        except DataError as error:
            return None, f"what was built can't be judged: {error}"
        if not apart and assumed.allows(found):
            return assumed.verdict(found, finish.report), ""
        return None, "; ".join([*apart, *found.reasons])

    def _assumptions(self, refused: list[str]) -> Assumptions | None:
        """What formats can be placed on without data; None where none can be, or none may."""
        if self.example is None or not (self.target.formats or self.target.table_formats):
            return None
        try:
            return Assumptions.of(self.program, self.example, self.budget, self.seed)
        except DataError as error:
            refused.append(f"made-up rows can't be judged on: {error}")
            return None

    def _first(self, lowering: Lowering, rows: Rows, assumed: Assumptions | None) -> Finish:
        """The fastest that can be built without data, with or without formats."""
        steps = self.pipeline.keeping(
            lambda pass_: (
                pass_.exactness not in (Exactness.LOSSY, Exactness.TRAINED)
                or (assumed is not None and bool(pass_.realises))
            )
        )
        lossy = [p.spec() for p in self.pipeline.passes if p not in steps.passes]

        def context_for(target: Target) -> PassContext:
            context = self._context(target, rows, lowering.sample)
            if assumed is not None:
                contending = formats_had(self.target) if self.target.measured else target.formats
                context = assumed.placing(context, contending)
            if lossy:
                context.report.notes.append(
                    f"no data was given, so these lossy passes did not run: {', '.join(lossy)}"
                )
            return context

        refusals: list[RankcError] = []
        found = lowering.built(self.target.backends, steps, context_for, rows, refusals)
        finish, *others = lowering.ranked(found, rows, refusals)
        for other in others:
            other.discard()
        return finish

    def proved(self, rows: Split) -> Artifact:
        """With data: plan on the choice rows, lower, prove on the proof rows, back off if need be.

        The fastest is proved first. If it is refused, its backend tries a plan that may use less of
        the budget, which then races those of the others. Each further look at the proof rows takes
        a smaller share of the error rate, so that looking often doesn't make passing likelier.

        Where finetuning was asked for, what comes without it races what comes of it: asking for
        more never gives less.
        """
        self.say("scoring the original", 0.2)
        with naming_rows(self.program, rows.calibration):
            for features in rows.calibration.batches():
                self.program.run(features)
        with naming_rows(self.program, rows.proof):
            proof = Judge.of(self.program, rows.proof, self.budget)
        with naming_rows(self.program, rows.choice):
            choice = Judge.of(self.program, rows.choice, self.budget)
        for judge in (choice, proof):
            judge.on(judge.reference)  # rows that can't be judged on are found before the work
        sample = Sample.of(self.program, rows.calibration, self.seed)
        known = proof.seen_by(choice)
        arms = tuple(replace(arm, read=(*arm.read, *known)) for arm in self.arms)
        lowerings = {id(arm): arm.lowering(sample) for arm in arms}
        given_up: list[str] = []
        refusals: list[RankcError] = []
        smallest: float | None = None
        names = self.target.backends
        shares = {(id(arm), name): iter(_SHARES) for arm in arms for name in names}
        made: dict[Finish, _Job] = {}
        refused: set[tuple[str, str]] = set()

        def planned(arm: _Job, *names: str) -> list[Finish]:
            """What some backends, all at the same share, make of their next one."""
            share = min(next(shares[id(arm), name]) for name in names)
            steps = arm.pipeline
            if share == 0.0:
                steps = steps.without(Exactness.LOSSY, Exactness.TRAINED)
            context_for = partial(
                arm._planning, sample=sample, rows=rows, choice=choice, share=share
            )
            build = lowerings[id(arm)].built
            found = build(names, steps, context_for, rows.calibration, refusals)
            for finish in found:
                made[finish] = arm
                if arm is not arms[0]:
                    finish.entry = f"{finish.backend}, not finetuned"
            return found

        def another(finish: Finish) -> list[Finish]:
            """The backend's next plan that wasn't refused before, if a plan can give way at all."""
            arm, lossy = made.pop(finish), finish.lossy
            while lossy:
                found = planned(arm, finish.backend)
                if not found or found[0].fingerprint not in refused:
                    return found
                lossy = found[0].lossy
                del made[found[0]]
                found[0].discard()
            return []

        standing = [finish for arm in arms for finish in planned(arm, *names)]
        try:
            while True:
                standing = lowerings[id(arms[0])].ranked(standing, rows.calibration, refusals)
                finish = standing[0]
                arm = made[finish]
                self.say("proving on rows never seen before", 0.9)
                judged = arm._judged(finish, choice, proof, len(given_up))
                verdict = judged.verdict
                choice = replace(choice, slices=(*choice.slices, *judged.damaged))
                if verdict.status is Status.PASS:
                    notes = [f"a faster plan was given up: {why}" for why in given_up]
                    if arm is not arms[0]:
                        notes.append(
                            "finetuned it was no faster, or failed: this is what is returned"
                        )
                    finish.report.notes += notes
                    low = self.target.formats or self.target.table_formats
                    few = proof.advice() if low else []
                    finish.report.notes += [f"rows apart: {rows}", *few]
                    standing.remove(finish)
                    return finish(verdict)
                smallest = least(smallest, verdict.worst_delta_ne)
                given_up.append("; ".join([*verdict.reasons, *self._where(finish, rows)]))
                refused.add(finish.fingerprint)
                standing.remove(finish)
                finish.discard()
                standing += another(finish)
                if not standing:
                    break
        finally:
            for finish in standing:
                finish.discard()
            gc.collect()
        if judged.wrong:
            raise TranslationError(judged.wrong)
        raise BudgetExceeded(
            f"no program is within {self.budget.spec()}: even the original in "
            f"{self.target.name}'s highest format is not. {given_up[-1]}. {_reachable(smallest)} "
            "Allow a larger budget, or give more rows.",
            smallest,
        )

    def _judged(self, finish: Finish, choice: Judge, proof: Judge, attempt: int) -> _Judged:
        """What the proof rows say of what was built, and the found cohorts it surely damages."""
        confidence = split_confidence(self.budget.confidence, attempt)
        proof = replace(proof, budget=self.budget)
        signature = self.program.signature
        try:
            if finish.lossy:
                seen = score(finish.run, choice.rows, signature)
                proof = replace(proof, slices=choice.found_slices(seen, len(proof.rows)))
            scores = score(finish.run, proof.rows, signature)
            mates = batch_shift(finish.run, proof.rows, signature)
        except DataError as error:
            wrong = finish.differs(proof.rows)
            said = wrong or f"what was built can't be judged: {error}"
            count = len(proof.rows)
            failed = Verdict(Status.FAIL, count, confidence, "none", reasons=(said,))
            return _Judged(failed, wrong)
        verdict = proof.on(scores, confidence)
        damaged = tuple(one for one in proof.slices if one.fails(verdict))
        wrong = finish.differs(proof.rows)
        reasons = (*too_far(mates, self.budget), *finish.disagreement(proof.rows, self.budget))
        reasons = (wrong, *reasons) if wrong else reasons
        if reasons:
            verdict = replace(verdict, status=Status.FAIL, reasons=(*reasons, *verdict.reasons))
        return _Judged(verdict, wrong, damaged)

    def _where(self, finish: Finish, rows: Split) -> list[str]:
        """Where the error of what was given up enters, as far as its program is at hand."""
        if finish.program is None or not finish.lossy:
            return []
        features = rows.choice.part(0, _CHECK_ROWS).features
        found = compare(self.program, finish.program, features)
        return [found.sentence] if found.worst else []

    def _planning(
        self, target: Target, *, sample: Sample, rows: Split, choice: Judge, share: float
    ) -> PassContext:
        """What passes work with when there is data; a plan may use this share of the budget."""
        context = self._context(target, rows.calibration, sample)
        context.calibration = tuple(rows.calibration.batches())
        if share > 0.0:
            limits = self.budget.scaled(share)
            context.judge = replace(choice, budget=limits, proof_rows=len(rows.proof))
        return context

    def _report(self) -> Report:
        """A new report, with what the capture had to say."""
        tables = sum(bool(f.tables) for f in self.program.signature)
        report = Report(
            f"rankc {__version__}: {len(self.program.signature.features)} features "
            f"({tables} looked up in tables), {len(self.program.signature.tasks)} tasks, "
            f"for {self.target.name}"
        )
        report.notes += [*self.program.notes, *self.read]
        absent = lacking(self.target)
        if absent:
            report.notes.append(
                f"no linear was tried in {', '.join(absent)}: no backend of {self.target.name} "
                f"({', '.join(self.target.backends)}) has a product in it"
            )
        return report

    def _context(self, target: Target, rows: Rows, sample: Sample) -> PassContext:
        return PassContext(
            target=target,
            report=self._report(),
            rows=rows.part(0, _CHECK_ROWS).features,
            hostile=sample.hostile,
            original=self.program,
            instruments=(Verify(), Progress(self.say.detail), *self.instruments),
            strict=self.strict,
            batch_sizes=self.batch_sizes,
            seed=self.seed,
            may_train=self.recovery is not None,
            resources=[one for one in (self.recovery, self.knowledge) if one is not None],
            say=self.say.detail,
            cache=self.cache,
        )


@dataclass(frozen=True)
class _Judged:
    """What came of a look at the proof rows.

    Attributes:
        verdict: The verdict.
        wrong: What was built scores otherwise than its program, if that is why; else empty.
        damaged: The found cohorts it surely damages.
    """

    verdict: Verdict
    wrong: str
    damaged: tuple[Slice, ...] = ()


def _knowledge(checkpoint: str | Path | Artifact | None, subject: Subject) -> Knowledge:
    """What the probe needn't measure."""
    if checkpoint is None:
        return Knowledge(subject)
    if isinstance(checkpoint, Artifact):
        return Knowledge.of_artifact(checkpoint.manifest.fingerprints, checkpoint.sites, subject)
    return Knowledge.open(Path(checkpoint), subject)


def _check_iterable(data: Any) -> None:
    if not isinstance(data, (Iterable, str, Path, Parquet)):
        raise DataError(
            f"data is a {type(data).__name__}, expected batches: an iterable of rankc.Batch or of "
            "(inputs, labels), a DataLoader, or the path of a parquet file."
        )


def _reachable(smallest: float | None) -> str:
    if smallest is None:
        return "No ΔNE could be measured."
    return (
        f"The smallest reachable ΔNE (upper bound) is {smallest:.3g}; it comes from the backend's "
        "own rounding."
    )
