"""`rankc bisect`, `rankc debug` and `rankc doctor`: why not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_arguments import add_model, add_trust, declared_model, parquet_of
from .cli_console import ERROR, OK, OVER, new_console, new_table
from .errors import RankcError

if TYPE_CHECKING:
    from .diagnose.doctor import Diagnosis
    from .ir.program import Program


def add_bisect(commands: Any) -> None:
    """Adds ``bisect``."""
    parser = commands.add_parser(
        "bisect", help="find the pass, then the rewrite, that moves the scores"
    )
    add_model(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="a score may move by this share of the largest score (default 1e-4)",
    )
    parser.set_defaults(run=_bisect)


def add_debug(commands: Any) -> None:
    """Adds ``debug``."""
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
    add_trust(parser)
    parser.set_defaults(run=_debug)


def add_doctor(commands: Any) -> None:
    """Adds ``doctor``."""
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
    add_trust(parser)
    parser.set_defaults(run=_doctor)


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

    program = declared_model(arguments)
    parquet = parquet_of(arguments)
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
    wanted = Target.of(arguments.target)
    target = served(wanted, wanted.backends[0])
    context = PassContext(target=target, calibration=(rows.features,), judge=judge)
    context.cache = arguments.cache
    culprit = bisect(program, Pipeline.parse(arguments.pipeline), good, context)
    print(
        f"no pass moves a score by more than {arguments.tolerance:g}"
        if culprit is None
        else f"first to move a score by more than {arguments.tolerance:g}: {culprit}"
    )
    return OK if culprit is None else OVER


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
        return OK
    table = new_table(
        f"{found.rows:,} rows in lock-step",
        *("site", "format", "isolated", "accumulated", "shifts scores by", "beyond range"),
    )
    for one in found.findings:
        numbers = (f"{v:.2g}" for v in (one.isolated, one.accumulated, one.shift))
        table.add_row(one.site, ", ".join(one.formats), *numbers, f"{one.saturated:.2%}")
    console = new_console()
    console.print(table)
    for line in (found.summary, found.sentence):
        console.print(line, markup=False, highlight=False)
    return OK


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
    return OK if found.ok else ERROR


def _print_diagnosis(found: Diagnosis, verbose: bool) -> None:
    from rich.text import Text

    from .report.report import readable_bytes

    console = new_console()
    stages = new_table(
        f"{found.model} for {found.target}", "", "stage", "what came of it", "seconds"
    )
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
        table = new_table(f"{kind}s", "name", "shape", "bytes", "format", "why")
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
