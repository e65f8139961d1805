"""How long probing and placing take, how that grows, and what tables weigh in each format.

``make bench-probe`` writes ``benchmarks/results/probe.md``. Times are wall seconds on all cores, of
the pass that tries every candidate of every site and solves for the plan; kernels are timed anew.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import rankc
import torch
from rankc.models import DLRM, DLRMConfig
from rankc.models.data import load_flights
from rankc.models.train import train
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.scores import score
from rankc.optimizer.registry import served
from rankc.optimizer.target import Target

ROWS = 20_000
#: Rows that a candidate is tried on.
TRIED = 4096
FORMATS = ("int8-rows", "int8")


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/probe.md"))
    arguments = parser.parse_args()
    lines = [
        "# Probing and placing",
        "",
        f"{time.strftime('%Y-%m-%d')}; {os.cpu_count()} cores, torch {version('torch')}. DLRM, "
        f"tables of 20,000 rows and width 64, {ROWS:,} rows of data of which 30 % choose. The last "
        "column is what a candidate takes beside one scoring, in PyTorch, of the rows that it is "
        "tried on: probing is linear in sites and formats where that doesn't grow. What grows is "
        "the model: its dot products go with the square of its tables.",
        "",
        "| tables | linears | formats of linears | of tables | candidates | seconds | each | × a "
        "scoring |",
        "|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for tables, formats, coded in (
        (26, FORMATS[:1], ("int8",)),
        (26, FORMATS, ("int8",)),
        (26, FORMATS, ("int8", "int4", "fp16")),
        (52, FORMATS, ("int8", "int4", "fp16")),
        (104, FORMATS, ("int8", "int4", "fp16")),
    ):
        lines.append(probed(tables, formats, coded))
        print(lines[-1], flush=True)
    lines += ["", "## Tables of width 128", ""]
    lines += ["A DLRM of width 128, trained on flights, optimized with one format for tables.", ""]
    lines += ["| format | bytes of fp32 | verdict at 0.02 % | ΔNE % [interval] |"]
    lines += ["|---|---:|---|---|"]
    lines += weighed()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


def probed(tables: int, formats: Sequence[str], coded: Sequence[str]) -> str:
    """One line: how long a DLRM of so many tables takes."""
    torch.manual_seed(0)
    config = DLRMConfig((20_000,) * tables, 13, 64, bottom=(512, 256), top=(1024, 512, 256))
    model = DLRM(config).eval()
    inputs = torch.randn(4, 13), torch.zeros(4, tables, dtype=torch.int64)
    program = rankc.capture(model, inputs)
    rows = synthesize(program.signature, ROWS)
    calibration, choice = rows.part(0, 4096), rows.part(4096, 4096 + (ROWS - 4096) * 3 // 10)
    target = served(Target.of("cpu-int8"), "onnxruntime")
    target = replace(target, formats=tuple(formats), table_formats=tuple(coded))
    context = PassContext(
        target=target,
        calibration=tuple(calibration.batches()),
        judge=Judge.of(program, choice, rankc.Budget(ne=2e-4)),
    )
    Pipeline.parse("rounding").run(program, context)
    tried = choice.spread(TRIED)
    scoring = min(seconds_of(lambda: score(program.run, tried, program.signature)) for _ in "123")
    seconds = seconds_of(lambda: Pipeline.parse("place-precision").run(program, context))
    sites = context.report.sites
    count = sum(max(len(site.candidates) - 1, 0) for site in sites)
    linears = sum(site.kind == "linear" for site in sites)
    return (
        f"| {tables} | {linears} | {', '.join(formats)} | {', '.join(coded)} | {count} | "
        f"{seconds:.1f} | {1e3 * seconds / count:.0f} ms | {seconds / count / scoring:.1f} |"
    )


def seconds_of(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.monotonic()
    call()
    return time.monotonic() - started


def weighed() -> list[str]:
    """A line a table format."""
    data = load_flights()
    torch.manual_seed(0)
    config = DLRMConfig(data.cardinalities, data.train.dense.shape[1], 128, (512,), (512, 256))
    model = DLRM(config)
    train(model, data.train, task="late_arr")
    batches = []
    for start in range(0, len(data.test), 2048):
        part = data.test.take(slice(start, start + 2048))
        inputs = torch.from_numpy(part.dense), torch.from_numpy(part.ids)
        batches.append(rankc.Batch(inputs, part.labels["late_arr"], part.group, part.cohorts))
    found = []
    for name in ("int8", "int4"):
        target = replace(Target.of("cpu-int8"), table_formats=(name,), memory_weight=100.0)
        target = replace(target, backends=("onnxruntime",))
        artifact = rankc.optimize(model.eval(), target, data=batches, budget=rankc.Budget(ne=2e-4))
        before, after = artifact.report.table_bytes
        (delta,) = artifact.verdict.delta_ne.values()
        found.append(
            f"| {name} | {after / before:.1%} | {artifact.verdict.status.value} | "
            f"{100 * delta.estimate:+.4f} [{100 * delta.low:+.4f}, {100 * delta.high:+.4f}] |"
        )
        print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    main()
