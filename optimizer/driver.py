"""`optimize`: capture → pipeline → lower → prove. The whole way, top to bottom."""

from __future__ import annotations

import gc
import importlib
import inspect
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from .._version import __version__
from .artifact import Artifact, Manifest, file_facts
from .batchmates import batch_shift, too_far
from .budget import Budget
from .context import PassContext
from .data import (
    Parquet,
    Rows,
    Split,
    call_of,
    check_features,
    collect,
    features_of,
    first_inputs,
    split,
    synthesize,
)
from .errors import (
    BudgetExceeded,
    CaptureError,
    DataError,
    TargetError,
    UnsupportedError,
    VerifyError,
)
from .finish import Finish
from .gate import split_confidence
from .instruments import Instrument, Progress, Verify
from .ir.program import Program
from .ir.signature import Signature
from .ir.structure import Structure
from .knowledge import Knowledge, Subject
from .lockstep import compare
from .milestones import Milestones
from .passbase import Exactness
from .pipeline import Pipeline
from .precompute import entries_of
from .race import Race
from .registry import backend, frontend, served
from .report import Report
from .requests import (
    Request,
    as_flat,
    as_request,
    check_shared,
    with_requests,
)
from .scoring import Judge, score
from .slices import Slice
from .target import Target
from .verdict import Status, Verdict
from .windows import Windows

#: Rows the numerics of passes are checked on.
_CHECK_ROWS = 256
#: Optimized programs up to this size are kept, to tell where their error enters if they fail.
_KEPT_BYTES = 256 * 2**20
#: Shares of the budget a plan may be expected to use, attempt by attempt; the last attempt applies
#: no lossy pass at all.
_SHARES = (1.0, 0.5, 0.0)


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
    batch_sizes: tuple[int, ...] = (64, 512),
    checkpoint: str | Path | Artifact | None = None,
    strict: bool = False,
    seed: int = 0,
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
            Without data nothing lossy is applied and the verdict is *unverified*.
        calibration: Rows to calibrate on; taken from the head of ``data`` when None.
        inputs: One example, as the model takes it. Not needed with data, or when the model has
            ``example_inputs()``.
        budget: How much quality may be given up; ΔNE of 0.02 % when None.
        signature: Overrides the inferred features and tasks.
        outputs: Names for the outputs in order, or the names of the outputs to keep.
        windows: Conversion windows whose heads become two heads and a formula, with the window as
            one more feature.
        request: What the candidates of a request have in common; the artifact then scores requests
            as well, of one user and many candidates, and computes the user's part once.
        pipeline: The passes, as text or as a `Pipeline`.
        batch_sizes: The batch sizes that will be served.
        checkpoint: A file in which the probe keeps what it measured, so that an interrupted run
            goes on from there; or an artifact of the same model and rows, whose probe is used.
        strict: Raise when a pass fails or breaks its promise, instead of rolling it back.
        seed: For whatever samples.
        instruments: Observers of the passes.
        progress: Called with what is being worked on, and the share that is done.

    Raises:
        CaptureError: The model can't be captured; where in its code, and what to change.
        DataError: Rows, labels or weights that can't be used; which, and where first.
        TargetError: An unknown target.
        CheckpointError: The checkpoint is of another model or other rows.
        BudgetExceeded: Not even the original in the target's highest format is within the budget.
    """
    say = Milestones(progress)
    goal = Target.of(target)
    if data is not None:
        _check_iterable(data)
    limits = budget or Budget()
    steps = pipeline if isinstance(pipeline, Pipeline) else Pipeline.parse(pipeline)
    say("capturing the model", 0.0)
    program, data = captured(model, data, inputs, signature, outputs)
    if windows is not None:
        steps = windows.added_to(steps, program.signature)
        if data is None:
            raise DataError("windows are fitted to data and judged on it; give data= as well.")
    shared: tuple[str, ...] = ()
    if request is not None:
        shared, steps = request.features(program.signature), with_requests(steps)
    say("reading the data", 0.15)
    rows = _rows(program, data, calibration, shared)
    watching = tuple(instruments)
    job = _Job(program, goal, limits, steps, batch_sizes, strict, seed, watching, say)
    job.request, job.shared = request, shared
    if rows is not None:
        subject = Subject.of(as_request(program, shared), rows.calibration, rows.choice)
        job.knowledge = _knowledge(checkpoint, subject)
    artifact = job.unverified() if rows is None else job.proved(rows)
    say("done", 1.0)
    return artifact


@dataclass
class _Job:
    """One call of `optimize`, once its inputs are understood."""

    program: Program
    target: Target
    budget: Budget
    pipeline: Pipeline
    batch_sizes: tuple[int, ...]
    strict: bool
    seed: int
    instruments: tuple[Instrument, ...]
    say: Milestones
    knowledge: Knowledge | None = None
    request: Request | None = None
    shared: tuple[str, ...] = ()

    def unverified(self) -> Artifact:
        """Without data: exact and rounding passes only, checked on made-up rows."""
        rows = synthesize(self.program.signature, _CHECK_ROWS, self.seed)
        steps = self.pipeline.without(Exactness.LOSSY, Exactness.TRAINED)
        lossy = [p.spec() for p in self.pipeline.passes if p not in steps.passes]

        def context_for(target: Target) -> PassContext:
            context = self._context(target, rows)
            if lossy:
                context.report.notes.append(
                    f"no data was given, so these lossy passes did not run: {', '.join(lossy)}"
                )
            return context

        finish, *others = self._built(steps, context_for, rows)
        for other in others:
            other.discard()
        told = finish.disagreement(rows, self.budget)
        if told:
            raise VerifyError("; ".join(told))
        reason = "no data was given; give data= to measure ΔNE and to allow lossy formats"
        verdict = Verdict.unverified(reason, self.budget.confidence)
        return finish(verdict)

    def proved(self, rows: Split) -> Artifact:
        """With data: plan on the choice rows, lower, prove on the proof rows, back off if need be.

        Each further look at the proof rows takes a smaller share of the error rate, so that
        looking often doesn't make passing likelier.
        """
        self.say("scoring the original", 0.2)
        proof = Judge.of(self.program, rows.proof, self.budget)
        choice = Judge.of(self.program, rows.choice, self.budget)
        for judge in (choice, proof):
            judge.on(judge.reference)  # rows that can't be judged on are found before the work
        given_up: list[str] = []
        smallest: float | None = None
        looks = 0
        for share in _SHARES:
            steps = self.pipeline
            if share == 0.0:
                steps = steps.without(Exactness.LOSSY, Exactness.TRAINED)
            context_for = partial(self._planning, rows=rows, choice=choice, share=share)
            candidates = self._built(steps, context_for, rows.calibration)
            gc.collect()  # graphs are cyclic; their tables must not wait for the collector
            try:
                for finish in candidates:
                    self.say("proving on rows never seen before", 0.9)
                    verdict, damaged = self._verdict(finish, choice, proof, looks)
                    choice = replace(choice, slices=(*choice.slices, *damaged))
                    looks += 1
                    if verdict.status is Status.PASS:
                        notes = [f"a faster plan was given up: {why}" for why in given_up]
                        finish.report.notes += notes
                        low = self.target.formats or self.target.table_formats
                        few = proof.advice() if low else []
                        finish.report.notes += [f"rows apart: {rows}", *few]
                        candidates.remove(finish)
                        return finish(verdict)
                    smallest = _least(smallest, verdict.worst_delta_ne)
                    given_up.append("; ".join([*verdict.reasons, *self._where(finish, rows)]))
            finally:
                for finish in candidates:
                    finish.discard()
            if not any(finish.lossy for finish in candidates):
                break  # there is nothing left to back off from
        raise BudgetExceeded(
            f"no program is within {self.budget.spec()}: even the original in "
            f"{self.target.name}'s highest format is not. {given_up[-1]}. {_reachable(smallest)} "
            "Allow a larger budget, or give more rows.",
            smallest,
        )

    def _verdict(
        self, finish: Finish, choice: Judge, proof: Judge, attempt: int
    ) -> tuple[Verdict, tuple[Slice, ...]]:
        """What the proof rows say of what was built, and the found cohorts it surely damages."""
        confidence = split_confidence(self.budget.confidence, attempt)
        signature = self.program.signature
        try:
            if finish.lossy:
                seen = score(finish.run, choice.rows, signature)
                proof = replace(proof, slices=choice.found_slices(seen, len(proof.rows)))
            scores = score(finish.run, proof.rows, signature)
            mates = batch_shift(finish.run, proof.rows, signature)
        except DataError as error:
            reason = f"what was built can't be judged: {error}"
            return Verdict(Status.FAIL, len(proof.rows), confidence, "none", reasons=(reason,)), ()
        verdict = proof.on(scores, confidence)
        damaged = tuple(one for one in proof.slices if one.fails(verdict))
        told = (*too_far(mates, self.budget), *finish.disagreement(proof.rows, self.budget))
        if told:
            verdict = replace(verdict, status=Status.FAIL, reasons=(*told, *verdict.reasons))
        return verdict, damaged

    def _where(self, finish: Finish, rows: Split) -> list[str]:
        """Where the error of what was given up enters, as far as its program is at hand."""
        if finish.program is None or not finish.lossy:
            return []
        features = rows.choice.part(0, _CHECK_ROWS).features
        found = compare(self.program, finish.program, features)
        return [found.sentence] if found.worst else []

    def _planning(self, target: Target, *, rows: Split, choice: Judge, share: float) -> PassContext:
        """What passes work with when there is data; a plan may use this share of the budget."""
        context = self._context(target, rows.calibration)
        context.calibration = tuple(rows.calibration.batches())
        if share > 0.0:
            limits = _shrunk(self.budget, share)
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
        report.notes += self.program.notes
        return report

    def _context(self, target: Target, rows: Rows) -> PassContext:
        return PassContext(
            target=target,
            report=self._report(),
            rows=rows.part(0, _CHECK_ROWS).features,
            original=self.program,
            instruments=(Verify(), Progress(self.say.detail), *self.instruments),
            strict=self.strict,
            batch_sizes=self.batch_sizes,
            seed=self.seed,
            knowledge=self.knowledge,
            say=self.say.detail,
        )

    def _built(
        self, steps: Pipeline, context_for: Callable[[Target], PassContext], rows: Rows
    ) -> list[Finish]:
        """What the target's backends make of the program, the fastest first.

        Where the target can't be timed here, what its first backend makes.

        Raises:
            UnsupportedError: No backend takes the program.
        """
        refusals: list[str] = []
        found: list[Finish] = []
        for name in self.target.backends:
            try:
                found.append(self._build(steps, context_for(served(self.target, name))))
            except (TargetError, UnsupportedError) as error:
                refusals.append(str(error))
                continue
            if not self.target.measured:
                break
        if not found:
            raise UnsupportedError("\n".join(refusals))
        return self._ranked(found, refusals, rows)

    def _ranked(self, found: list[Finish], refusals: list[str], rows: Rows) -> list[Finish]:
        """Candidates by measured time, and their reports with it."""
        if len(found) == 1:
            if self.target.measured:
                found[0].report.notes += [f"not in the race: {why}" for why in refusals]
            return found
        self.say("timing the backends", 0.8)
        runs = {finish.backend: finish.open() for finish in found}
        race = Race.of(runs, rows, self.batch_sizes)
        for finish in found:
            finish.report.race = race
        return sorted(found, key=lambda finish: race.relative[finish.backend])

    def _build(self, steps: Pipeline, context: PassContext) -> Finish:
        """Runs the passes and lowers; the optimized program's tables, if large, are freed."""
        self.say("optimizing", 0.3)
        optimized = as_request(self.program, self.shared)
        steps.run(optimized, context)
        return self._lower(optimized, context, steps)

    def _lower(self, optimized: Program, context: PassContext, steps: Pipeline) -> Finish:
        """Builds with the backend that the context's target names."""
        (name,) = context.target.backends
        self.say(f"lowering for {self.target.name} with {name}", 0.7)
        folder = Path(tempfile.mkdtemp(prefix="rankc-"))
        metadata = {
            "rankc.target": self.target.name,
            "rankc.batch_sizes": ",".join(map(str, self.batch_sizes)),
            "rankc.version": __version__,
            "rankc.recipe": ",".join(optimized.recipe),
            "rankc.fingerprint": optimized.fingerprint(),
        }
        flat = as_flat(optimized, self.shared)
        try:
            built = backend(name).build(flat, context.target, folder, metadata)
            entry, beside = entries_of(self.request, self.shared, optimized)
            for kind, program in beside.items():
                more = backend(name).build_beside(kind, program, context.target, folder, metadata)
                built = replace(built, files=(*built.files, *more.files))
            manifest = replace(self._manifest(flat, steps, name, folder, built), request=entry)
            if self.strict:
                built.require_plan(name)
            kept = flat if flat.nbytes <= _KEPT_BYTES else None
            finish = Finish(folder, manifest, context.report, kept)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        context.report.notes += built.notes
        return finish

    def _manifest(
        self, optimized: Program, steps: Pipeline, backend_name: str, folder: Path, built: Any
    ) -> Manifest:
        return Manifest(
            target=self.target.name,
            backend=backend_name,
            pipeline=steps.spec(),
            budget=self.budget.spec(),
            batch_sizes=self.batch_sizes,
            recipe=optimized.recipe,
            fingerprints={
                "captured": self.program.fingerprint(),
                "optimized": optimized.fingerprint(),
                **({"rows": self.knowledge.subject.rows} if self.knowledge else {}),
            },
            versions={
                "rankc": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                **built.versions,
            },
            seed=self.seed,
            files=file_facts(folder, built.files),
            signature=optimized.signature,
            inputs=optimized.inputs,
            outputs=optimized.outputs,
            arguments=optimized.arguments,
            verdict=Verdict.unverified("not judged yet"),
        )


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


def captured(
    model: nn.Module | Program | str | Path,
    data: Any,
    inputs: Any,
    signature: Signature | None,
    outputs: Sequence[str] | None,
) -> tuple[Program, Any]:
    """The captured program, and the data with whatever batch was looked at still in it."""
    kept = tuple(outputs) if outputs is not None else None
    if _is_file(model):
        return load_program(Path(model), signature, kept), data
    if isinstance(model, Program):
        return capture(model, signature=signature, outputs=outputs), data
    module = resolve(model) if isinstance(model, str) else model
    if not isinstance(module, nn.Module):
        raise CaptureError(
            f"a model is a torch.nn.Module, got {type(module).__name__}. "
            "Wrap a function in a module whose forward calls it."
        )
    frontend_of_modules = frontend()
    if inputs is None and data is not None and not isinstance(data, (str, Path, Parquet)):
        inputs, data = first_inputs(data, frontend_of_modules.forward_arguments(module))
    try:
        program: Program = frontend_of_modules.capture(
            module, inputs, signature=signature, outputs=kept
        )
    except (CaptureError, DataError):
        _blame_inputs(module, inputs)
        raise
    return program, data


def replan(
    artifact: Artifact,
    model: nn.Module | Program | str | Path,
    *,
    data: Iterable[Any] | Parquet | str | Path,
    budget: Budget,
) -> Artifact:
    """An artifact of the same model for another budget, from the probe of the first.

    Nothing that was measured at a site is measured again; the new plan is judged and proved as any.

    Args:
        artifact: Optimized from this model on this data.
        model: The model.
        data: The rows.
        budget: The new limits.

    Raises:
        CheckpointError: The artifact is of another model or other rows.
        BudgetExceeded: Not even the original is within the budget.
    """
    made = artifact.manifest
    return optimize(
        model,
        made.target,
        data=data,
        budget=budget,
        pipeline=made.pipeline,
        batch_sizes=made.batch_sizes,
        seed=made.seed,
        checkpoint=artifact,
    )


def capture(
    model: nn.Module | Program | str | Path,
    inputs: Any = None,
    *,
    signature: Signature | None = None,
    outputs: Sequence[str] | None = None,
) -> Program:
    """Captures a model into a program with a dynamic batch.

    Args:
        model: A trained ``nn.Module``, ``"pkg.module:factory"``, a ``.pt2`` or ``.onnx`` file, or
            a program, of which a copy is returned. A module is captured in eval mode; its mode is
            put back.
        inputs: One example: a tuple of arguments, a dict, or a tensor. Not needed for a file, or
            when the model has ``example_inputs()``.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.

    Raises:
        CaptureError: What can't be captured, where in the user's code, and what to change.
        SignatureError: The example doesn't fit the model.
    """
    kept = tuple(outputs) if outputs is not None else None
    if _is_file(model):
        return load_program(Path(model), signature, kept)
    if isinstance(model, Program):
        return frontend().with_contract(model.clone(), signature, kept)  # type: ignore[no-any-return]
    module = resolve(model) if isinstance(model, str) else model
    program: Program = frontend().capture(module, inputs, signature=signature, outputs=kept)
    return program


def _is_file(model: Any) -> TypeGuard[str | Path]:
    """Whether a model is a path: text with a colon names a factory, unless it is a file's."""
    if isinstance(model, Path):
        return True
    return isinstance(model, str) and (
        ":" not in model or (model.endswith((".pt2", ".onnx")) and Path(model).is_file())
    )


def _blame_inputs(model: nn.Module, inputs: Any) -> None:
    """Raises if a capture failed for what the example holds, rather than for the model.

    A model that can be captured on its own example, or on zeros, has a signature to hold the
    inputs against.

    Raises:
        SignatureError: Which feature has a wrong name, dtype, shape or ids.
        DataError: Which feature is NaN or Inf.
    """
    if inputs is None:
        return
    capture = frontend()
    own = getattr(model, "example_inputs", None)
    try:
        example = own() if callable(own) else _zeros(capture.forward_arguments(model), inputs)
        program: Program = capture.capture(model, example)
    except Exception:  # the model is to blame, and the first error says how
        return
    check_features(program.signature, features_of(program, inputs))


def _zeros(arguments: tuple[str, ...], inputs: Any) -> Any:
    """The same inputs with every number zero, which is a valid id of any table."""
    call = call_of(arguments, inputs)
    structure = Structure.of(call, "input", lambda v: isinstance(v, (Tensor, np.ndarray)))
    leaves = {name: torch.as_tensor(v) for name, v in structure.flatten(call).items()}
    return structure.unflatten({name: torch.zeros_like(v) for name, v in leaves.items()})


def resolve(place: str) -> nn.Module:
    """The model that ``pkg.module:factory`` names: a module, or what a function returns.

    Raises:
        CaptureError: It can't be imported, or gives no module.
    """
    module_name, _, attribute = place.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise CaptureError(f"{place!r} can't be imported: {error}") from error
    if callable(found) and not isinstance(found, nn.Module):
        missing = _required(found)
        if missing:
            raise CaptureError(
                f"{place!r} needs arguments ({', '.join(missing)}), and is called without any. "
                "Name a function that takes none and calls it with what it needs."
            )
        found = found()
    if isinstance(found, nn.Module):
        return found
    hint = " Return the class's instance." if isinstance(found, type) else ""
    if isinstance(found, tuple) and any(isinstance(part, nn.Module) for part in found):
        hint = " Return the model alone; its example_inputs() method gives an example."
    raise CaptureError(f"{place!r} gives a {type(found).__name__}, not a torch.nn.Module.{hint}")


def _required(factory: Callable[..., Any]) -> list[str]:
    """The arguments a factory can't be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # of a class in C, which may take none
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in several]


def load_program(
    path: Path,
    signature: Signature | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Program:
    """The program in a ``.pt2`` or ``.onnx`` file.

    Args:
        path: The file.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.

    Raises:
        CaptureError: The file is missing, holds no program, or one that can't be captured.
    """
    if not path.is_file():
        raise CaptureError(
            f"{path} is not a file; a model is a module, pkg.module:factory, .pt2 or .onnx"
        )
    suffix = path.suffix.lower()
    if suffix not in (".pt2", ".onnx"):
        raise CaptureError(
            f"{path} is no .pt2 file, nor .onnx; save the program with Program.save or "
            "torch.export.save, or the model with torch.onnx.export."
        )
    program: Program = frontend(suffix).load(path, signature=signature, outputs=outputs)
    return program


def _rows(
    program: Program,
    data: Any,
    calibration: Iterable[Any] | None,
    shared: Sequence[str],
) -> Split | None:
    if data is None:
        if calibration is not None:
            raise DataError("calibration rows alone prove nothing; give data= as well.")
        return None
    if isinstance(data, (str, Path)):
        data = Parquet(data)
    if isinstance(data, Parquet):
        data = data.batches(program)
    apart = collect(calibration, program) if calibration is not None else None
    rows = collect(data, program)
    check_shared(rows, shared)
    return split(rows, apart)


def _shrunk(budget: Budget, share: float) -> Budget:
    """The budget with its ΔNE limits times ``share``, so that a plan has room to be wrong."""
    tasks = {task: _shrunk(own, share) for task, own in budget.overrides.items()}
    return replace(budget, ne=None if budget.ne is None else budget.ne * share, tasks=tasks)


def _reachable(smallest: float | None) -> str:
    if smallest is None:
        return "No ΔNE could be measured."
    return (
        f"The smallest reachable ΔNE (upper bound) is {smallest:.3g}; it comes from the backend's "
        "own rounding."
    )


def _least(left: float | None, right: float | None) -> float | None:
    known = [value for value in (left, right) if value is not None]
    return min(known, default=None)
