"""The command line: what the library does, and nothing more.

Exit codes: 0 within budget (or unverified), 1 an error, 2 over budget or inconclusive; 130 and 143
interrupted, by Ctrl-C and by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .cli_verify import add_commands
from .errors import BudgetExceeded, PipelineError, RankcError
from .formats import UNPLACED
from .interrupts import Interrupts
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .data.parquet import Parquet
    from .diagnose.doctor import Diagnosis
    from .ir.program import Program
    from .requests.request import Request

_OK, _ERROR, _OVER = 0, 1, 2
#: As a shell says of one whose reader went away.
_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has read enough; what is still buffered mustn't be tried again at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING, format="%(message)s"
    )
    with Interrupts() as interrupts:
        arguments.interrupts = interrupts
        try:
            code = int(arguments.run(arguments))
            interrupts.check()
        except KeyboardInterrupt:
            return _interrupted(arguments, interrupts)
        except Exception as error:
            if interrupts.came:  # a library made another error of it
                return _interrupted(arguments, interrupts)
            if not isinstance(error, RankcError):
                raise
            return _fail(arguments, error, _OVER if isinstance(error, BudgetExceeded) else _ERROR)
        return code


def _interrupted(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    saved = getattr(arguments, "saved", None)
    said = f"{saved} is complete" if saved else "nothing was written"
    print(f"interrupted; {said}", file=sys.stderr)
    return interrupts.code


def _fail(arguments: argparse.Namespace, error: RankcError, code: int) -> int:
    if getattr(arguments, "json", False):
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        print(f"error: {error}", file=sys.stderr)
    for said in getattr(error, "routes", ()) if arguments.verbose else ():
        print(f"tried: {said}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Exits with 1 on a command line that can't be read: 2 says over budget."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and what is wrong."""
        self.print_usage(sys.stderr)
        self.exit(_ERROR, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rankc",
        description="A compiler for ranking models: faster artifacts, ranking quality proved.",
        epilog="exit codes: 0 within budget or unverified, 1 an error, 2 over budget or "
        "inconclusive",
    )
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _optimize_parser(commands)
    _inspect_parser(commands)
    _bench_parser(commands)
    passes = commands.add_parser("passes", help="list the passes and named pipelines")
    passes.set_defaults(run=_passes)
    targets = commands.add_parser("targets", help="list the targets, and what works here")
    targets.set_defaults(run=_targets)
    build = commands.add_parser("build", help="build an artifact's engine on the serving machine")
    build.add_argument("artifact", type=Path, help="an artifact folder")
    build.set_defaults(run=_build)
    _explain_parser(commands)
    _bisect_parser(commands)
    _debug_parser(commands)
    _doctor_parser(commands)
    _consolidate_parser(commands)
    add_commands(commands)
    return parser


def _trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="open files that can run code: a .pt2, a compiled package or engine",
    )


def _optimize_parser(commands: Any) -> None:
    parser = commands.add_parser("optimize", help="optimize a model and save the artifact")
    _model_arguments(parser)
    parser.add_argument("--budget", default=None, help="limits, such as ne=0.0002,auc=0.001")
    parser.add_argument("--out", required=True, type=Path, help="the new artifact folder")
    parser.add_argument("--outputs", help="the outputs to keep, comma-separated (default: served)")
    parser.add_argument(
        "--request",
        nargs="?",
        const="",
        metavar="FEATURES",
        help="also take requests, whose candidates share these features, comma-separated "
        "(alone: those that are known to be the user's)",
    )
    parser.add_argument(
        "--precompute-items",
        action="store_true",
        help="requests may take what was computed of each candidate ahead",
    )
    parser.add_argument(
        "--formats",
        default="auto",
        choices=["auto", "none"],
        help="none leaves every table and linear in its own format (default auto)",
    )
    parser.add_argument("--strict", action="store_true", help="raise when a pass misbehaves")
    parser.add_argument("--seed", type=int, default=0, help="for whatever samples (default 0)")
    parser.add_argument("--batch", default="64,512", help="batch sizes served (default 64,512)")
    parser.add_argument("--disable", action="append", default=[], help="a pass to leave out")
    parser.add_argument("--dump", type=Path, help="folder for the program after every pass")
    parser.add_argument("--checkpoint", type=Path, help="file to resume an interrupted probe from")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print only the verdict")
    parser.set_defaults(run=_optimize)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="pkg.module:factory, or a .pt2 or .onnx file")
    parser.add_argument("--target", default="cpu-int8", help="a target (default cpu-int8)")
    parser.add_argument("--data", type=Path, help="parquet, columns named like the features")
    parser.add_argument(
        "--label", action="append", default=[], help="label column, or task=column; repeatable"
    )
    parser.add_argument("--group", help="column of the user or request a row belongs to")
    parser.add_argument("--time", help="column of when a row came; rows are sorted by it")
    parser.add_argument("--cohort", action="append", default=[], help="column judged by slice")
    parser.add_argument("--pipeline", default="default", help="passes (default: default)")
    parser.add_argument(
        "--cache", type=Path, help="folder of measured kernel times (default ~/.cache/rankc)"
    )
    _trust_argument(parser)


def _inspect_parser(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show an artifact, or a model's signature")
    parser.add_argument(
        "what", help="an artifact folder, or a model: pkg.module:factory, .pt2 or .onnx"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    _trust_argument(parser)
    parser.set_defaults(run=_inspect)


def _bench_parser(commands: Any) -> None:
    parser = commands.add_parser("bench", help="time an artifact, one thread")
    parser.add_argument("artifact", type=Path, help="an artifact folder")
    parser.add_argument("--against", help="pkg.module:factory: also time it eagerly and in fp32")
    parser.add_argument("--batch", default="1,64,512", help="batch sizes (default 1,64,512)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    _trust_argument(parser)
    parser.set_defaults(run=_bench)


def _explain_parser(commands: Any) -> None:
    parser = commands.add_parser("explain", help="say why tables and linears have their formats")
    parser.add_argument("artifact", type=Path, help="an artifact folder")
    parser.add_argument("site", nargs="?", help="a module's name, such as over.0 (default: all)")
    parser.add_argument("--pareto", action="store_true", help="list the plans for other budgets")
    parser.add_argument("--plot", type=Path, help="draw those plans: a .png, .svg or .pdf file")
    _trust_argument(parser)
    parser.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import Artifact

    artifact = Artifact.load(arguments.artifact, trust_code=arguments.trust_code)
    if not arguments.pareto and arguments.plot is None:
        print(artifact.explain(arguments.site))
        return _OK
    curve = artifact.pareto()
    if arguments.plot is not None:
        print(f"drawn to {curve.save(arguments.plot)}")
    if arguments.pareto:
        print(curve)
    return _OK


def _bisect_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bisect", help="find the pass, then the rewrite, that moves the scores"
    )
    _model_arguments(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="a score may move by this share of the largest score (default 1e-4)",
    )
    parser.set_defaults(run=_bisect)


def _debug_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "debug", help="tell at which site an artifact's scores part from the original's"
    )
    parser.add_argument("artifact", type=Path, help="an artifact folder")
    parser.add_argument(
        "--against", required=True, help="the original: pkg.module:factory, or a .pt2 or .onnx file"
    )
    parser.add_argument("--data", type=Path, help="parquet, columns named like the features")
    parser.add_argument("--rows", type=int, default=512, help="rows to run (default 512)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    _trust_argument(parser)
    parser.set_defaults(run=_debug)


def _doctor_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", help="tell whether a model would work and what would be optimized"
    )
    parser.add_argument("model", help="pkg.module:factory, or a .pt2 or .onnx file")
    parser.add_argument("--target", default="cpu-int8", help="a target (default cpu-int8)")
    parser.add_argument("--data", type=Path, help="parquet, columns named like the features")
    parser.add_argument(
        "--label", action="append", default=[], help="label column, or task=column; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument(
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show where an unexpected error came from",
    )
    _trust_argument(parser)
    parser.set_defaults(run=_doctor)


def _consolidate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "consolidate", help="make one program of several models over one set of features"
    )
    parser.add_argument("models", nargs="+", help="pkg.module:factory, or .pt2 or .onnx files")
    parser.add_argument("--names", help="what to call them, comma-separated")
    parser.add_argument(
        "--apart", action="append", default=[], help="a feature that stays an input of each model"
    )
    parser.add_argument("--out", required=True, type=Path, help="the .pt2 file to write")
    _trust_argument(parser)
    parser.set_defaults(run=_consolidate)


def _consolidate(arguments: argparse.Namespace) -> int:
    from .heads.consolidate import consolidate

    if arguments.out.suffix != ".pt2":
        raise RankcError(f"--out takes a .pt2 file, got {arguments.out}")
    names = arguments.names.split(",") if arguments.names else None
    program = consolidate(
        arguments.models, names, apart=arguments.apart, trust_code=arguments.trust_code
    )
    arguments.interrupts.check()
    program.save(arguments.out)
    arguments.saved = arguments.out
    for note in program.notes:
        print(note)
    print(f"saved to {arguments.out}; optimize it as any other model")
    return _OK


def _optimize(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import check_destination
    from .driver import optimize
    from .pipeline.instruments import Disable, Dump
    from .pipeline.passbase import Instrument
    from .quality.budget import Budget
    from .quality.verdict import Status
    from .report.report import Report

    check_destination(arguments.out)
    instruments: list[Instrument] = [Disable(tuple(arguments.disable))]
    if arguments.dump is not None:
        instruments.append(Dump(arguments.dump))
    with progress_bar(hidden=arguments.quiet or arguments.json) as progress:
        artifact = optimize(
            arguments.model,
            arguments.target,
            data=_parquet(arguments),
            budget=Budget.parse(arguments.budget) if arguments.budget else None,
            outputs=arguments.outputs.split(",") if arguments.outputs else None,
            request=_request(arguments),
            pipeline=arguments.pipeline,
            formats=arguments.formats,
            batch_sizes=_sizes(arguments.batch),
            strict=arguments.strict,
            checkpoint=arguments.checkpoint,
            cache=arguments.cache,
            seed=arguments.seed,
            trust_code=arguments.trust_code,
            instruments=instruments,
            progress=arguments.interrupts.checking(progress),
        )
    arguments.interrupts.check()
    arguments.saved = artifact.save(arguments.out)
    assert isinstance(artifact.report, Report)
    if arguments.json:
        print(json.dumps(artifact.report.to_json()))
    elif arguments.quiet:
        print(artifact.verdict)
    else:
        artifact.report.print(_console())
        print(f"saved to {arguments.out}")
        for sentence in artifact.verdict.failed:
            print(f"OPTIMIZER ERROR: {sentence}")
    return _OK if artifact.verdict.status in (Status.PASS, Status.UNVERIFIED) else _OVER


def _request(arguments: argparse.Namespace) -> Request | None:
    from .requests.request import Request

    if arguments.request is None:
        if arguments.precompute_items:
            raise RankcError("--precompute-items is for requests; give --request as well")
        return None
    names = [name.strip() for name in arguments.request.split(",") if name.strip()]
    return Request(names or None, arguments.precompute_items)


def _parquet(arguments: argparse.Namespace) -> Parquet | None:
    from .data.parquet import Parquet

    if arguments.data is None:
        return None
    return Parquet(
        arguments.data,
        tuple(arguments.label),
        arguments.group,
        tuple(arguments.cohort),
        arguments.time,
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from .artifact.integrity import REPORT_TEXT, read_text
    from .artifact.manifest import read_manifest

    place = Path(arguments.what)
    if (":" in arguments.what and not place.exists()) or place.suffix in (".pt2", ".onnx"):
        return _inspect_model(arguments)
    folder = Path(arguments.what)
    manifest = read_manifest(folder)
    if arguments.json:
        print(json.dumps(manifest.to_json()))
        return _OK
    report = read_text(folder / REPORT_TEXT)
    console = _console()
    console.print(report, markup=False, highlight=False)
    console.print(_facts(manifest.to_json()))
    return _OK


def _facts(manifest: dict[str, Any]) -> Table:
    from .report.report import readable_bytes

    table = _table("artifact", "", "")
    for name in ("target", "backend", "pipeline", "budget", "batch_sizes", "seed"):
        table.add_row(name, str(manifest[name]))
    if manifest["request"]:
        table.add_row("requests share", ", ".join(manifest["request"]["shared"]))
    table.add_row("recipe", ", ".join(manifest["recipe"]))
    for name, facts in manifest["files"].items():
        table.add_row(name, f"{readable_bytes(facts['bytes'])}, sha256 {facts['sha256'][:16]}…")
    for group in ("versions", "fingerprints"):
        for name, value in manifest[group].items():
            table.add_row(name, value)
    return table


def _inspect_model(arguments: argparse.Namespace) -> int:
    program = _capture(arguments.what, arguments.trust_code)
    signature = program.signature
    if arguments.json:
        print(json.dumps(signature.to_json()))
        return _OK
    features = _table("features", "name", "kind", "dtype", "shape", "side", "ids below", "tables")
    for feature in signature:
        features.add_row(
            feature.name,
            feature.kind.value,
            feature.dtype,
            str(list(feature.shape)),
            feature.side.value,
            _shortened(feature.cardinalities),
            _shortened(feature.tables),
        )
    tasks = _table("tasks", "name", "output", "kind", "score")
    for task in signature.tasks:
        column = "" if task.column is None else f"[:, {task.column}]"
        kind = f"{task.kind.value}, auxiliary" if task.auxiliary else task.kind.value
        tasks.add_row(task.name, task.output + column, kind, task.score.value)
    console = _console()
    console.print(features)
    console.print(tasks)
    return _OK


def _shortened(values: Sequence[Any], shown: int = 4) -> str:
    text = ", ".join(str(value) for value in values[:shown])
    return text + (f" … ({len(values)})" if len(values) > shown else "")


def _bench(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import Artifact
    from .artifact.benchmark import compare
    from .capture import resolve

    artifact = Artifact.load(arguments.artifact, trust_code=arguments.trust_code)
    model = resolve(arguments.against) if arguments.against else None
    rows = compare(artifact, model, _sizes(arguments.batch))
    device = f"CPU emulation, not {artifact.manifest.target}" if artifact.emulated else ""
    if arguments.json:
        print(json.dumps([{**row, "runs on": device} if device else row for row in rows]))
        return _OK
    if device:
        print(
            f"{device}: the CPU computes each quantize and dequantize of the file as written, and "
            "how long that takes says nothing of the target"
        )
    names = [name for name in rows[0] if name != "batch"]
    table = _table("milliseconds a call, one thread, interleaved, medians", "batch", *names)
    for row in rows:
        table.add_row(f"{row['batch']:.0f}", *(str(row[name]) for name in names))
    _console().print(table)
    return _OK


def _passes(arguments: argparse.Namespace) -> int:
    from .pipeline.registry import named_pipelines, pass_class, pass_names

    table = _table("passes", "name", "promise", "what it does")
    broken = []
    for name in pass_names():
        try:
            found = pass_class(name)
        except PipelineError as error:
            broken.append(str(error))
            continue
        summary = (found.__doc__ or "").strip().split("\n", 1)[0]
        table.add_row(name, found.exactness.value, summary)
    console = _console()
    console.print(table)
    for name, text in named_pipelines().items():
        console.print(f"{name} = {text}", markup=False, highlight=False)
    for line in broken:
        console.print(line, markup=False, highlight=False)
    return _OK


def _targets(arguments: argparse.Namespace) -> int:
    from .registry import backend
    from .target import TARGETS

    table = _table("targets", "name", "device", "linears", "tables", "built here", "run here")
    lines: dict[str, None] = {}
    for target in TARGETS.values():
        backends = [backend(name) for name in target.backends]
        here = [b.here(target) for b in backends]
        lines.update((f"{b.name}: {b.missing()}", None) for b in backends if b.missing())
        table.add_row(
            target.name,
            target.device.name,
            ", ".join((*target.formats, UNPLACED)),
            ", ".join((*target.table_formats, UNPLACED)),
            "; ".join(h.built for h in here if h.built) or "nothing",
            next((h.run for h in here if h.run), "no"),
        )
    console = _console()
    console.print(table)
    for line in lines:
        console.print(f"for more, {line}", markup=False, highlight=False)
    return _OK


def _build(arguments: argparse.Namespace) -> int:
    from .artifact.completion import complete

    files = complete(arguments.artifact)
    print(f"built {', '.join(files)} in {arguments.artifact}")
    return _OK


def _bisect(arguments: argparse.Namespace) -> int:
    from .compare.numerics import divergence
    from .compare.ordinary import ordinary
    from .data.rows import collect, split
    from .diagnose.bisect import bisect
    from .pipeline.passbase import PassContext
    from .pipeline.pipeline import Pipeline
    from .quality.budget import Budget
    from .quality.judge import Judge
    from .registry import served
    from .target import Target

    program = _capture(arguments.model, arguments.trust_code)
    parquet = _parquet(arguments)
    rows = (
        ordinary(program, 256)
        if parquet is None
        else split(collect(parquet.batches(program), program)).calibration
    )
    reference = program.run(rows.features)

    def good(candidate: Program) -> bool:
        moved = divergence(reference, candidate.run(rows.features))
        return bool(moved.relative <= arguments.tolerance)

    # Lossy passes must run to be caught, so what judges them here lets nearly everything pass.
    lenient = Budget(ne=0.999, max_rms_shift=None, two_sided=False)
    judge = None if parquet is None else Judge.of(program, rows, lenient)
    goal = Target.of(arguments.target)
    target = served(goal, goal.backends[0])
    context = PassContext(target=target, calibration=(rows.features,), judge=judge)
    context.cache = arguments.cache
    culprit = bisect(program, Pipeline.parse(arguments.pipeline), good, context)
    print(
        f"no pass moves a score by more than {arguments.tolerance:g}"
        if culprit is None
        else f"first to move a score by more than {arguments.tolerance:g}: {culprit}"
    )
    return _OK if culprit is None else _OVER


def _debug(arguments: argparse.Namespace) -> int:
    from .diagnose.debug import debug

    if arguments.rows < 2:
        raise RankcError(f"--rows takes a number of at least 2, got {arguments.rows}")
    found = debug(
        arguments.against,
        arguments.artifact,
        arguments.data,
        rows=arguments.rows,
        trust_code=arguments.trust_code,
    )
    if arguments.json:
        print(json.dumps(found.to_json()))
        return _OK
    table = _table(
        f"{found.rows:,} rows in lock-step",
        *("site", "format", "isolated", "accumulated", "shifts scores by", "beyond range"),
    )
    for one in found.findings:
        numbers = (f"{v:.2g}" for v in (one.isolated, one.accumulated, one.shift))
        table.add_row(one.site, ", ".join(one.formats), *numbers, f"{one.saturated:.2%}")
    console = _console()
    console.print(table)
    for line in (found.summary, found.sentence):
        console.print(line, markup=False, highlight=False)
    return _OK


def _doctor(arguments: argparse.Namespace) -> int:
    from .data.parquet import Parquet
    from .diagnose.doctor import examine

    data = None
    if arguments.data is not None:
        data = Parquet(arguments.data, tuple(arguments.label))
    found = examine(arguments.model, arguments.target, data, trust_code=arguments.trust_code)
    if arguments.json:
        print(json.dumps(found.to_json()))
    else:
        _print_diagnosis(found, arguments.verbose)
    return _OK if found.ok else _ERROR


def _print_diagnosis(found: Diagnosis, verbose: bool) -> None:
    from rich.text import Text

    from .report.report import readable_bytes

    console = _console()
    stages = _table(f"{found.model} for {found.target}", "", "stage", "what came of it", "seconds")
    for stage in found.stages:
        stages.add_row(
            "ok" if stage.ok else "FAILED", stage.name, Text(stage.message), f"{stage.seconds:.2f}"
        )
    console.print(stages)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    for kind in ("table", "linear"):
        rows = [finding for finding in found.findings if finding.kind == kind]
        if not rows:
            continue
        table = _table(f"{kind}s", "name", "shape", "bytes", "format", "why")
        for row in rows:
            shape, size = " × ".join(map(str, row.shape)), readable_bytes(row.nbytes)
            table.add_row(Text(row.site), shape, size, row.format, row.reason)
        console.print(table)
    for title, said in (("would be done", found.applied), ("would be left alone", found.missed)):
        if said:
            console.print(f"{title}:")
            for line in said:
                console.print(f"  {line}", markup=False, highlight=False)
    for stage in found.stages:
        if stage.traceback and verbose:
            console.print(stage.traceback, markup=False, highlight=False)
        elif stage.traceback:
            console.print(f"--verbose shows where the error of {stage.name} came from")
    console.print("everything would work" if found.ok else "not everything would work")


def _capture(place: str, trust_code: bool) -> Program:
    from .capture import capture

    return capture(place, trust_code=trust_code)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise RankcError(f"--batch takes positive numbers such as 64,512, got {text!r}")
    return sizes


def _console() -> Console:
    from rich.console import Console

    class Piped(Console):
        """Leaves a reader that went away to `main`, where rich would exit as after an error."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped()


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


if __name__ == "__main__":
    sys.exit(main())
