"""What the placed formats gain on trained models, beside the peers, each judged by the same gate.

``make bench-precision`` writes ``benchmarks/results/precision.md``. Models are trained on real
data. Ours is `rankc.optimize` for cpu-int8 at 0.02 %; the peers are in `peers.py`. All scores are
judged on the same proof rows, at batch 512; all are timed in one process on one thread,
interleaved, as medians of process CPU time. Each cell, a model on a data set with a seed, is kept
under ``build/precision`` once it is done, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rankc
import torch
from peers import PEERS, Calibration, UnavailableError
from rankc import models
from rankc.models.data import RankingData, load_census, load_flights, load_movielens
from rankc.models.sides import Sides, two_sides
from rankc.models.train import train
from rankc.optimizer.data.rows import collect, split
from rankc.optimizer.errors import DataError
from rankc.optimizer.quality.batch_dependence import batch_shift, too_far
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.scores import score
from rankc.optimizer.timing import side_by_side
from structure import Scorer, export
from torch import Tensor, nn

CELLS = Path("build/precision")
Arrange = Callable[[Tensor, Tensor], tuple[Any, ...]]
BUDGET = rankc.Budget(ne=2e-4)
BATCHES = (64, 512)
OURS = "rankc"
PLAIN = "onnxruntime fp32"
#: The status of what would not fail, but for scores that depend on the other rows of a batch.
MATES = "batch mates"
#: Loader, and the tasks of models with several heads; the first is the task of the others.
DATA: Mapping[str, tuple[Callable[[], RankingData], tuple[str, ...]]] = {
    "census": (load_census, ("income", "never_married", "college")),
    "flights": (load_flights, ("late_arr", "late_dep")),
    "movielens": (load_movielens, ("liked",)),
}
KINDS = ("dlrm", "dcn_v2", "deepfm", "dhen", "wukong", "mmoe", "two_sided")
#: The item and what describes it, of data whose users have histories: what a two-sided model needs.
ITEMS = {"movielens": ("item_id", ("release_year", "genres"))}
HISTORY = 20


@dataclass(frozen=True)
class Result:
    """One candidate on one model.

    Attributes:
        status: The gate's, `MATES`, or why there are no scores.
        delta: ``(estimate, low, high)`` of ΔNE in percent, of the task that loses most.
        milliseconds: By batch size.
    """

    candidate: str
    status: str
    delta: tuple[float, float, float] | None
    milliseconds: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """A trained model with what came of every candidate."""

    model: str
    seed: int
    seconds: float
    coded: str
    backend: str
    results: tuple[Result, ...]

    @classmethod
    def load(cls, path: Path) -> Cell:
        """From the file that `save` wrote."""
        found = json.loads(path.read_text())
        results = tuple(Result(**{**r, "delta": r["delta"]}) for r in found.pop("results"))
        return cls(**found, results=results)

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.rename(path)

    @property
    def ours(self) -> Result:
        """What rankc made."""
        return next(r for r in self.results if r.candidate == OURS)

    def best(self, batch: int) -> Result:
        """The fastest peer that passes; fp32 always does."""
        peers = [r for r in self.results if r.candidate != OURS and r.status == "pass"]
        return min(peers, key=lambda r: r.milliseconds[str(batch)])

    def ratio(self, batch: int) -> float:
        """Its time over ours."""
        return self.best(batch).milliseconds[str(batch)] / self.ours.milliseconds[str(batch)]


def main() -> None:
    """Trains, measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--models", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/precision.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    for seed in range(arguments.seeds):
        for name in arguments.data.split(","):
            for kind in arguments.models.split(","):
                if kind == "two_sided" and name not in ITEMS:
                    continue
                path = CELLS / f"{name}-{kind}-{seed}.json"
                if not path.is_file():
                    measure(name, kind, seed).save(path)
                cells.append(Cell.load(path))
                print("\n".join(rows(cells[-1])), flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(report(cells))


@cache
def loaded(name: str) -> RankingData:
    """A data set."""
    return DATA[name][0]()


def arranged(name: str, kind: str) -> tuple[RankingData, Arrange]:
    """The data set, and how its rows become the arguments of a kind of model."""
    if kind != "two_sided":
        return loaded(name), lambda dense, ids: (dense, ids)
    return two_sides(loaded(name), *ITEMS[name], HISTORY)


def build(kind: str, data: RankingData, tasks: tuple[str, ...], arrange: Arrange) -> nn.Module:
    """An untrained model at a width where linears matter."""
    tables, dense = data.cardinalities, data.train.dense.shape[1]
    if isinstance(arrange, Sides):
        config = models.TwoSidedConfig(
            arrange.user_cardinalities,
            len(arrange.user_dense),
            arrange.item_cardinalities,
            len(arrange.item_dense),
            HISTORY,
        )
        return models.TwoSided(config)
    if kind == "dlrm":
        config = models.DLRMConfig(tables, dense, 64, bottom=(512, 256), top=(512, 256))
        return models.DLRM(config)
    if kind == "dcn_v2":
        return models.DCNv2(models.DCNv2Config(tables, dense, embedding_dim=16, deep=(512, 256)))
    if kind == "deepfm":
        return models.DeepFM(models.DeepFMConfig(tables, dense, 16, deep=(400, 400, 400)))
    if kind == "dhen":
        return models.DHEN(models.DHENConfig(tables, dense, embedding_dim=32, layers=2))
    if kind == "wukong":
        config = models.WukongConfig(tables, dense, embedding_dim=64, layers=2)
        return models.Wukong(config)
    return models.MMoE(models.MMoEConfig(tables, dense, tasks=tasks))


def measure(name: str, kind: str, seed: int) -> Cell:
    """Trains a model, judges and times ours and every peer."""
    data, arrange = arranged(name, kind)
    tasks = DATA[name][1] if kind == "mmoe" else DATA[name][1][:1]
    torch.manual_seed(seed)
    model = build(kind, data, tasks, arrange)
    learned = tasks if kind == "mmoe" else tasks[0]
    train(model, data.train, task=learned, seed=seed, arrange=arrange)
    model.eval()
    batches = list(batches_of(data, tasks, arrange, named=kind == "mmoe"))
    started = time.monotonic()
    artifact = rankc.optimize(model, target="cpu-int8", data=batches, budget=BUDGET, seed=seed)
    seconds = time.monotonic() - started
    program = rankc.capture(model, batches[0].inputs)
    parts = split(collect(batches, program))
    judge = Judge.of(program, parts.proof, BUDGET)
    outputs = program.signature.outputs
    ours = artifact.open(1)
    scorers: dict[str, Scorer] = {OURS: lambda features: list(ours(features).values())}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, artifact, Path(folder))
        whole = len(parts.calibration) // 512 * 512
        features = list(parts.calibration.part(0, whole).batches(512))
        given = Calibration(
            model, path, artifact.manifest.inputs, features, parts.choice, BUDGET.ne or 0.0
        )
        for peer, make in PEERS.items():
            try:
                scorers[peer] = make(given)
                for batch in BATCHES:  # compiled peers compile on the first call of a shape
                    scorers[peer](arrays(parts.proof.part(0, batch).features))
            except UnavailableError as error:
                scorers.pop(peer, None)
                failed[peer] = str(error)
        times: dict[str, dict[str, float]] = {peer: {} for peer in scorers}
        for batch in BATCHES:
            rows = arrays(parts.proof.part(0, batch).features)
            calls = {peer: partial(scorer, rows) for peer, scorer in scorers.items()}
            for peer, timing in side_by_side(calls, rounds=9, clock=time.process_time).items():
                times[peer][str(batch)] = round(1e3 * timing.median, 4)
        results = []
        for peer, scorer in scorers.items():

            def run(features: Mapping[str, torch.Tensor], scorer: Scorer = scorer) -> dict:
                return dict(zip(outputs, map(np.asarray, scorer(arrays(features))), strict=True))

            try:
                verdict = judge.on(score(run, parts.proof, program.signature, batch=512))
                mates = batch_shift(run, parts.proof, program.signature)
            except DataError as error:
                results.append(Result(peer, str(error), None, times[peer]))
                continue
            worst = max(verdict.delta_ne.values(), key=lambda d: d.estimate)
            delta = (100 * worst.estimate, 100 * worst.low, 100 * worst.high)
            status = verdict.status.value
            if status != "fail" and too_far(mates, BUDGET):
                status = MATES
            results.append(Result(peer, status, delta, times[peer]))
    torch.compiler.reset()
    results += [Result(peer, reason, None, {}) for peer, reason in failed.items()]
    coded = [site.chosen for site in artifact.sites]
    kinds = ", ".join(f"{coded.count(f)} {f}" for f in dict.fromkeys(coded))
    return Cell(f"{name} {kind}", seed, seconds, kinds, artifact.manifest.backend, tuple(results))


def batches_of(
    data: RankingData, tasks: Sequence[str], arrange: Arrange, *, named: bool
) -> Iterator[rankc.Batch]:
    """The test rows, labelled."""
    for start in range(0, len(data.test), 2048):
        rows = data.test.take(slice(start, start + 2048))
        inputs = arrange(torch.from_numpy(rows.dense), torch.from_numpy(rows.ids))
        labels = {task: rows.labels[task] for task in tasks}
        yield rankc.Batch(inputs, labels if named else labels[tasks[0]], rows.group, rows.cohorts)


def arrays(features: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same, as numpy's."""
    return {name: value.numpy() for name, value in features.items()}


def rows(cell: Cell) -> list[str]:
    """The lines of a cell."""
    plain = next(r for r in cell.results if r.candidate == PLAIN).milliseconds
    found = []
    for r in cell.results:
        delta = "" if r.delta is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*r.delta)
        times = [
            f"{r.milliseconds[str(b)]:.3f} ({plain[str(b)] / r.milliseconds[str(b)]:.2f}×)"
            if r.milliseconds
            else ""
            for b in BATCHES
        ]
        status = r.status if len(r.status) < 100 else r.status[:97] + "…"
        found.append(
            f"| {cell.model} | {cell.seed} | {r.candidate} | {status} | {delta} | "
            + " | ".join(times)
            + " |"
        )
    return found


def report(cells: Sequence[Cell]) -> str:
    """The page."""
    libraries = ("torch", "onnxruntime", "openvino", "nncf", "torchao")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    lines = [
        "# Precision: trained models under a budget of 0.02 %",
        "",
        f"{time.strftime('%Y-%m-%d')}; {processor()}; one thread, interleaved, medians of process "
        f"CPU time. Verdicts on the same proof rows. {versions}, "
        f"Python {platform.python_version()}.",
        "",
        "## Ours over the fastest peer that passes the gate",
        "",
        "| model | seed | verdict | ΔNE % [interval] | formats | backend | optimize, s | "
        + " | ".join(f"batch {b}" for b in BATCHES)
        + " |",
        "|---|---:|---|---|---|---|---:|" + "---|" * len(BATCHES),
    ]
    for cell in cells:
        delta = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*(cell.ours.delta or (0.0, 0.0, 0.0)))
        ratios = [f"{cell.ratio(b):.2f}× {cell.best(b).candidate}" for b in BATCHES]
        lines.append(
            f"| {cell.model} | {cell.seed} | {cell.ours.status} | {delta} | {cell.coded} | "
            f"{cell.backend} | {cell.seconds:.0f} | {' | '.join(ratios)} |"
        )
    for batch in BATCHES:
        ratios = [cell.ratio(batch) for cell in cells]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(
            f"\nBatch {batch}: geometric mean **{mean:.2f}×**, least {min(ratios):.2f}×, "
            f"most {max(ratios):.2f}×."
        )
    lines += [
        "",
        "## Which candidates pass",
        "",
        "Of *batch mates* a row's score depends on the other rows of its batch by more than the "
        "budget's `batch_shift`: ranges are taken from the whole batch while running.",
        "",
        "| candidate | pass | inconclusive | batch mates | fail | none |",
    ]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for candidate in (OURS, *PEERS):
        found = [r.status for c in cells for r in c.results if r.candidate == candidate]
        counts = [found.count(status) for status in ("pass", "inconclusive", MATES, "fail")]
        lines.append(
            f"| {candidate} | {' | '.join(map(str, counts))} | {len(found) - sum(counts)} |"
        )
    lines += [
        "",
        "## Everything",
        "",
        "| model | seed | candidate | gate | ΔNE % [interval] | "
        + " | ".join(f"batch {b}, ms (× ONNX Runtime fp32)" for b in BATCHES)
        + " |",
        "|---|---:|---|---|---|" + "---|" * len(BATCHES),
    ]
    for cell in cells:
        lines += rows(cell)
    return "\n".join(lines) + "\n"


def processor() -> str:
    """What the times are of."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((s.split(": ")[1] for s in text.splitlines() if s.startswith("model name")), "")


if __name__ == "__main__":
    main()
