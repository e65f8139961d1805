"""`rankc inspect`, `explain`, `passes` and `targets`: what there is, and what was decided."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_arguments import add_trust, capture_of
from .cli_console import OK, new_console, new_table
from .errors import PipelineError
from .formats import UNPLACED

if TYPE_CHECKING:
    from rich.table import Table


def add_inspect(commands: Any) -> None:
    """Adds ``inspect``."""
    parser = commands.add_parser("inspect", help="show an artifact, or a model's signature")
    parser.add_argument(
        "what", help="an artifact folder, or a model: pkg.module:factory, .pt2 or .onnx"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_trust(parser)
    parser.set_defaults(run=_inspect)


def add_explain(commands: Any) -> None:
    """Adds ``explain``."""
    parser = commands.add_parser("explain", help="say why tables and linears have their formats")
    parser.add_argument("artifact", type=Path, help="an artifact folder")
    parser.add_argument("site", nargs="?", help="a module's name, such as over.0 (default: all)")
    parser.add_argument("--pareto", action="store_true", help="list the plans for other budgets")
    parser.add_argument("--plot", type=Path, help="draw those plans: a .png, .svg or .pdf file")
    add_trust(parser)
    parser.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import Artifact

    artifact = Artifact.load(arguments.artifact, trust_code=arguments.trust_code)
    if not arguments.pareto and arguments.plot is None:
        print(artifact.explain(arguments.site))
        return OK
    curve = artifact.pareto()
    if arguments.plot is not None:
        print(f"drawn to {curve.save(arguments.plot)}")
    if arguments.pareto:
        print(curve)
    return OK


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
        return OK
    report = read_text(folder / REPORT_TEXT)
    console = new_console()
    console.print(report, markup=False, highlight=False)
    console.print(_facts(manifest.to_json()))
    return OK


def _facts(manifest: dict[str, Any]) -> Table:
    from .report.report import readable_bytes

    table = new_table("artifact", "", "")
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
    program = capture_of(arguments.what, arguments.trust_code)
    signature = program.signature
    if arguments.json:
        print(json.dumps(signature.to_json()))
        return OK
    features = new_table(
        "features", "name", "kind", "dtype", "shape", "side", "ids below", "tables"
    )
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
    tasks = new_table("tasks", "name", "output", "kind", "score")
    for task in signature.tasks:
        column = "" if task.column is None else f"[:, {task.column}]"
        kind = f"{task.kind.value}, auxiliary" if task.auxiliary else task.kind.value
        tasks.add_row(task.name, task.output + column, kind, task.score.value)
    console = new_console()
    console.print(features)
    console.print(tasks)
    return OK


def _shortened(values: Sequence[Any], shown: int = 4) -> str:
    text = ", ".join(str(value) for value in values[:shown])
    return text + (f" … ({len(values)})" if len(values) > shown else "")


def list_passes(arguments: argparse.Namespace) -> int:
    """``rankc passes``."""
    from .pipeline.registry import named_pipelines, pass_class, pass_names

    table = new_table("passes", "name", "promise", "what it does")
    broken = []
    for name in pass_names():
        try:
            found = pass_class(name)
        except PipelineError as error:
            broken.append(str(error))
            continue
        summary = (found.__doc__ or "").strip().split("\n", 1)[0]
        table.add_row(name, found.exactness.value, summary)
    console = new_console()
    console.print(table)
    for name, text in named_pipelines().items():
        console.print(f"{name} = {text}", markup=False, highlight=False)
    for line in broken:
        console.print(line, markup=False, highlight=False)
    return OK


def list_targets(arguments: argparse.Namespace) -> int:
    """``rankc targets``."""
    from .registry import backend
    from .target import TARGETS

    table = new_table("targets", "name", "device", "linears", "tables", "built here", "run here")
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
    console = new_console()
    console.print(table)
    for line in lines:
        console.print(f"for more, {line}", markup=False, highlight=False)
    return OK
