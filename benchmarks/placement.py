"""The knapsack beside that of ModelOpt's ``auto_quantize``, on the same scores of real probes.

``make bench-placement`` writes ``benchmarks/results/placement.md``. Models are trained on
Census-Income and probed by `rankc.optimize`; every site's candidates, with their times and damages,
then go to both solvers. ModelOpt minimises the sum of scores under a limit on cost, so it gets
damages as scores and, as the limit, the time that ours took; it is also asked for the fastest plan
within the same damage. Both are asked again with all damages scaled, as a loss in another unit
would scale them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import rankc
import torch
from modelopt.torch.opt.searcher import LPS
from precision import BUDGET, batches_of, build, loaded
from rankc.models.train import train
from rankc.optimizer.precision.knapsack import Choice, place

CELLS = Path("build/placement")
KINDS = ("dlrm", "mmoe", "dhen")
#: Shares, of the damage of the fastest plan, that a plan may cause.
LIMITS = (0.5, 0.2, 0.1, 0.05, 0.02)
#: What damages are multiplied by.
SCALES = (1e-4, 1.0, 1e4)
#: Damage over its limit that is put down to rounding.
SLACK = 1e-6
Sites = list[list[tuple[float, float]]]


def main() -> None:
    """Probes, solves and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/placement.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Placement beside ModelOpt's on the same scores",
        "",
        f"{time.strftime('%Y-%m-%d')}; scipy {version('scipy')} (HiGHS), nvidia-modelopt "
        f"{version('nvidia-modelopt')} (PuLP {version('pulp')}, CBC). Models trained on "
        "Census-Income, probed at 0.02 %; seconds at batch 512, damage of the first task. Limits "
        f"are {', '.join(f'{share:g}' for share in LIMITS)} of the fastest plan's damage: "
        f"{len(LIMITS)} plans a line. ModelOpt is asked for the least damage within the time that "
        "ours took, and for the least time within the same damage. *Damage* is the worst plan's, "
        "in units of its limit.",
        "",
        "| model | sites | candidates | damages times | ours: limits kept, same plan | damage | "
        "ModelOpt, least damage: limits kept | damage | ModelOpt, least time: limits kept | "
        "damage | ms a plan, ours | ModelOpt's |",
        "|---|---:|---:|---:|---|---:|---|---:|---|---:|---:|---:|",
    ]
    for kind in arguments.models.split(","):
        sites = probed(kind)
        for scale in SCALES:
            lines.append(beside(kind, sites, scale))
            print(lines[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


def probed(kind: str) -> Sites:
    """Seconds and damage of every candidate of every site of a trained model."""
    kept = CELLS / f"{kind}.json"
    if not kept.exists():
        data, tasks = loaded("census"), ("income", "never_married", "college")
        chosen = tasks if kind == "mmoe" else tasks[:1]
        torch.manual_seed(0)
        model = build(kind, data, chosen, lambda dense, ids: (dense, ids))
        train(model, data.train, task=chosen if kind == "mmoe" else chosen[0], seed=0)
        rows = list(batches_of(data, chosen, lambda d, i: (d, i), named=kind == "mmoe"))
        artifact = rankc.optimize(model.eval(), "cpu-int8", data=rows, budget=BUDGET)
        found = []
        for site in artifact.sites:
            tried = [c for c in site.candidates if not c["refused"] and c["seconds"]]
            found.append([(c["seconds"]["512"], first(c["damage"])) for c in tried])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([site for site in found if len(site) > 1]))
    return [[(float(s), float(d)) for s, d in site] for site in json.loads(kept.read_text())]


def first(damage: Mapping[str, float]) -> float:
    """Of the first task; none for what the site has already."""
    return max(next(iter(damage.values()), 0.0), 0.0)


@dataclass(frozen=True)
class Plan:
    """What a solver chose.

    Attributes:
        chosen: An index per site.
        seconds: Their sum.
        damage: Theirs.
    """

    chosen: tuple[int, ...]
    seconds: float
    damage: float

    @classmethod
    def of(cls, sites: Sites, chosen: Sequence[int]) -> Plan:
        """With its sums."""
        taken = [site[index] for site, index in zip(sites, chosen, strict=True)]
        seconds, damages = zip(*taken, strict=True)
        return cls(tuple(map(int, chosen)), sum(seconds), sum(damages))


def ours(sites: Sites, limit: float) -> Plan | None:
    """The fastest plan within a damage, by HiGHS."""
    choices = [[Choice(seconds, {"task": damage}) for seconds, damage in site] for site in sites]
    chosen = place(choices, {"task": limit})
    return None if chosen is None else Plan.of(sites, chosen)


def theirs(sites: Sites, limit: float, scored: int) -> Plan | None:
    """ModelOpt's plan of least damage within a time (scored 1), or the other way round (0)."""
    solver = LPS(
        name="AutoQuantize",
        constraints={"cost": limit},
        constraints_to_candidate_costs={"cost": [[c[1 - scored] for c in s] for s in sites]},
        candidate_scores=[[c[scored] for c in s] for s in sites],
    )
    chosen, status = solver()
    return Plan.of(sites, chosen) if status == "Optimal" else None


def beside(kind: str, sites: Sites, scale: float) -> str:
    """A line of the table."""
    scaled = [[(seconds, damage * scale) for seconds, damage in site] for site in sites]
    fastest = [min(range(len(site)), key=lambda i: site[i][0]) for site in sites]
    most = Plan.of(scaled, fastest).damage
    same = 0
    found: dict[str, list[Plan | None]] = {"ours": [], "damage": [], "time": []}
    spent = {"ours": 0.0, "theirs": 0.0}
    limits = [share * most for share in LIMITS]
    for limit in limits:
        plan, spent["ours"] = timed(partial(ours, scaled, limit), spent["ours"])
        assert plan is not None  # all at the highest format is always within a limit
        plain = ours(sites, limit / scale)
        same += plain is not None and plan.chosen == plain.chosen
        other, spent["theirs"] = timed(partial(theirs, scaled, plan.seconds, 1), spent["theirs"])
        found["ours"].append(plan)
        found["damage"].append(other)
        found["time"].append(theirs(scaled, limit, 0))
    kept = {
        name: sum(
            p is not None and p.damage <= most * limit * (1 + SLACK)
            for p, limit in zip(plans, LIMITS, strict=True)
        )
        for name, plans in found.items()
    }
    worst = {
        name: max(p.damage / limit for p, limit in zip(plans, limits, strict=True) if p is not None)
        for name, plans in found.items()
    }
    count = len(LIMITS)
    return (
        f"| {kind} | {len(sites)} | {sum(map(len, sites))} | {scale:g} "
        f"| {kept['ours']}, {same} of {count} | {worst['ours']:.2f} "
        f"| {kept['damage']} of {count} | {worst['damage']:.2f} "
        f"| {kept['time']} of {count} | {worst['time']:.2f} "
        f"| {1e3 * spent['ours'] / count:.0f} | {1e3 * spent['theirs'] / count:.0f} |"
    )


def timed(call, spent: float):  # type: ignore[no-untyped-def]
    """What it gives, and the seconds spent so far with its own."""
    started = time.perf_counter()
    return call(), spent + time.perf_counter() - started


if __name__ == "__main__":
    main()
