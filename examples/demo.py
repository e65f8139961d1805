"""The whole way on real data: train a DLRM on New York's flights, optimize it, prove it, save it.

Run it with ``make demo``. It trains on 2013's flights up to autumn, asks for an INT8 artifact for
this CPU within 0.02 % NE on the flights after, and times the artifact beside eager PyTorch and
ONNX Runtime in fp32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import rankc
import torch
from rankc.models.data import DataUnavailable, RankingData, load_flights, synthetic_flights
from rankc.models.dlrm import DLRM, DLRMConfig
from rankc.models.train import train
from rankc.optimizer.artifact.benchmark import compare
from rankc.optimizer.data.rows import Rows, collect
from rankc.optimizer.report.report import readable_bytes
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

TASK = "late_arr"


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu-int8")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    arguments = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    data = load(console)
    model = trained(data, console)
    artifact = optimized(model, data, arguments.target, console)
    assert isinstance(artifact.report, rankc.Report)
    artifact.report.print(console)
    show_speed(artifact, model, data, console)
    out = fresh(arguments.out)
    artifact.save(out)
    console.print(f"saved to [bold]{out}[/]; try: rankc inspect {out}; rankc bench {out}")


def load(console: Console) -> RankingData:
    """The flights, or generated rows where the package can't be had."""
    try:
        data = load_flights()
    except DataUnavailable as error:
        console.print(f"[yellow]{error}[/]\n[yellow]GENERATED data is used instead.[/]")
        data = synthetic_flights()
    rows = f"{len(data.train.dense):,} rows to train, {len(data.test.dense):,} later ones to judge"
    console.print(f"data: {data.name} ({data.licence}), {rows}")
    return data


def trained(data: RankingData, console: Console) -> DLRM:
    """A DLRM trained for one epoch: 13 dense features, 16 tables of width 64."""
    torch.manual_seed(0)
    model = DLRM(
        DLRMConfig(cardinalities=data.cardinalities, dense_features=data.train.dense.shape[1])
    )
    started = time.perf_counter()
    with console.status("training a DLRM, about half a minute"):
        train(model, data.train, task=TASK, epochs=1, lr=1e-3)
    console.print(f"trained a DLRM in {time.perf_counter() - started:.0f} s")
    return model


def batches(data: RankingData, size: int = 4096) -> Iterator[rankc.Batch]:
    """The later flights, as users hand rows in: inputs, labels, and who a row belongs to."""
    for start in range(0, len(data.test.dense), size):
        rows = data.test.take(slice(start, start + size))
        yield rankc.Batch(
            inputs=(torch.from_numpy(rows.dense), torch.from_numpy(rows.ids)),
            labels=rows.labels[TASK],
            group=rows.group,
        )


def optimized(model: DLRM, data: RankingData, target: str, console: Console) -> rankc.Artifact:
    """The artifact, with a progress bar."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task("starting", total=1.0)
        return rankc.optimize(
            model,
            target=target,
            data=batches(data),
            budget=rankc.Budget(ne=2e-4),
            progress=lambda message, done: bar.update(
                job, description=message[:40], completed=done
            ),
        )


def show_speed(artifact: rankc.Artifact, model: DLRM, data: RankingData, console: Console) -> None:
    """Prints milliseconds and bytes, before and after."""
    assert isinstance(artifact.report, rankc.Report)
    program = rankc.capture(model)
    rows: Rows = collect([next(batches(data))], program)
    table = Table(title="milliseconds a batch, one thread, interleaved, medians")
    names = ("batch", "eager", "onnxruntime fp32", "artifact", "speedup")
    for name in names:
        table.add_column(name, justify="right")
    for row in compare(artifact, model, (1, 64, 512), rows):
        speedup = f"{row['speedup']:.2f}×"
        table.add_row(str(int(row["batch"])), *(f"{row[name]:.3f}" for name in names[1:4]), speedup)
    console.print(table)
    before, after = artifact.report.table_bytes
    if before:
        console.print(
            f"model {readable_bytes(program.nbytes)} → {readable_bytes(artifact.nbytes)}, tables "
            f"{readable_bytes(before)} → {readable_bytes(after)} ({after / before:.0%})"
        )
    console.print(f"verdict: {artifact.verdict}", markup=False)


def fresh(folder: Path) -> Path:
    """The folder, or the next free one."""
    place, count = folder, 1
    while place.exists():
        count += 1
        place = folder.with_name(f"{folder.name}-{count}")
    return place


if __name__ == "__main__":
    main()
