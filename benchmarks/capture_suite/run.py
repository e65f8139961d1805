"""Captures every model of third-party libraries and writes what came of it.

Run by ``make capture-suite``; ``--library`` and ``--only`` run a part without writing the table. A
library that isn't installed is left out, and said to be.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
LIBRARIES = {
    "deepctr-torch": "deepctr_cases",
    "torch-rechub": "rechub_cases",
    "torchfm": "torchfm_cases",
    "mlgb": "mlgb_cases",
    "rec-pangu": "pangu_cases",
    "pytorch-widedeep": "widedeep_cases",
    "torchrec": "torchrec_cases",
}
BATCHES = (1, 3, 64)
#: Largest difference over the largest score.
TOLERANCE = 1e-5
_TARGET = "cpu-fp32"


def examine(case: Any) -> dict[str, Any]:
    """What one model does, step by step, up to the first step that fails."""
    import torch
    from case import as_if_trained
    from rankc.frontends.export import capture
    from rankc.optimizer.pipeline.passbase import PassContext
    from rankc.optimizer.pipeline.pipeline import Pipeline
    from rankc.optimizer.target import Target

    result: dict[str, Any] = {"library": case.library, "model": case.name}
    torch.manual_seed(0)
    try:
        model = as_if_trained(case.build())
        batches = {size: case.rows(size) for size in BATCHES}
        expected = {BATCHES[-1]: score(model, batches[BATCHES[-1]])}
    except Exception as error:
        return {**result, "eager": False, "error": f"{type(error).__name__}: {error}"}
    result["eager"] = True
    for size in BATCHES[:-1]:
        # A squeeze() without a dimension breaks several models at one row: nothing to compare with.
        try:
            expected[size] = score(model, batches[size])
        except Exception:
            result.setdefault("fails", []).append(size)
    start = time.process_time()
    try:
        program = capture(model, batches[BATCHES[-1]])
        result["seconds"] = time.process_time() - start
        result["route"] = program.module.meta.get("route", "")
        result["notes"] = list(program.notes)
        result["nodes"] = len(program.graph.nodes)
        found = {size: tensors(program(*rows)) for size, rows in batches.items()}
        result["parity"] = worst(expected, found)
        context = PassContext(target=Target.of(_TARGET), strict=True)
        Pipeline.parse("rounding").run(program, context)
        result.update(onnx(program, batches, expected))
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        result["trace"] = traceback.format_exc()
    result["total"] = time.process_time() - start
    return result


def score(model: Any, rows: tuple[Any, ...]) -> list[Any]:
    """The model's own scores; dropout that is on in eval mode, which capture leaves out, is off."""
    import torch
    from rankc.frontends.dropout import without_dropout

    with torch.no_grad(), without_dropout([]):
        return tensors(model(*rows))


def onnx(program: Any, batches: Mapping[int, Any], expected: Mapping[int, Any]) -> dict[str, Any]:
    """ONNX Runtime's scores against the model's, and what the file holds."""
    import onnx as onnx_package
    import torch
    from rankc.backends.onnx.files import MODEL
    from rankc.backends.onnxruntime.backend import OnnxRuntime
    from rankc.optimizer.data.rows import features_of
    from rankc.optimizer.target import Target

    with tempfile.TemporaryDirectory() as folder:
        OnnxRuntime().build(program, Target.of(_TARGET), Path(folder), {})
        runner = OnnxRuntime().open(Path(folder), threads=1)
        found = {}
        for size, rows in batches.items():
            features = features_of(program, rows)
            scores = runner({name: value.numpy() for name, value in features.items()})
            named = {name: torch.from_numpy(scores[name]) for name in program.signature.outputs}
            found[size] = tensors(program.outputs.unflatten(named))
        graph = onnx_package.load(str(Path(folder) / MODEL), load_external_data=False).graph
    kinds = [node.op_type for node in nodes(graph)]
    control = [k for k in kinds if k in ("Loop", "Scan", "If") or "Sequence" in k]
    return {
        "onnx": worst(expected, found),
        "control": len(control),
        "operators": len(kinds),
        "domain": domain_ops(program),
    }


def domain_ops(program: Any) -> list[str]:
    """The names of the ops in the program that stand for a whole interaction or lookup."""
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    return sorted({name.split(".")[1] for name in called if name.startswith("rankc.")})


def nodes(graph: Any) -> Iterator[Any]:
    """Every node, those inside of control flow included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def tensors(result: Any) -> list[Any]:
    """The per-row tensors of nested outputs; a loss of the batch isn't a score."""
    import numpy as np
    import torch

    if isinstance(result, torch.Tensor | np.ndarray):
        found = torch.as_tensor(result)
        return [found] if found.dim() else []
    if isinstance(result, Mapping):
        return [t for value in result.values() for t in tensors(value)]
    return [t for value in result or () for t in tensors(value)]


def worst(expected: Mapping[int, Any], found: Mapping[int, Any]) -> float:
    """The largest difference over all batches, relative to the largest score."""
    found_worst = 0.0
    for size, wanted in expected.items():
        for want, got in zip(wanted, found[size], strict=True):
            if want.shape != got.shape:
                return float("inf")
            scale = max(float(want.abs().max()), 1e-6)
            found_worst = max(
                found_worst, float((want.double() - got.double()).abs().max()) / scale
            )
    return found_worst


def version(package: str) -> str:
    """A package's version; empty where it isn't installed."""
    try:
        return version_of(package)
    except PackageNotFoundError:
        return ""


def run_library(library: str, only: str) -> list[dict[str, Any]]:
    """All of one library's models, in this process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    results = []
    for case in importlib.import_module(LIBRARIES[library]).CASES:
        if only and only.lower() not in case.name.lower():
            continue
        results.append(examine(case))
        sys.stderr.write(line(results[-1]) + "\n")
    return results


def ok(result: Mapping[str, Any], key: str) -> bool:
    """Whether a comparison was made and is within the tolerance."""
    return bool(result.get(key, 1.0) <= TOLERANCE)


def line(result: Mapping[str, Any]) -> str:
    """One result for the terminal."""
    fields = (
        f"{result['library']:14}{result['model']:28}",
        "eager " if result["eager"] else "no eager ",
        f"{result.get('route', '-'):10} {result.get('nodes', 0):4} nodes",
        f"parity {result.get('parity', float('nan')):.0e}",
        f"onnx {result.get('onnx', float('nan')):.0e}",
        f"control {result.get('control', '-')}",
        f"{result.get('seconds', 0):.1f} s",
        result.get("error", "")[:400],
    )
    return "  ".join(fields)


def summary(results: list[dict[str, Any]]) -> list[str]:
    """One row per library."""
    rows = [
        "| library | version | tried | runs in eager | captured with parity "
        "| ONNX Runtime parity | with Loop, Sequence or If |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {**{name: [name] for name in LIBRARIES}, "**all**": list(LIBRARIES)}
    for title, members in groups.items():
        mine = [r for r in results if r["library"] in members]
        counts = (
            len(mine),
            sum(r["eager"] for r in mine),
            sum(ok(r, "parity") for r in mine),
            sum(ok(r, "onnx") for r in mine),
            sum(r.get("control", 0) > 0 for r in mine),
        )
        number = (version(title) or "not installed") if title in LIBRARIES else ""
        rows.append(f"| {title} | {number} | {' | '.join(map(str, counts))} |")
    return rows


def document(results: list[dict[str, Any]]) -> str:
    """The page docs/capture.md."""
    packages = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")
    made = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        (HERE / "preface.md").read_text().rstrip(),
        "",
        "## The capture suite",
        "",
        f"Measured by `make capture-suite` with {made}. Differences are the largest over batches "
        f"of {', '.join(map(str, BATCHES))} rows, relative to the largest score; at most "
        f"{TOLERANCE:.0e} counts as parity. ONNX is what the pipeline `rounding` leaves, in ONNX "
        "Runtime. Times are seconds of one core.",
        "",
        *summary(results),
        "",
        "| library | model | route | nodes | difference | ONNX difference | ONNX operators "
        "| Loop, Sequence, If | domain operators | capture s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [
            r["library"],
            r["model"]
            + ("".join(f" (the model itself fails at {n} row)" for n in r.get("fails", ())))
            + (" (dropout in eval left out)" if "drops in eval" in str(r.get("notes")) else "")
            + (" (loss left out)" if "a loss" in str(r.get("notes")) else ""),
            r.get("route", "none" if r["eager"] else "doesn't run"),
            str(r.get("nodes", "")),
            f"{r['parity']:.0e}" if "parity" in r else "",
            f"{r['onnx']:.0e}" if "onnx" in r else "",
            str(r.get("operators", "")),
            str(r.get("control", "")),
            ", ".join(r.get("domain", ())),
            f"{r['seconds']:.1f}" if "seconds" in r else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    failed = [r for r in results if "error" in r]
    if failed:
        lines += ["", "## What isn't captured, and what rankc says", ""]
        for r in failed:
            said = " ".join(shortened(r["error"]).split())
            why = "" if r["eager"] else " doesn't run in eager"
            lines.append(f"- **{r['library']} {r['model']}**{why}: {said}")
    return "\n".join(lines) + "\n"


def shortened(message: str) -> str:
    """A message with the paths of this machine cut to what lies inside a package."""
    for folder in {str(Path(p)) for p in sys.path if p.endswith("site-packages")}:
        message = message.replace(folder + "/", "")
    return message


def main() -> None:
    """Runs the suite, each library in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=sorted(LIBRARIES))
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    if options.library:
        results = run_library(options.library, options.only)
        if options.out:
            options.out.write_text(json.dumps(results))
        for result in results if options.only else ():
            sys.stderr.write(result.get("trace", ""))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        here = [library for library in LIBRARIES if version(library)]
        files = {library: Path(folder) / f"{library}.json" for library in here}
        running = [
            subprocess.Popen([sys.executable, __file__, "--library", library, "--out", str(out)])
            for library, out in files.items()
        ]
        # A process that dies leaves no file, and its models out of the table.
        codes = [process.wait() for process in running]
        for out in files.values():
            results += json.loads(out.read_text()) if out.exists() else []
    if options.out:
        options.out.write_text(json.dumps(results))
    page = HERE.parents[1] / "docs" / "capture.md"
    page.write_text(document(results))
    if any(codes):
        raise SystemExit(f"a library's process died: {dict(zip(here, codes, strict=True))}")
    sys.stdout.write("\n".join(summary(results)) + f"\n\nwritten: {page}\n")


if __name__ == "__main__":
    main()
