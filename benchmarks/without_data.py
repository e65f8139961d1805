"""What `optimize` places without data, and how far its assumed ranges are off on real rows.

``make bench-without-data`` writes ``benchmarks/results/without_data.md``. Models are trained on
flights and on Census-Income, then optimized without a row: with nothing, and with an example of 64
training rows. Real rows are looked at afterwards alone: the damage is judged on test rows with the
original's own scores as soft labels, and each assumed range is held against what the linear reads
there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import rankc
import torch
from baselines import BATCH, DATA, FLAT, loaded
from rankc.models.rows import to_tensors
from rankc.models.train import train
from rankc.optimizer.analysis.sites import inputs_of, linear_sites
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.ir import site_of
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.scores import score
from rankc.optimizer.report.report import AssumedRange
from torch import Tensor, nn

MODELS = ("DLRM", "DCNv2", "DeepFM", "MaskNet")
TARGETS = ("h100-fp8", "l40s-fp8")
_EXAMPLE, _TRAINED, _TESTED = 64, 40_000, 20_000
#: What runs before formats are placed, so that sites have the same inputs.
_BEFORE = "strip-train-only,rounding,structure"


@dataclass(frozen=True)
class Outcome:
    """What was placed, and what real rows say of it.

    Attributes:
        formats: How many linears are in each format.
        made_up: ΔNE on soft labels of made-up rows, by the verdict's own words.
        real: The same of real rows.
        used: Of each assumed range, the share that real rows reach to.
    """

    formats: Mapping[str, int]
    made_up: str
    real: float
    used: tuple[float, ...]


def main() -> None:
    """Trains, optimizes and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--data", default="flights,census")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/without_data.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [_head()]
    for kind in arguments.models.split(","):
        for name in arguments.data.split(","):
            for target in TARGETS:
                for exemplified in (False, True):
                    found = outcome(kind, name, target, exemplified)
                    lines.append(_row(kind, name, target, exemplified, found))
                    print(lines[-1], flush=True)
                    arguments.out.write_text("\n".join(lines) + "\n")


@cache
def trained(kind: str, name: str) -> nn.Module:
    """A model of a data set, trained for an epoch of some of its rows."""
    data, (_, task, (settings, *_)) = loaded(name), DATA[name]
    torch.manual_seed(0)
    model = FLAT[kind](data.cardinalities, data.train.dense.shape[1])
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data.mul_(settings.tables)
    rows = data.train.take(slice(max(len(data.train) - _TRAINED, 0), None))
    train(model, rows, task=task, batch_size=BATCH, lr=settings.lr)
    return model


@cache
def captured(kind: str, name: str) -> rankc.Program:
    """The model as a program."""
    inputs, _ = to_tensors(loaded(name).train.take(slice(0, 8)))
    return rankc.capture(trained(kind, name), tuple(inputs))


def outcome(kind: str, name: str, target: str, exemplified: bool) -> Outcome:
    """Optimizes without data, then looks at real rows."""
    program = captured(kind, name)
    example, _ = to_tensors(loaded(name).train.take(slice(0, _EXAMPLE)))
    # No engine is built: what is placed, and its scores, are the same.
    goal = replace(rankc.Target.of(target), backends=("onnx",))
    artifact = rankc.optimize(
        program, goal, inputs=tuple(example) if exemplified else None, batch_sizes=(512, 4096)
    )
    inputs, _ = to_tensors(loaded(name).test.take(slice(0, _TESTED)))
    rows = Rows(dict(zip(program.signature.names, inputs, strict=True)))
    judge = Judge.of(program, rows, rankc.Budget())
    verdict = judge.on(score(artifact.run, rows, program.signature))
    (delta,) = verdict.delta_ne.values()
    report = artifact.report
    assert isinstance(report, rankc.Report)
    linears = [site.chosen for site in report.sites if site.kind == "linear"]
    told = [reason for reason in artifact.verdict.reasons if "made-up rows" in reason]
    return Outcome(
        {number_format: linears.count(number_format) for number_format in sorted(set(linears))},
        told[0].rpartition("ΔNE ")[2] if told else "",
        delta.estimate,
        tuple(_used(program, goal, rows, report.assumed)),
    )


def _used(
    program: rankc.Program, target: rankc.Target, rows: Rows, ranges: list[AssumedRange]
) -> list[float]:
    """Which share of each assumed range real rows reach to."""
    copy = program.clone()
    Pipeline.parse(_BEFORE).run(copy, PassContext(target))
    found = inputs_of(copy, linear_sites(copy), list(rows.batches()), len(rows))
    seen: dict[str, list[Tensor]] = {}
    for node, values in found.items():
        seen.setdefault(site_of(node), []).append(values)
    shares = []
    for one in ranges:
        widest = max(float(values.abs().max()) for values in seen[one.site])
        shares.append(widest / max(abs(one.low), abs(one.high)))
    return shares


def _head() -> str:
    return (
        "# Formats without data, and what real rows say afterwards\n\n"
        f"{time.strftime('%Y-%m-%d')}; torch {version('torch')}. Trained for an epoch of "
        f"{_TRAINED:,} rows; a budget of 0.02 % of NE on made-up rows; ΔNE on soft labels of "
        f"{_TESTED:,} test rows, scored by the emulated file. *Reached*: the share of an assumed "
        "range that real rows reach to, least and largest; what is over 100 % is clipped. "
        f"*Example*: {_EXAMPLE} training rows as `inputs=`.\n\n"
        "| data | model | target | example | linears | reached | ΔNE on made-up rows | "
        "on real rows |\n|---|---|---|---|---|---|---:|---:|"
    )


def _row(kind: str, name: str, target: str, exemplified: bool, found: Outcome) -> str:
    formats = ", ".join(f"{count} {form}" for form, count in found.formats.items())
    reached = f"{min(found.used):.1%} to {max(found.used):.1%}" if found.used else ""
    cells = (
        name,
        kind,
        target,
        "yes" if exemplified else "",
        formats,
        reached,
        found.made_up,
        f"{100 * found.real:+.4f} %",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
