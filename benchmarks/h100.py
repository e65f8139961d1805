"""What `optimize` decides for h100-fp8 on trained models, and what proves it.

``make bench-h100`` writes ``benchmarks/results/h100.md``: per model the verdict on proof rows, the
format of each linear with its reason, and what TensorRT's build log says of it. No time in it is
measured on a GPU: those that decide are roofline estimates from the data sheet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import rankc
import torch
from rankc import models
from rankc.models.data import RankingData, load_census
from rankc.models.train import train
from rankc.optimizer.report.records import SiteRecord
from torch import nn

TASKS = ("income", "never_married", "college")
KINDS = ("dlrm", "dcnv2", "dhen", "wukong", "mmoe")
_BATCH = 2048


def main() -> None:
    """Trains, optimizes and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(KINDS))
    parser.add_argument("--target", default="h100-fp8")
    parser.add_argument("--ne", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/h100.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [_head(arguments.target, arguments.ne, arguments.batch)]
    for kind in arguments.models.split(","):
        tasks = TASKS if kind == "mmoe" else TASKS[:1]
        data = load_census(tasks)
        torch.manual_seed(0)
        model = build(kind, data, tasks)
        train(model, data.train, task=tasks if kind == "mmoe" else tasks[0])
        started = time.monotonic()
        try:
            artifact = rankc.optimize(
                model.eval(),
                target=arguments.target,
                data=batches(data, tasks, kind == "mmoe"),
                budget=rankc.Budget(ne=arguments.ne),
                batch_sizes=(512, arguments.batch),
            )
        except rankc.RankcError as error:
            lines.append(f"\n## {kind}\n\n{type(error).__name__}: {error}\n")
            continue
        lines.append(_section(kind, artifact, time.monotonic() - started))
        print(lines[-1], flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines))


def build(kind: str, data: RankingData, tasks: tuple[str, ...]) -> nn.Module:
    """An untrained model at a width where low formats can pay on a GPU."""
    tables, dense = data.cardinalities, data.train.dense.shape[1]
    if kind == "dlrm":
        config = models.DLRMConfig(tables, dense, 32, bottom=(512, 256), top=(1024, 512))
        return models.DLRM(config)
    if kind == "dcnv2":
        return models.DCNv2(models.DCNv2Config(tables, dense, embedding_dim=16, deep=(1024, 512)))
    if kind == "dhen":
        return models.DHEN(models.DHENConfig(tables, dense, embedding_dim=32, layers=2))
    if kind == "wukong":
        return models.Wukong(models.WukongConfig(tables, dense, embedding_dim=32, layers=2))
    return models.MMoE(models.MMoEConfig(tables, dense, tasks=tasks))


def batches(data: RankingData, tasks: Sequence[str], named: bool) -> list[rankc.Batch]:
    """The test rows, labelled."""
    found = []
    for start in range(0, len(data.test), _BATCH):
        rows = data.test.take(slice(start, start + _BATCH))
        inputs = torch.from_numpy(rows.dense), torch.from_numpy(rows.ids)
        labels = {task: rows.labels[task] for task in tasks}
        found.append(rankc.Batch(inputs, labels if named else labels[tasks[0]]))
    return found


def _head(target: str, ne: float, batch: int) -> str:
    return (
        f"# {target} on trained models\n\n"
        f"{time.strftime('%Y-%m-%d')}; Census-Income, budget {100 * ne:g} % of NE, batch {batch}. "
        f"torch {version('torch')}, tensorrt-rtx {version('tensorrt-rtx-cu13')}. Scores are those "
        "of the ONNX file, emulated; times are *estimated* by roofline from the data sheet, none "
        "is measured.\n"
    )


def _section(kind: str, artifact: rankc.Artifact, seconds: float) -> str:
    verdict = artifact.verdict
    deltas = "; ".join(
        f"{task} {100 * d.estimate:+.4f} % [{100 * d.low:+.4f}, {100 * d.high:+.4f}]"
        for task, d in verdict.delta_ne.items()
    )
    report = artifact.report
    assert isinstance(report, rankc.Report)
    lines = [
        f"\n## {kind}: {verdict.status.value.upper()}\n",
        f"{deltas}, on {verdict.rows:,} proof rows; backend `{artifact.manifest.backend}`, "
        f"{seconds:.0f} s.\n",
    ]
    fusion = artifact.folder / "fusion.json"
    if fusion.exists():
        runs = json.loads(fusion.read_text())["linears"]
        kept = sum(run["as_planned"] for run in runs)
        lines.append(f"TensorRT runs {kept} of {len(runs)} coded linears as planned.\n")
    lines += ["| linear | shape | format | candidates, error of the output | why |"]
    lines += ["|---|---|---|---|---|"]
    lines += [_row(site) for site in report.sites if site.kind == "linear"]
    tables = [site for site in report.sites if site.kind == "table"]
    coded = sum(site.chosen != "fp32" for site in tables)
    lines.append(f"\n{coded} of {len(tables)} tables in row-wise INT8.")
    return "\n".join(lines)


def _row(site: SiteRecord) -> str:
    tried = ", ".join(
        f"{c['format']} {c['errors']['relative']:.4f}" for c in site.candidates if c["errors"]
    )
    shape = " × ".join(map(str, site.shape))
    return f"| {site.site} | {shape} | {site.chosen} | {tried} | {site.reason} |"


if __name__ == "__main__":
    main()
