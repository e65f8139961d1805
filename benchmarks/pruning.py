"""What pruning gains on trained models: dense FLOPs, time and ΔNE, with and without finetuning.

``make bench-pruning`` writes ``benchmarks/results/pruning.md``. Every cell, a candidate on a model
with a seed, is kept under ``build/pruning`` once it is done, so that a run that was stopped goes
on; ``--time`` makes nothing and times the models of cells that are there. Models are trained on the
first 80 % of the flights of 2013, units are chosen on later ones, and ΔNE is told by the last ones,
which nothing else looked at.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import rankc
import torch
import torch_pruning
from pruned_streams import percent_over, streams_section
from pruned_tables import tables_section
from rankc.models import DHEN, DLRM, DCNv2, DCNv2Config, DHENConfig, DLRMConfig, MMoE, MMoEConfig
from rankc.models.data import RankingData, load_flights
from rankc.models.train import train
from rankc.optimizer.analysis.cost import total
from rankc.optimizer.data.rows import Split, collect, split
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.verdict import Verdict
from rankc.optimizer.registry import backend
from rankc.optimizer.timing import side_by_side
from torch import nn

CELLS = Path("build/pruning")
BATCH = 512
#: ΔNE that finetuned candidates may cost, and the share of the FLOPs others take away.
BUDGET, SHARE = 1e-3, 0.5
#: Seconds a peer is waited for.
PATIENCE = 180
#: Judges without a say: what is compared must not be rolled back.
FREE = rankc.Budget(ne=0.99, two_sided=False, max_rms_shift=None)
#: Linears that torch-pruning is told to keep whole: asked for them it raises IndexError (crosses,
#: whose outputs are added to a concatenation; gates, stacked as experts are) or doesn't come to an
#: end (what is multiplied with rows of tables).
PINNED = {"dlrm": ("bottom.4",), "dcn_v2": ("cross.",), "mmoe": ("gates.",)}
TASKS = {"mmoe": ("late_arr", "late_dep")}


@dataclass(frozen=True)
class Trained:
    """A trained model and its rows.

    Attributes:
        kind: Which model.
        seed: Of its weights and the order of its rows.
        model: In eval mode.
        program: Captured.
        earlier: What it was trained on, as batches.
        later: The rest, as batches.
        rows: The rest, in three sets.
    """

    kind: str
    seed: int
    model: nn.Module
    program: Program
    earlier: list[rankc.Batch]
    later: list[rankc.Batch]
    rows: Split


@cache
def flights() -> RankingData:
    """The flights, without the month: the last ones' months are in no earlier row."""
    data = load_flights()
    keep = [i for i, name in enumerate(data.id_names) if name != "month"]
    without = [
        replace(r, ids=np.ascontiguousarray(r.ids[:, keep])) for r in (data.train, data.test)
    ]
    return replace(
        data,
        train=without[0],
        test=without[1],
        id_names=tuple(data.id_names[i] for i in keep),
        cardinalities=tuple(data.cardinalities[i] for i in keep),
    )


def build(kind: str) -> nn.Module:
    """An untrained model at a width where linears matter."""
    data = flights()
    sizes, dense = data.cardinalities, data.train.dense.shape[1]
    if kind == "dlrm":
        return DLRM(DLRMConfig(sizes, dense, 64, bottom=(512, 256), top=(512, 256)))
    if kind == "dcn_v2":
        return DCNv2(DCNv2Config(sizes, dense, embedding_dim=16, deep=(512, 256)))
    if kind == "dhen":
        return DHEN(DHENConfig(sizes, dense, embedding_dim=16, layers=2, top=(256,)))
    return MMoE(MMoEConfig(sizes, dense, 16, tasks=TASKS["mmoe"], experts=4, expert=(256, 128)))


@cache
def trained(kind: str, seed: int) -> Trained:
    """Trains a model, or loads it."""
    data, tasks = flights(), TASKS.get(kind, ("late_arr",))
    torch.manual_seed(seed)
    model, path = build(kind), CELLS / f"{kind}-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model, data.train, task=tasks if kind in TASKS else tasks[0], seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    earlier, later = (batches(rows, tasks) for rows in (data.train, data.test))
    program = rankc.capture(model.eval(), later[0].inputs)
    rows = split(collect(later, program))
    return Trained(kind, seed, model, program, earlier, later, rows)


def batches(rows: Any, tasks: Sequence[str]) -> list[rankc.Batch]:
    """Rows as `optimize` takes them."""
    found = []
    for start in range(0, len(rows), 8192):
        part = rows.take(slice(start, start + 8192))
        inputs = torch.from_numpy(part.dense), torch.from_numpy(part.ids)
        labels = {task: part.labels[task] for task in tasks}
        found.append(
            rankc.Batch(inputs, labels if len(tasks) > 1 else labels[tasks[0]], part.group)
        )
    return found


# --- candidates -----------------------------------------------------------------------------------


def dense(it: Trained, folder: Path) -> Program:
    """As it was trained."""
    return written(it.program.clone(), folder)


def pruned(options: str, it: Trained, folder: Path) -> Program:
    """Pruned once, not finetuned."""
    program = it.program.clone()
    context = PassContext(
        target=rankc.Target.of("cpu-fp32"),
        judge=Judge.of(it.program, it.rows.choice, FREE),
        calibration=tuple(it.rows.calibration.batches()),
        strict=True,
    )
    Pipeline.parse(f"rounding,prune-channels{{{options}}}").run(program, context)
    return written(program, folder)


def automatic(it: Trained, folder: Path) -> Program:
    """Layers' shares found, for the FLOPs that the same share of every layer takes."""
    measure(it.kind, it.seed, UNIFORM)
    uniform = json.loads((place(it.kind, it.seed, UNIFORM) / "cell.json").read_text())
    return pruned(f"flops={1.0 - uniform['flops']:.4f}", it, folder)


def by_torch_pruning(it: Trained, folder: Path) -> Program:
    """torch-pruning's dependency graph, Taylor importance, the same share of every layer.

    In one step: in more, it loses count of what it has split.
    """
    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    enough = (1.0 - SHARE) * total(it.program, BATCH).flops
    low, high, kept = 0.0, 0.98, None
    for _ in range(7):
        ratio = (low + high) / 2.0
        program = cut_by_torch_pruning(it, ratio)
        if total(program, BATCH).flops > enough:
            low = ratio
        else:
            high, kept = ratio, program
    signal.alarm(0)
    if kept is None:
        left = total(program, BATCH).flops / total(it.program, BATCH).flops
        raise ValueError(f"{left:.0%} of the FLOPs are left at a share of {ratio:.2f}")
    return written(kept, folder)


def cut_by_torch_pruning(it: Trained, ratio: float) -> Program:
    """The model without a share of the outputs of every linear that it can follow."""
    model = copy.deepcopy(it.model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs, labels = it.earlier[0].inputs, it.earlier[0].labels
    kept = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (module.out_features == 1 or name.startswith(PINNED.get(it.kind, ())))
    ]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,
        importance=torch_pruning.importance.TaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=kept,
    )
    losses(model(*inputs), labels).backward()
    pruner.step()
    return rankc.capture(model.eval(), inputs)


def late(*_: object) -> None:
    """Gives a peer up."""
    raise TimeoutError(f"not done after {PATIENCE} s")


def losses(outputs: Any, labels: Any) -> torch.Tensor:
    """The task loss, summed over tasks."""
    entropy = nn.functional.binary_cross_entropy_with_logits
    if isinstance(outputs, torch.Tensor):
        return entropy(outputs, torch.as_tensor(labels).float())
    parts = [entropy(outputs[k], torch.as_tensor(labels[k]).float()) for k in outputs]
    return torch.stack(parts).sum()


def optimized(target: str, pipeline: str, recover: bool, it: Trained, folder: Path) -> None:
    """What `rankc.optimize` returns within the budget."""
    artifact = rankc.optimize(
        it.model,
        target,
        data=it.later,
        budget=rankc.Budget(ne=BUDGET),
        pipeline=pipeline,
        recover=rankc.Distill(it.earlier) if recover else None,
    )
    artifact.save(folder)


def written(program: Program, folder: Path) -> Program:
    """Fused as for the CPU and written for ONNX Runtime; gives back what was handed in."""
    fused, target = program.clone(), rankc.Target.of("cpu-fp32")
    Pipeline.parse("rounding,structure,grouping").run(fused, PassContext(target=target))
    folder.mkdir(parents=True)
    backend("onnxruntime").build(fused, target, folder, {})
    return program


AUTOMATIC, UNIFORM = "half the FLOPs, automatic", "half the FLOPs, uniform"
MAGNITUDE, PEER = "half the FLOPs, magnitude, uniform", "half the FLOPs, torch-pruning"
FINETUNED, INT8 = "within the budget, finetuned", "INT8"
INT8_PRUNED, INT8_FINETUNED = "INT8, pruned", "INT8, pruned and finetuned"
PRUNED = "default,+prune-channels@before:fuse-dot-interaction"
CANDIDATES: Mapping[str, Callable[[Trained, Path], Program | None]] = {
    "dense": dense,
    AUTOMATIC: automatic,
    UNIFORM: partial(pruned, f"flops={SHARE},allocation=uniform"),
    MAGNITUDE: partial(pruned, f"flops={SHARE},allocation=uniform,importance=magnitude"),
    "within the budget": partial(optimized, "cpu-fp32", PRUNED, False),
    FINETUNED: partial(optimized, "cpu-fp32", "default", True),
    INT8: partial(optimized, "cpu-int8", "default", False),
    INT8_PRUNED: partial(optimized, "cpu-int8", PRUNED, False),
    INT8_FINETUNED: partial(optimized, "cpu-int8", "default", True),
    PEER: by_torch_pruning,
}


# --- cells ----------------------------------------------------------------------------------------


def place(kind: str, seed: int, candidate: str) -> Path:
    """The folder of a cell."""
    return CELLS / f"{kind}-{seed}-{candidate.replace(' ', '_').replace(',', '')}"


def measure(kind: str, seed: int, candidate: str) -> None:
    """Makes a cell, unless it is there."""
    folder = place(kind, seed, candidate)
    if (folder / "cell.json").exists():
        return
    it, begun = trained(kind, seed), time.process_time()
    made = folder / f"model-{time.time_ns()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        program = CANDIDATES[candidate](it, made)
    except Exception as error:
        if candidate != PEER:
            raise
        signal.alarm(0)
        cell: dict[str, Any] = {"failed": f"{type(error).__name__}: {error}".split("\n")[0]}
    else:
        cell = judged(it, program, made)
    cell |= {"model": made.name, "seconds": time.process_time() - begun}
    (folder / "cell.json").write_text(json.dumps(cell, indent=1))
    print(kind, seed, candidate, cell, flush=True)


def judged(it: Trained, program: Program | None, folder: Path) -> dict[str, Any]:
    """ΔNE on the proof rows, FLOPs left and bytes."""
    judge = Judge.of(it.program, it.rows.proof, FREE)
    if program is not None:
        verdict: Verdict = judge(program)
        damages = judge.damages(program)
        flops = total(program, BATCH).flops / total(it.program, BATCH).flops
    else:
        artifact = rankc.load(folder)
        verdict = artifact.verdict
        flops, damages = flops_left(folder), {}
    deltas = {task: (d.estimate, d.low, d.high) for task, d in verdict.delta_ne.items()}
    nbytes = sum(path.stat().st_size for path in folder.rglob("model.onnx*"))
    return {"flops": flops, "delta_ne": deltas, "damages": damages, "bytes": nbytes}


def flops_left(folder: Path) -> float:
    """The share that the report's pruning pass left."""
    records = json.loads((folder / "report.json").read_text())["passes"]
    left = 1.0
    for record in records:
        if record["spec"].startswith("prune-") and record["outcome"] == "changed":
            left = record["after"]["flops"] / record["before"]["flops"]
    return left


def timings(kind: str, seed: int, measured: bool) -> dict[str, float]:
    """Milliseconds a batch of every candidate, interleaved on one thread; or the last ones."""
    kept = CELLS / f"times-{kind}.json"
    if not measured:
        return json.loads(kept.read_text()) if kept.exists() else {}
    rows = trained(kind, seed).rows.proof.part(0, BATCH)
    arrays = {name: value.numpy() for name, value in rows.features.items()}
    calls: dict[str, Callable[[], Any]] = {}
    for candidate in CANDIDATES:
        cell = place(kind, seed, candidate) / "cell.json"
        made = json.loads(cell.read_text()) if cell.exists() else {"failed": ""}
        if "failed" not in made:
            folder = cell.parent / made["model"]
            manifest = folder / "manifest.json"
            name = (
                json.loads(manifest.read_text())["backend"] if manifest.exists() else "onnxruntime"
            )
            calls[candidate] = partial(backend(name).open(folder, 1), arrays)
    timed = side_by_side(calls, rounds=11, clock=time.process_time)
    found = {candidate: 1e3 * timing.median for candidate, timing in timed.items()}
    kept.write_text(json.dumps(found, indent=1))
    return found


def cells_of(kind: str, seeds: Sequence[int], candidate: str) -> dict[int, dict[str, Any]]:
    """By seed, the cells that are there and didn't fail."""
    places = {seed: place(kind, seed, candidate) / "cell.json" for seed in seeds}
    found = {seed: json.loads(cell.read_text()) for seed, cell in places.items() if cell.exists()}
    return {seed: cell for seed, cell in found.items() if "failed" not in cell}


def report(kinds: Sequence[str], seeds: Sequence[int], measured: bool) -> list[str]:
    """The page's part on models."""
    times = {kind: timings(kind, seeds[0], measured) for kind in kinds}
    lines = [
        "# Pruning: what goes, what it costs, what it buys",
        "",
        f"Flights in time order, models trained for one epoch, {len(seeds)} seeds at most. ΔNE on "
        "the last flights, which nothing else looked at: mean over the seeds, and the widest "
        f"bounds of their 95 % intervals; the worst task. Batch {BATCH}, one thread, "
        "interleaved, medians of process CPU time of the first seed. Damage is the rise of NE on "
        "the original's own scores as labels: how far scores moved, without the luck of labels. "
        "A candidate can gain NE on later months by losing what only earlier ones had. What is "
        f"within the budget may cost ΔNE of {BUDGET:.1%}, upper bound.",
        "",
        "| model | automatic less uniform, same FLOPs: damage % | finetuned: FLOPs left | "
        "× dense | ΔNE % | INT8, pruned × INT8 | and finetuned |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(answers(kind, seeds, times[kind]) for kind in kinds),
    ]
    for kind in kinds:
        lines += ["", f"## {kind}", ""]
        lines += ["| candidate | seeds | FLOPs left | damage % | ΔNE % | ms | × dense | MiB |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
        for candidate in CANDIDATES:
            cells = [place(kind, seed, candidate) / "cell.json" for seed in seeds]
            found = [json.loads(cell.read_text()) for cell in cells if cell.exists()]
            lines += [line(candidate, found, times[kind])] if found else []
        lines += ["", "| automatic less | seeds | damage % | ΔNE % |", "|---|---:|---:|---:|"]
        for other in (UNIFORM, MAGNITUDE, PEER):
            lines.append("| {} | {} | {} | {} |".format(other, *difference(kind, seeds, other)))
    return [*lines, ""]


def answers(kind: str, seeds: Sequence[int], times: Mapping[str, float]) -> str:
    """A model's row of the table that sums up."""

    def faster(first: str, second: str) -> str:
        known = first in times and second in times
        return f"{times[first] / times[second]:.2f}×" if known else ""

    tuned = list(cells_of(kind, seeds, FINETUNED).values())
    left = f"{np.mean([cell['flops'] for cell in tuned]):.0%}" if tuned else ""
    _, damage, _ = difference(kind, seeds, UNIFORM)
    return (
        f"| {kind} | {damage} | {left} | {faster('dense', FINETUNED)} | {delta_of(tuned)} | "
        f"{faster(INT8, INT8_PRUNED)} | {faster(INT8, INT8_FINETUNED)} |"
    )


def difference(kind: str, seeds: Sequence[int], other: str) -> tuple[int, str, str]:
    """Of how many seeds, and automatic's damage and ΔNE of the worst task less another's."""
    ours, theirs = (cells_of(kind, seeds, candidate) for candidate in (AUTOMATIC, other))
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return 0, "", ""
    damages = [worst_damage(ours[seed]) - worst_damage(theirs[seed]) for seed in both]
    deltas = [worst_delta(ours[seed])[0] - worst_delta(theirs[seed])[0] for seed in both]
    return len(both), percent_over(damages), percent_over(deltas)


def worst_damage(cell: Mapping[str, Any]) -> float:
    """The largest of a task."""
    return max(cell["damages"].values())


def worst_delta(cell: Mapping[str, Any]) -> list[float]:
    """Estimate and bounds of the task whose ΔNE is largest."""
    return max(cell["delta_ne"].values(), key=lambda delta: delta[0])


def delta_of(cells: Sequence[Mapping[str, Any]]) -> str:
    """ΔNE of the worst task: mean and widest bounds, in percent."""
    if not cells:
        return ""
    worst = [worst_delta(cell) for cell in cells]
    low, high = 100 * min(d[1] for d in worst), 100 * max(d[2] for d in worst)
    return f"{100 * float(np.mean([d[0] for d in worst])):+.3f} [{low:+.3f}, {high:+.3f}]"


def line(candidate: str, cells: Sequence[Mapping[str, Any]], times: Mapping[str, float]) -> str:
    """A row of a model's table."""
    good = [cell for cell in cells if "failed" not in cell]
    if not good:
        return f"| {candidate} | {len(cells)} | {cells[0]['failed'][:80]} | | | | | |"
    flops = float(np.mean([cell["flops"] for cell in good]))
    size = float(np.mean([cell["bytes"] for cell in good])) / 2**20
    lost = [100 * worst_damage(cell) for cell in good if cell.get("damages")]
    damage = f"{np.mean(lost):.4f} ({min(lost):.4f} to {max(lost):.4f})" if lost else ""
    known = candidate in times
    speed = f"{times[candidate]:.3f} | {times['dense'] / times[candidate]:.2f}×" if known else " | "
    return (
        f"| {candidate} | {len(good)} | {flops:.0%} | {damage} | {delta_of(good)} | {speed} | "
        f"{size:.1f} |"
    )


def main() -> None:
    """Makes the cells that are missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="dlrm,dcn_v2,dhen,mmoe")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--candidates", default="", help="their first words, comma-separated")
    parser.add_argument("--parts", default="models,tables,streams", help="that cells are made for")
    parser.add_argument("--time", action="store_true", help="only time the cells that are there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pruning.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds, seeds = arguments.models.split(","), range(arguments.seeds)
    parts = () if arguments.time else arguments.parts.split(",")
    for seed in seeds if "models" in parts else ():
        for kind in kinds:
            for candidate in CANDIDATES:
                if candidate.startswith(tuple(arguments.candidates.split(","))):
                    measure(kind, seed, candidate)
            trained.cache_clear()
    lines = [
        *report(kinds, seeds, arguments.time),
        *tables_section(CELLS, seeds, "tables" in parts),
        "",
        *streams_section(CELLS, seeds, "streams" in parts, arguments.out),
    ]
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
