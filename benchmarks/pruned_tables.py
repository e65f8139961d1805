"""Rows of tables that traffic hardly reads: how many `prune-tables` maps to one on real sets.

A part of ``benchmarks/pruning.py``, which writes the page. Lookups are counted in the rows that the
models were trained on; ΔNE is told by later ones (census: by others), which nothing looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rankc
import torch
from rankc.models import DLRM, DLRMConfig
from rankc.models.data import RankingData, load_census, load_flights, load_movielens
from rankc.models.rows import Rows
from rankc.models.train import train

BUDGET = 2e-4
#: The share of the rows that is worth a list of places.
WORTH = 0.3
PIPELINE = "default,+prune-tables@before:place-precision"
SETS: Mapping[str, Callable[[], RankingData]] = {
    "flights": load_flights,
    "MovieLens-100K": load_movielens,
    "census": lambda: load_census(("income",)),
}


def tables_cell(cells: Path, name: str, seed: int) -> dict[str, Any]:
    """What became of a set's tables; made if it isn't there.

    Args:
        cells: Folder of what is kept.
        name: Of the set.
        seed: Of the weights and the order of the rows.
    """
    kept = cells / f"tables-{name}-{seed}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    data = SETS[name]()
    task = data.tasks[0]
    torch.manual_seed(seed)
    width = data.train.dense.shape[1]
    model = DLRM(DLRMConfig(data.cardinalities, width, 16, bottom=(128, 64), top=(128, 64)))
    train(model, data.train, task=task, seed=seed)
    artifact = rankc.optimize(
        model,
        data=as_batches(data.test, task),
        calibration=as_batches(data.train, task),
        budget=rankc.Budget(ne=BUDGET),
        pipeline=PIPELINE,
    )
    sites = [site for site in artifact.report.sites if site.kind == "rows"]
    (delta,) = artifact.verdict.delta_ne.values()
    cell = {
        "rows": sum(data.cardinalities),
        "bytes": sum(data.cardinalities) * 16 * 4,
        "tables": len(data.cardinalities),
        "chosen": [chosen(site) for site in sites if site.shape[0] > site.shape[1]],
        "delta_ne": (delta.estimate, delta.low, delta.high),
        "proof": delta.rows,
        "status": str(artifact.verdict.status),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(cell, indent=1))
    print("tables", name, seed, cell, flush=True)
    return cell


def chosen(site: Any) -> dict[str, float]:
    """Rows and bytes gone and the share of lookups they had, of the option that was taken."""
    gone = site.shape[0] - site.shape[1] + 1
    taken = next(option for option in site.candidates if option["rows"] == gone)
    before = site.shape[0] * 16 * 4
    return {"gone": gone, "saved": before - taken["bytes"], "lookups": taken["lookups"]}


def as_batches(rows: Rows, task: str) -> list[rankc.Batch]:
    """Rows as `optimize` takes them."""
    parts = [rows.take(slice(start, start + 8192)) for start in range(0, len(rows), 8192)]
    return [
        rankc.Batch((torch.from_numpy(p.dense), torch.from_numpy(p.ids)), p.labels[task], p.group)
        for p in parts
    ]


def tables_section(cells: Path, seeds: Sequence[int], make: bool) -> list[str]:
    """The page's part on tables.

    Args:
        cells: Folder of what is kept.
        seeds: Of the models.
        make: Whether what is missing is made.
    """
    lines = [
        "## Tables",
        "",
        f"DLRM (16 columns), `prune-tables` within ΔNE of {BUDGET:.2%}, lookups counted in the "
        "training rows (`calibration=`). Rows that go share one a table; ΔNE is the whole "
        "artifact's: mean over the seeds, and the widest bounds of their intervals.",
        "",
        "| set | seeds | rows of tables | they share one | their lookups | bytes | "
        f"ΔNE % | ≥ {WORTH:.0%} within {BUDGET:.2%} |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name in SETS:
        there = [s for s in seeds if make or (cells / f"tables-{name}-{s}.json").exists()]
        found = [tables_cell(cells, name, seed) for seed in there]
        if found:
            lines.append(_line(name, found))
    return lines


def _line(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    gone = [sum(t["gone"] for t in cell["chosen"]) / cell["rows"] for cell in found]
    left = [1.0 - sum(t["saved"] for t in cell["chosen"]) / cell["bytes"] for cell in found]
    # Every row of traffic looks up once in each table.
    share = [sum(t["lookups"] for t in cell["chosen"]) / cell["tables"] for cell in found]
    mean = float(np.mean([cell["delta_ne"][0] for cell in found]))
    low, high = (f([cell["delta_ne"][i] for cell in found]) for f, i in ((min, 1), (max, 2)))
    within = sum(
        cell["delta_ne"][2] <= BUDGET and part >= WORTH
        for cell, part in zip(found, gone, strict=True)
    )
    return (
        f"| {name} | {len(found)} | {found[0]['rows']:,} | {np.mean(gone):.0%} | "
        f"{np.mean(share):.2%} | × {np.mean(left):.2f} | "
        f"{100 * mean:+.4f} [{100 * low:+.4f}, {100 * high:+.4f}] | {within} of {len(found)} |"
    )
