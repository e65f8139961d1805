"""What ``rankc doctor`` finds: would a model work, and what would be optimized; nothing is kept."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ..analysis.sites import linear_sites, mixed_tables, table_sites
from ..artifact.translation import Sample, check_built, check_program
from ..capture import capture
from ..compare.numerics import divergence
from ..compare.ordinary import ordinary
from ..data.delimiters import ragged_of
from ..data.parquet import Parquet
from ..data.ragged import take
from ..data.rows import collect
from ..errors import RankcError, TargetError, TranslationError, UnsupportedError
from ..ir import Program, site_of
from ..ir.pattern import dtype_of, shape_of
from ..ir.scratch import Scratch
from ..pipeline.instruments import Verify
from ..pipeline.passbase import Exactness, PassContext
from ..pipeline.pipeline import Pipeline
from ..registry import backend, frontend
from ..report.records import Kind, Outcome
from ..report.report import Report, readable_bytes
from ..target import Target

#: Scores of the built model may differ from the captured one's by this share of the largest.
TOLERANCE = 1e-4
BATCHES = (1, 3, 64)
#: Operators that run once per row or not at all where fast kernels are wanted.
_SLOW = ("Loop", "Scan", "If", "SequenceConstruct", "SequenceEmpty", "ConcatFromSequence")


@dataclass(frozen=True)
class Stage:
    """One thing that was tried.

    Attributes:
        name: What.
        ok: Whether it worked.
        message: What came of it, or the error.
        seconds: How long it took.
        traceback: Where an unexpected error came from, or what each way of capturing said; empty
            otherwise.
    """

    name: str
    ok: bool
    message: str
    seconds: float
    traceback: str = ""


@dataclass(frozen=True)
class Finding:
    """What would become of one table or linear.

    Attributes:
        site: The user's name of it.
        kind: ``"table"`` or ``"linear"``.
        shape: Rows and width of a table, outputs and inputs of a linear.
        nbytes: Bytes of its weight.
        format: The format it may get on the target; its own where it stays.
        reason: Why.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    format: str
    reason: str


@dataclass
class Diagnosis:
    """Everything that was found.

    Attributes:
        model: What was examined.
        target: The target's name.
        stages: What was tried, in order; those after a failed capture are left out.
        findings: Tables and linears.
        applied: What the exact and rounding passes would do.
        missed: What they leave alone, and why.
        signature: Features and tasks, as in a manifest; empty if capture failed.
        notes: What is missing here to build or to check it, as `optimize` notes it.
    """

    model: str
    target: str
    stages: list[Stage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    signature: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything would work."""
        return all(stage.ok for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {"ok": self.ok, **asdict(self)}


def examine(
    model: str, target: str, data: Parquet | None = None, *, trust_code: bool = False
) -> Diagnosis:
    """Captures, runs the passes that need no data, builds and compares; never raises for a model.

    Args:
        model: ``pkg.module:factory``, or a ``.pt2`` or ``.onnx`` file.
        target: A target's name.
        data: Rows to read and to compare on; made-up rows when None.
        trust_code: Whether a ``.pt2`` file may be opened: it is unpickled, and can do whatever this
            process can.

    Raises:
        TargetError: An unknown target.
    """
    wanted = Target.of(target)
    found = Diagnosis(model, wanted.name)
    run = _Stages(found)
    program: Program | None = run("capture", lambda: _captured(model, trust_code))
    if program is None:
        return found
    found.signature = program.signature.to_json()
    sample: Sample | None = None
    if data is not None:
        sample = run("data", lambda: _read(data, program))
    if sample is None:
        sample = run("rows to compare on", lambda: _made_up(program))
    if sample is None:
        return found
    last: Program = program
    for name in ("exact", "rounding", "default"):
        steps = Pipeline.parse(name).without(Exactness.LOSSY, Exactness.TRAINED)
        made = run(_stage_name(name), partial(_optimized, program, steps, wanted, sample))
        if made is None:
            continue
        last, report = made
        if name == "rounding":
            found.findings = _findings(last, wanted)
        found.applied = [str(remark) for remark in report.said(Kind.APPLIED)]
        found.missed = [str(remark) for remark in report.said(Kind.MISSED)]
    run("build and parity", lambda: _built(program, last, wanted, sample, found.notes))
    return found


def _stage_name(pipeline: str) -> str:
    return "all lossless passes" if pipeline == "default" else f"{pipeline} passes"


class _Stages:
    """Runs one stage after another; whatever is raised becomes a message."""

    def __init__(self, found: Diagnosis) -> None:
        self._found = found

    def __call__(self, name: str, work: Callable[[], tuple[Any, str]]) -> Any:
        started = time.perf_counter()
        result, ok, where = None, False, ""
        try:
            # What a model prints isn't what is printed of it.
            with contextlib.redirect_stdout(sys.stderr):
                result, message = work()
            ok = True
        except RankcError as error:
            message = str(error)
            where = "\n".join(f"tried: {said}" for said in getattr(error, "routes", ()))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a user's code raises, SystemExit included
            first = str(error).strip().split("\n", 1)[0]
            message = f"unexpected {type(error).__name__}: {first}{frontend().user_line(error)}"
            where = "".join(traceback.format_exception(error))
        seconds = round(time.perf_counter() - started, 3)
        self._found.stages.append(Stage(name, ok, message, seconds, where))
        return result


def _captured(model: str, trust_code: bool) -> tuple[Program, str]:
    program = capture(model, trust_code=trust_code)
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    features, tasks = len(program.signature.features), len(program.signature.tasks)
    size = readable_bytes(program.nbytes)
    return program, f"{features} features, {tasks} tasks, {nodes} nodes, {size} of weights"


def _read(data: Parquet, program: Program) -> tuple[Sample, str]:
    rows = collect(data.batches(program), program)
    labels = "labels" if rows.labels else "no labels: its own scores would serve as soft labels"
    return Sample.of(program, rows), f"{len(rows):,} rows, {labels}"


def _made_up(program: Program) -> tuple[Sample, str]:
    sample = Sample.of(program, ordinary(program, 256))
    left = "; ".join(sample.refused[:3])
    return sample, (
        f"{sample.ordinary} ordinary and {len(sample.hostile)} hostile ones are made up"
        + (f"; the model itself raises on others: {left}" if left else "")
    )


def _optimized(
    program: Program, steps: Pipeline, target: Target, sample: Sample
) -> tuple[tuple[Program, Report], str]:
    optimized, report = program.clone(), Report()
    rows = sample.plain.features
    context = PassContext(
        target=target,
        report=report,
        rows=rows,
        hostile=sample.hostile,
        original=program,
        instruments=(Verify(),),
    )
    steps.run(optimized, context)
    bad = [r for r in report.records if r.outcome in (Outcome.FAILED, Outcome.ROLLED_BACK)]
    if bad:
        raise UnsupportedError(
            "; ".join(f"{record.spec} was {record.outcome.value}: {record.note}" for record in bad)
            + ". `rankc optimize` would go on without; rankc bisect finds the rewrite."
        )
    before, after = (
        sum(node.op == "call_function" for node in p.graph.nodes) for p in (program, optimized)
    )
    moved = divergence(program.run(rows), optimized.run(rows))
    message = f"{before} → {after} nodes, scores moved by {moved.relative:.1e} of the largest"
    return (optimized, report), message


def _findings(program: Program, target: Target) -> list[Finding]:
    found = []
    tables, mixed = table_sites(program), mixed_tables(program)
    for name in (*tables, *mixed):
        weight = program.tensor(name)
        site = name.removesuffix(".weight")
        own = str(weight.dtype).removeprefix("torch.")
        chosen, reason = own, _table_reason(name in mixed, weight, target)
        if not reason:
            rows, width = weight.shape
            chosen = target.table_formats[0]
            reason = f"to {readable_bytes(rows * (width + 8))}, if the data allow it"
        found.append(Finding(site, "table", tuple(weight.shape), weight.nbytes, chosen, reason))
    found.extend(_linear(node, program, target) for node in linear_sites(program))
    return found


def _table_reason(mixed: bool, weight: Tensor, target: Target) -> str:
    """Why a table keeps its format; empty if it needn't."""
    if not target.table_formats:
        return f"{target.name} has no table format below fp32"
    if mixed:
        return "is read by something else than lookups"
    if weight.dtype is not torch.float32 or weight.dim() != 2:
        return "is no float32 table of rows"
    return ""


def _linear(node: fx.Node, program: Program, target: Target) -> Finding:
    outputs, inputs = (int(size) for size in shape_of(node.args[1]))
    assert isinstance(node.args[1], fx.Node)
    nbytes = program.tensor(str(node.args[1].target)).nbytes
    own = str(dtype_of(node.args[1])).removeprefix("torch.")
    chosen, reason = own, ""
    if not target.formats:
        reason = f"{target.name} has no format below fp32 for linears"
    elif dtype_of(node.args[1]) is not torch.float32:
        reason = f"its weight is {own}, not float32"
    elif min(outputs, inputs) < target.min_linear:
        reason = f"fewer than {target.min_linear} inputs or outputs: nothing to gain"
    else:
        chosen, reason = target.formats[0], "large enough, if the data allow it and it is faster"
    return Finding(site_of(node), "linear", (outputs, inputs), nbytes, chosen, reason)


def _built(
    original: Program,
    optimized: Program,
    target: Target,
    sample: Sample,
    notes: list[str],
) -> tuple[None, str]:
    """Builds with the target's first backend that can, and scores the rows with what was built.

    What is missing for it here is added to the notes.
    """
    check_program(original, optimized, sample, lossy=False)
    refusals = []
    for name in target.backends:
        scratch = Scratch()
        folder = scratch.path
        try:
            builder = backend(name)
            built = builder.build(optimized, target, folder, {})
            opened, own = builder.open(folder), replace(target, backends=(name,))
            check_built(optimized, opened, sample, BATCHES, name, own)
            worst = _parity(original, opened, sample.plain.features)
            slow = _slow_nodes(folder)
        except (TargetError, TranslationError, UnsupportedError) as error:
            refusals.append(str(error))
            continue
        finally:
            scratch.remove()
        lacking = builder.missing()
        notes += [note for note in built.notes if lacking and lacking in note]
        notes += [f"not served by another backend: {why}" for why in refusals]
        return None, (
            f"{name}: scores at batches {', '.join(map(str, BATCHES))} within {worst:.1e} of the "
            f"largest; {slow or 'no Loop, Sequence or If nodes'}"
        )
    raise UnsupportedError("\n".join(refusals))


def _parity(original: Program, run: Any, rows: Mapping[str, Tensor]) -> float:
    worst, ragged = 0.0, ragged_of(original.signature)
    for size in BATCHES:
        part = take(rows, ragged, slice(0, size))
        want = original.run(part)
        got = run({name: value.numpy() for name, value in part.items()})
        moved = divergence(want, {name: torch.from_numpy(value) for name, value in got.items()})
        worst = max(worst, moved.relative)
        if moved.relative > TOLERANCE:
            raise UnsupportedError(
                f"what was built scores differently at batch {size}: by {moved.relative:.1e} of "
                "the largest score. rankc bisect may find the pass."
            )
    return worst


def _slow_nodes(folder: Path) -> str:
    import onnx_ir as ir

    counts: dict[str, int] = {}
    for path in folder.glob("*.onnx"):
        for node in ir.load(path).graph:
            if node.op_type in _SLOW:
                counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return ", ".join(f"{count} × {kind}" for kind, count in counts.items())
