"""Pruned models that go on learning: units chosen once beside units that follow the stream.

A part of ``benchmarks/pruning.py``, which writes the page. Two real sets in the order of time, and
one whose clicks follow one half of the features and, from the fifth window on, the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rankc
import torch
from pruned_tables import as_batches
from rankc.models import DLRM, DLRMConfig
from rankc.models.data import RankingData, load_flights, load_movielens
from rankc.models.rows import Rows
from rankc.models.train import train
from rankc.optimizer.pruning.stream import Followed, Window
from scipy import special
from torch import Tensor, nn

WINDOWS, SHIFT, PLANTED_ROWS = 8, 5, 4096
PLANTED = "planted shift"
LOADERS = {"flights": load_flights, "MovieLens-100K": load_movielens}
STREAMS = (PLANTED, *LOADERS)
#: What learns slowly enough that a window isn't learned by heart, and fast enough to follow.
PLANS = {
    PLANTED: rankc.Stream(flops=0.75, lr=5e-3, batch_size=256, epochs=2, moved=0.3, worse=0.03),
    "flights": rankc.Stream(flops=0.75),
    "MovieLens-100K": rankc.Stream(flops=0.75, batch_size=256),
}


class Halves(nn.Module):
    """A tower over each half of the input, and a layer over both."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Linear(8, 32) for _ in range(2))
        self.top = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B]`` of ``[B, 16]``."""
        halves = zip(self.towers, x.chunk(2, dim=1), strict=True)
        hidden = [tower(half).relu() for tower, half in halves]
        logits: Tensor = self.top(torch.cat(hidden, dim=1)).squeeze(1)
        return logits


def planted(generator: torch.Generator, half: int) -> tuple[Tensor, Tensor]:
    """Rows and clicks, more likely the larger the values of one half are."""
    x = torch.randn(PLANTED_ROWS, 16, generator=generator)
    size = x.chunk(2, dim=1)[half].abs().mean(1)
    return x, torch.bernoulli(torch.sigmoid(12.0 * size - 9.6), generator=generator)


def planted_stream(seed: int) -> tuple[nn.Module, Iterator[tuple[Any, list[rankc.Batch]]]]:
    """A model trained on the first half's clicks, and the windows."""
    generator = torch.Generator().manual_seed(1000 + seed)
    torch.manual_seed(seed)
    model = Halves()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        x, y = planted(generator, 0)
        for rows, clicks in zip(x.split(512), y.split(512), strict=True):
            loss = nn.functional.binary_cross_entropy_with_logits(model(rows), clicks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def windows() -> Iterator[tuple[Any, list[rankc.Batch]]]:
        for number in range(1, WINDOWS + 1):
            x, y = planted(generator, int(number >= SHIFT))
            yield np.full(len(x), number), [rankc.Batch((x,), y)]

    return model.eval(), windows()


@cache
def in_time(name: str) -> RankingData:
    """A set whose rows are in the order of time, loaded once."""
    return LOADERS[name]()


def real_stream(name: str, seed: int) -> tuple[nn.Module, Iterator[tuple[Any, list[rankc.Batch]]]]:
    """A model trained on the first fifth of the rows, and the rest in windows."""
    data = in_time(name)
    task = data.tasks[0]
    torch.manual_seed(seed)
    width = data.train.dense.shape[1]
    model = DLRM(DLRMConfig(data.cardinalities, width, 16, bottom=(128, 64), top=(128, 64)))
    total = len(data.train) + len(data.test)
    train(model, data.train.take(slice(0, total // 5)), task=task, seed=seed)

    def windows() -> Iterator[tuple[Any, list[rankc.Batch]]]:
        # The training rows are four fifths: three in six windows, the test rows in two.
        for rows, count in ((data.train.take(slice(total // 5, None)), 6), (data.test, 2)):
            edges = np.linspace(0, len(rows), count + 1).astype(int)
            for start, stop in pairwise(edges):
                part: Rows = rows.take(slice(start, stop))
                yield part.timestamp, as_batches(part, task)

    return model, windows()


def stream_cell(cells: Path, name: str, seed: int) -> Followed:
    """What became of the models on a stream, by window; made if it isn't there."""
    kept = cells / f"stream-{name.replace(' ', '_')}-{seed}.json"
    if not kept.exists():
        model, windows = planted_stream(seed) if name == PLANTED else real_stream(name, seed)
        first = next(windows)
        program = rankc.capture(model, first[1][0].inputs)
        followed = PLANS[name].follow(program, chain([first], windows))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([asdict(one) for one in followed.windows], indent=1))
        print("stream", name, seed, followed.table(), sep="\n", flush=True)
    return Followed(tuple(Window(**one) for one in json.loads(kept.read_text())), {})


def streams_section(cells: Path, seeds: Sequence[int], make: bool, page: Path) -> list[str]:
    """The page's part on streams; plots are written beside it.

    Args:
        cells: Folder of what is kept.
        seeds: Of the models.
        make: Whether what is missing is made.
        page: Where the page will be.
    """
    lines = [
        "## Streams",
        "",
        f"`rankc.Stream` with {PLANS[PLANTED].flops:.0%} of the FLOPs gone, each window scored "
        "before anything learns from it: ΔNE over the dense model that learns alike, means over "
        "the seeds. DLRM on the real sets, trained on the first fifth of the rows; on the planted "
        f"shift clicks follow the other half of the features from window {SHIFT} on. The last "
        f"line is adaptive less fixed from window {SHIFT} on, with its 95 % interval over the "
        "seeds.",
    ]
    for name in STREAMS:
        file = f"stream-{name.replace(' ', '_')}"
        there = [s for s in seeds if make or (cells / f"{file}-{s}.json").exists()]
        found = [stream_cell(cells, name, seed).windows for seed in there]
        if found:
            plot = page.with_name(f"{file.lower()}.svg")
            plot.write_text(Followed(_averaged(found), {}).plot())
            lines += ["", f"### {name}", "", *_table(found), "", f"![{name}]({plot.name})"]
    return lines


def _averaged(found: Sequence[Sequence[Window]]) -> tuple[Window, ...]:
    """Windows of mean losses."""
    return tuple(
        replace(
            windows[0],
            loss={
                arm: {
                    task: float(np.mean([one.loss[arm][task] for one in windows])) for task in tasks
                }
                for arm, tasks in windows[0].loss.items()
            },
        )
        for windows in zip(*found, strict=True)
    )


def _table(found: Sequence[Sequence[Window]]) -> list[str]:
    lines = [
        f"| window | rows | log loss, dense | fixed, Δ % | adaptive, Δ % | chosen anew, of "
        f"{len(found)} |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for windows in zip(*found, strict=True):
        dense = np.mean([max(one.loss["dense"].values()) for one in windows])
        fixed, adaptive = (
            100 * np.mean([one.delta_ne(arm) for one in windows]) for arm in ("fixed", "adaptive")
        )
        again = sum(one.replanned for one in windows)
        lines.append(
            f"| {windows[0].number} | {windows[0].rows:,} | {dense:.4f} | {fixed:+.3f} | "
            f"{adaptive:+.3f} | {again} |"
        )
    later = [windows[SHIFT - 1 :] for windows in found]
    gains = [
        float(np.mean([one.delta_ne("adaptive") - one.delta_ne("fixed") for one in windows]))
        for windows in later
    ]
    return [*lines, f"| {SHIFT} to {len(found[0])} | | | | {percent_over(gains)} | |"]


def percent_over(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over the seeds, in percent."""
    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.3f}"
    error = 100 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(special.stdtrit(len(values) - 1, 0.975)) * error
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
