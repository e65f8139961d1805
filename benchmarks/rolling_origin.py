"""Whether a verdict holds on the traffic that comes after it: rolling origin.

``make bench-rolling`` writes ``benchmarks/results/rolling_origin.md``. The flights of 2013 are cut
into 12 blocks of about a month. At each origin a model is trained on the blocks before, `optimize`
is given the two blocks up to the origin, with their times, and what it returned is compared with
the original on the block after. Census-Income has two years: models are trained and optimized on
1994, and compared on 1995. A cell, one artifact, is kept under ``build/rolling`` once it is done.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import rankc
import torch
from rankc.models import DLRM, DCNv2, DCNv2Config, DLRMConfig
from rankc.models.census import load_census
from rankc.models.data import load_flights
from rankc.models.rows import RankingData, Rows
from rankc.models.train import train
from rankc.optimizer.data.rows import collect
from rankc.optimizer.quality.intervals import Interval
from rankc.optimizer.quality.judge import Judge, score
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.report.report import Report
from torch import nn

CELLS = Path("build/rolling")
RESULTS = Path(__file__).parent / "results" / "rolling_origin.md"
BUDGET = 1e-3
BLOCKS, FIRST, GIVEN = 12, 4, 2
FLIGHTS, CENSUS = "flights", "census"
#: Share of PASS verdicts that hold on the block after.
MEANT = 0.95


@dataclass(frozen=True)
class Origin:
    """A place in time to stand at, and look back from.

    Attributes:
        data: Which data set.
        after: The block that comes after, or the year.
        earlier: Rows to train on.
        given: Rows that `optimize` gets.
        next: Rows that come after.
        task: The label.
        sizes: Rows of each table.
    """

    data: str
    after: int
    earlier: Rows
    given: Rows
    next: Rows
    task: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """What became of one artifact.

    Attributes:
        status: Of its verdict, before the block after was seen.
        proved: ΔNE on its proof rows.
        realised: ΔNE on the block after.
        by_row: The same with rows taken as independent but for their group.
        flops: Share that pruning left.
        low: Tables and linears in a low format.
        seconds: CPU time it took.
    """

    status: str
    proved: Interval
    realised: Interval
    by_row: Interval
    flops: float
    low: int
    seconds: float


# --- rows -----------------------------------------------------------------------------------------


def afters(data: str) -> Sequence[int]:
    """The blocks after each origin, counted from 1; the year after."""
    return range(FIRST + 1, BLOCKS + 1) if data == FLIGHTS else (1995,)


def origins(data: str) -> Iterator[Origin]:
    """The origins of a data set, in the order of time."""
    if data == FLIGHTS:
        yield from _by_block(load_flights())
    else:
        yield _by_year(load_census(("income",)))


def _by_block(data: RankingData) -> Iterator[Origin]:
    # The month of a block is in no earlier one.
    keep = [place for place, name in enumerate(data.id_names) if name != "month"]
    rows = _all(data, keep)
    ends = np.linspace(0, len(rows), BLOCKS + 1).astype(int)
    for block in range(FIRST, BLOCKS):
        yield Origin(
            FLIGHTS,
            block + 1,
            rows.take(slice(0, int(ends[block - GIVEN]))),
            rows.take(slice(int(ends[block - GIVEN]), int(ends[block]))),
            rows.take(slice(int(ends[block]), int(ends[block + 1]))),
            "late_arr",
            tuple(data.cardinalities[place] for place in keep),
        )


def _by_year(data: RankingData) -> Origin:
    place = data.id_names.index("survey_year")
    year = _all(data, [place]).ids[:, 0]
    keep = [other for other in range(len(data.id_names)) if other != place]
    rows = _all(data, keep)
    then = np.flatnonzero(year == 1)  # 1994, the more frequent by 131 rows
    then = np.random.default_rng(0).permutation(then)  # people have no order within a year
    half = len(then) // 2
    return Origin(
        CENSUS,
        1995,
        rows.take(then[:half]),
        rows.take(then[half:]),
        rows.take(year == 2),
        "income",
        tuple(data.cardinalities[other] for other in keep),
    )


def _all(data: RankingData, keep: Sequence[int]) -> Rows:
    """Train and test rows in one, with some of the id features."""

    def both(name: str) -> list[np.ndarray]:
        return [getattr(part, name) for part in (data.train, data.test)]

    timed = data.train.timestamp is not None
    return Rows(
        np.concatenate(both("dense")),
        np.ascontiguousarray(np.concatenate(both("ids"))[:, list(keep)]),
        {
            task: np.concatenate([part.labels[task] for part in (data.train, data.test)])
            for task in data.tasks
        },
        np.concatenate(both("group")) if data.train.group is not None else None,
        timestamp=np.concatenate(both("timestamp")) if timed else None,
    )


def batches(rows: Rows, task: str) -> list[rankc.Batch]:
    """Rows as `optimize` takes them."""
    found = []
    for start in range(0, len(rows), 8192):
        part = rows.take(slice(start, start + 8192))
        inputs = torch.from_numpy(part.dense), torch.from_numpy(part.ids)
        found.append(rankc.Batch(inputs, part.labels[task], part.group, time=part.timestamp))
    return found


# --- models, and what is made of them -------------------------------------------------------------


def dlrm(at: Origin) -> nn.Module:
    """A small DLRM."""
    dense = at.earlier.dense.shape[1]
    return DLRM(DLRMConfig(at.sizes, dense, 16, bottom=(128, 64), top=(256, 128)))


def dcn_v2(at: Origin) -> nn.Module:
    """A small DCNv2."""
    return DCNv2(DCNv2Config(at.sizes, at.earlier.dense.shape[1], 8, deep=(256, 128)))


MODELS: Mapping[str, Callable[[Origin], nn.Module]] = {"dlrm": dlrm, "dcn_v2": dcn_v2}
INT8, PRUNED, DISTILLED = "INT8", "pruned", "distilled"
_PRUNE = "default,+prune-channels@before:fuse-dot-interaction"


def trained(kind: str, at: Origin, seed: int) -> nn.Module:
    """A model of what came before."""
    torch.manual_seed(seed)
    model = MODELS[kind](at)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data.mul_(0.1)
    train(model, at.earlier, task=at.task, batch_size=1024, lr=2e-3, weight_decay=1e-5, seed=seed)
    return model.eval()


def made(how: str, model: nn.Module, at: Origin, seed: int) -> rankc.Artifact:
    """What `optimize` returns."""
    recover = None
    if how == DISTILLED:
        recover = rankc.Distill(batches(at.earlier, at.task), rounds=3, epochs=0.5)
    return rankc.optimize(
        model,
        "cpu-int8" if how == INT8 else "cpu-fp32",
        data=batches(at.given, at.task),
        budget=rankc.Budget(ne=BUDGET),
        pipeline=_PRUNE if how == PRUNED else "default",
        recover=recover,
        batch_sizes=(64,),
        seed=seed,
    )


def measured(how: str, kind: str, at: Origin, seed: int) -> Cell:
    """Optimizes at an origin, then looks at what comes after."""
    model = trained(kind, at, seed)
    begun = time.process_time()
    artifact = made(how, model, at, seed)
    seconds = time.process_time() - begun
    data = batches(at.next, at.task)
    program = rankc.capture(model, data[0].inputs)
    after = collect(data, program)
    # Of a copy that was finetuned too, ΔNE alone is asked for.
    budget = rankc.Budget(ne=BUDGET, two_sided=False, max_rms_shift=None)
    scores = score(artifact.run, after, program.signature)
    (realised,) = Judge.of(program, after, budget).on(scores).delta_ne.values()
    shuffled = np.random.default_rng(0).permutation(len(at.next))
    mixed = collect(batches(replace(at.next.take(shuffled), timestamp=None), at.task), program)
    scores = score(artifact.run, mixed, program.signature)
    (by_row,) = Judge.of(program, mixed, budget).on(scores).delta_ne.values()
    (proved,) = artifact.verdict.delta_ne.values()
    report = artifact.report
    assert isinstance(report, Report)
    low = sum(site.kind in ("table", "linear") and site.chosen != "fp32" for site in report.sites)
    return Cell(
        artifact.verdict.status.value, proved, realised, by_row, _left(report), low, seconds
    )


def _left(report: Report) -> float:
    """The share of the FLOPs that pruning left."""
    left = 1.0
    for record in report.to_json()["passes"]:
        if record["spec"].startswith("prune-") and record["outcome"] == "changed":
            left = record["after"]["flops"] / record["before"]["flops"]
    return left


# --- cells ----------------------------------------------------------------------------------------


def place(how: str, kind: str, data: str, after: int, seed: int) -> Path:
    """The file of a cell."""
    return CELLS / f"{how}-{kind}-{data}-{after:04d}-{seed}.json"


def kept(path: Path) -> Cell:
    """A cell that was measured."""
    found = json.loads(path.read_text())
    for name in ("proved", "realised", "by_row"):
        found[name] = Interval.from_json(found[name])
    return Cell(**found)


def measure(how: str, kinds: Sequence[str], data: str, seeds: Sequence[int]) -> None:
    """Makes the cells that are missing."""
    missing = {
        place(how, kind, data, at, seed): (kind, at, seed)
        for at in afters(data)
        for kind in kinds
        for seed in seeds
    }
    missing = {path: what for path, what in missing.items() if not path.exists()}
    if not missing:
        return
    at_origin = {at.after: at for at in origins(data)}
    for path, (kind, after, seed) in missing.items():
        cell = measured(how, kind, at_origin[after], seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(cell)))
        print(path.stem, cell.status, told(cell.proved), told(cell.realised), flush=True)


# --- the page -------------------------------------------------------------------------------------


def told(delta: Interval) -> str:
    """An interval in percent."""
    return f"{100 * delta.estimate:+.3f} [{100 * delta.low:+.3f}, {100 * delta.high:+.3f}]"


def holds(cell: Cell) -> bool:
    """Whether ΔNE on the block after is within the budget."""
    return cell.realised.estimate <= BUDGET


def page() -> str:
    """The cells that are there, as a page."""
    cells = {path.stem: kept(path) for path in sorted(CELLS.glob("*.json"))}
    lines = [
        "# Rolling origin: whether a verdict holds on what comes after",
        "",
        "`make bench-rolling` writes this page. Flights: 12 blocks of about a month in the order "
        f"of time; at each origin from the {FIRST}th block on, a model is trained on what is "
        f"earlier, `optimize` gets the {GIVEN} blocks before the origin with `time=` and the plane "
        "as `group=`, and what it returns is compared with the original on the block after. "
        "Census-Income: trained and optimized on the halves of 1994, compared on 1995. The budget "
        f"is ΔNE {BUDGET:.1%}. A PASS *holds* if ΔNE on the block after is within the budget; it "
        "is *surely broken* if the lower end of its interval is over it. *by plane* is that "
        "interval without time.",
        "",
        "| made by | data | artifacts | PASS | hold | share | surely broken | mean ΔNE after % |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for how in (INT8, PRUNED, DISTILLED):
        for data in (FLIGHTS, CENSUS):
            found = [
                cell
                for name, cell in cells.items()
                if name.startswith(f"{how}-") and f"-{data}-" in name
            ]
            if found:
                lines.append(f"| {how} | {data} | {_sum(found)} |")
    lines.append(f"| all | | {_sum(list(cells.values()))} |" if cells else "")
    lines += ["", f"{MEANT:.0%} are meant.", "", "| artifact, block after, seed | verdict | FLOPs "]
    lines[-1] += "left | low formats | ΔNE % proved | ΔNE % after | by plane | |"
    lines.append("|---|---|---:|---:|---:|---:|---:|---|")
    for name, cell in cells.items():
        over = "" if holds(cell) else "over" if cell.realised.low <= BUDGET else "surely over"
        lines.append(
            f"| {name.replace('-', ' ')} | {cell.status} | {cell.flops:.0%} | {cell.low} | "
            f"{told(cell.proved)} | {told(cell.realised)} | {told(cell.by_row)} | {over} |"
        )
    return "\n".join([*lines, ""])


def _sum(cells: Sequence[Cell]) -> str:
    passed = [cell for cell in cells if cell.status == Status.PASS.value]
    good = sum(map(holds, passed))
    broken = sum(cell.realised.low > BUDGET for cell in passed)
    share = f"{good / len(passed):.0%}" if passed else ""
    mean = float(np.mean([cell.realised.estimate for cell in passed])) if passed else 0.0
    return f"{len(cells)} | {len(passed)} | {good} | {share} | {broken} | {100 * mean:+.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the cells that are missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", default=",".join((INT8, PRUNED, DISTILLED)))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--data", default=f"{FLIGHTS},{CENSUS}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    os.nice(10)
    torch.set_num_threads(1)
    for how in asked.how.split(","):
        for data in asked.data.split(","):
            measure(how, asked.models.split(","), data, range(asked.seeds))
            asked.out.write_text(page())


if __name__ == "__main__":
    main()
