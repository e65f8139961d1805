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
from typing import Any, NoReturn

from .cli_arguments import add_model, add_trust, model_of, parquet_of, request_of, sizes_of
from .cli_console import ERROR, OK, OVER, new_console, new_table
from .cli_diagnose import add_bisect, add_debug, add_doctor
from .cli_show import add_explain, add_inspect, list_passes, list_targets
from .cli_verify import add_commands
from .errors import BudgetExceeded, RankcError
from .interrupts import Interrupts
from .progress_bar import progress_bar

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
            return _fail(arguments, error, OVER if isinstance(error, BudgetExceeded) else ERROR)
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
        self.exit(ERROR, f"error: {message}\n")


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
    add_inspect(commands)
    _bench_parser(commands)
    passes = commands.add_parser("passes", help="list the passes and named pipelines")
    passes.set_defaults(run=list_passes)
    targets = commands.add_parser("targets", help="list the targets, and what works here")
    targets.set_defaults(run=list_targets)
    build = commands.add_parser("build", help="build an artifact's engine on the serving machine")
    build.add_argument("artifact", type=Path, help="an artifact folder")
    build.set_defaults(run=_build)
    add_explain(commands)
    add_bisect(commands)
    add_debug(commands)
    add_doctor(commands)
    _consolidate_parser(commands)
    add_commands(commands)
    return parser


def _optimize_parser(commands: Any) -> None:
    parser = commands.add_parser("optimize", help="optimize a model and save the artifact")
    add_model(parser)
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


def _bench_parser(commands: Any) -> None:
    parser = commands.add_parser("bench", help="time an artifact, one thread")
    parser.add_argument("artifact", type=Path, help="an artifact folder")
    parser.add_argument("--against", help="pkg.module:factory: also time it eagerly and in fp32")
    parser.add_argument("--batch", default="1,64,512", help="batch sizes (default 1,64,512)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_trust(parser)
    parser.set_defaults(run=_bench)


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
    add_trust(parser)
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
    return OK


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
            model_of(arguments),
            arguments.target,
            data=parquet_of(arguments),
            budget=Budget.parse(arguments.budget) if arguments.budget else None,
            outputs=arguments.outputs.split(",") if arguments.outputs else None,
            request=request_of(arguments),
            pipeline=arguments.pipeline,
            formats=arguments.formats,
            batch_sizes=sizes_of(arguments.batch),
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
        artifact.report.print(new_console())
        print(f"saved to {arguments.out}")
        for sentence in artifact.verdict.failed:
            print(f"OPTIMIZER ERROR: {sentence}")
    return OK if artifact.verdict.status in (Status.PASS, Status.UNVERIFIED) else OVER


def _bench(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import Artifact
    from .artifact.benchmark import compare
    from .capture import resolve

    artifact = Artifact.load(arguments.artifact, trust_code=arguments.trust_code)
    model = resolve(arguments.against) if arguments.against else None
    rows = compare(artifact, model, sizes_of(arguments.batch))
    device = f"CPU emulation, not {artifact.manifest.target}" if artifact.emulated else ""
    if arguments.json:
        print(json.dumps([{**row, "runs on": device} if device else row for row in rows]))
        return OK
    if device:
        print(
            f"{device}: the CPU computes each quantize and dequantize of the file as written, and "
            "how long that takes says nothing of the target"
        )
    names = [name for name in rows[0] if name != "batch"]
    table = new_table("milliseconds a call, one thread, interleaved, medians", "batch", *names)
    for row in rows:
        table.add_row(f"{row['batch']:.0f}", *(str(row[name]) for name in names))
    new_console().print(table)
    return OK


def _build(arguments: argparse.Namespace) -> int:
    from .artifact.completion import complete

    files = complete(arguments.artifact)
    print(f"built {', '.join(files)} in {arguments.artifact}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
