"""Requests: one user and many candidates, beside peers that get the user once for each.

``make bench-requests`` writes ``benchmarks/results/requests.md``. Everything runs in one process on
one thread, interleaved; times are medians of process CPU time. The peers are eager PyTorch, and
ONNX Runtime and OpenVINO on what torch.onnx writes, all in fp32.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rankc
import torch
from rankc.models import DIN, EarlyStage, TwoSided, TwoTower
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.requests.entry import one_user
from rankc.optimizer.requests.request import replicated
from rankc.optimizer.timing import side_by_side
from structure import Scorer, make_scorers
from torch import Tensor, nn

CANDIDATES = (64, 512, 2048)
PEERS = ("eager", "onnxruntime", "openvino")
PAGE = Path("benchmarks/results/requests.md")
MAX_ROWS = 20_000
#: Requests of this many candidates are what formats are chosen and proved on.
PER_REQUEST, TRAFFIC = 20, 6_000
TARGETS = ("cpu-fp32", "cpu-int8")
SIDES = ("user_dense", "user_ids", "user_history")
Lines = Iterator[str]


@dataclass(frozen=True)
class Case:
    """A model, and what its candidates share."""

    name: str
    model: nn.Module
    shared: tuple[str, ...]


def cases() -> Iterator[Case]:
    """Models of the sizes that are served."""
    yield Case("TwoSided", TwoSided.paper(MAX_ROWS), SIDES)
    early = replace(EarlyStage.paper(MAX_ROWS).config, auxiliary=())
    yield Case("EarlyStage", EarlyStage(early), SIDES)
    yield Case("TwoTower", TwoTower.paper(MAX_ROWS), ("user_dense", "user_ids"))
    yield Case("DIN", DIN.paper(MAX_ROWS), ("dense", "ids", "history", "mask"))


def main() -> None:
    """Measures the models and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="", help="comma-separated; all when empty")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--candidates", default=",".join(map(str, CANDIDATES)))
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = tuple(int(size) for size in arguments.candidates.split(","))
    lines = list(head())
    torch.manual_seed(0)
    for case in cases():
        if arguments.models and case.name not in arguments.models.split(","):
            continue
        started = time.perf_counter()
        for line in rows_of(case, arguments.targets.split(","), sizes):
            print(line, flush=True)
            lines.append(line)
        print(f"[{case.name}: {time.perf_counter() - started:.0f} s]", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join((*lines, "")))


def head() -> Lines:
    """What the page says above the table."""
    libraries = ("torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    yield from (
        "# Requests",
        "",
        "One thread, interleaved, medians of process CPU time in milliseconds a request; tables of "
        f"at most {MAX_ROWS:,} rows. {versions}, Python {platform.python_version()}.",
        "",
        "The peers are in fp32 and get the user once for each candidate; `flat` is rankc's "
        "artifact on the same rows, `request` its entry for requests. *Apart*: the largest "
        "difference of the request's scores from eager PyTorch's, over the largest score. "
        f"Formats of `cpu-int8` were chosen and proved on {TRAFFIC:,} made-up rows, {PER_REQUEST} "
        "a request, with the original's scores as soft labels and a budget of ΔNE 0.02 %; weights "
        "are untrained.",
        "",
        "| model | target | candidates | "
        + " | ".join(PEERS)
        + " | flat | request | over the best "
        "peer | over ONNX Runtime | over flat | apart |",
        "| --- | --- | ---: |" + " ---: |" * (len(PEERS) + 6),
    )


def rows_of(case: Case, targets: Sequence[str], sizes: Sequence[int]) -> Lines:
    """A line per target and number of candidates."""
    program = rankc.capture(case.model.eval())
    traffic = requests(program, case.shared)
    for target in targets:
        artifact = rankc.optimize(
            program,
            target,
            data=traffic,
            request=rankc.Request(case.shared),
            budget=rankc.Budget(ne=2e-4, two_sided=False),
        )
        with tempfile.TemporaryDirectory() as folder:
            scorers = make_scorers(case.model, artifact, Path(folder), PEERS)
            for size in sizes:
                times, apart = measured(case, artifact, scorers, size)
                best = min(times[peer] for peer in PEERS)
                names = (*PEERS, "flat", "request")
                shown = " | ".join(f"{times[n]:.3f}" for n in names)
                ratios = " | ".join(
                    f"{over / times['request']:.2f}×"
                    for over in (best, times["onnxruntime"], times["flat"])
                )
                yield f"| {case.name} | {target} | {size} | {shown} | {ratios} | {apart:.1e} |"


def requests(program: rankc.Program, shared: Sequence[str]) -> list[rankc.Batch]:
    """Made-up traffic in requests."""
    rows = synthesize(program.signature, TRAFFIC, seed=3).features
    group = torch.arange(TRAFFIC) // PER_REQUEST
    first = group * PER_REQUEST
    features = {n: v[first] if n in shared else v for n, v in rows.items()}
    step = 100 * PER_REQUEST
    return [
        rankc.Batch(
            arguments(program, {n: v[at : at + step] for n, v in features.items()}),
            group=group[at : at + step],
        )
        for at in range(0, TRAFFIC, step)
    ]


def arguments(program: rankc.Program, features: Mapping[str, Tensor]) -> tuple[object, ...]:
    """Features as the model's positional arguments."""
    nested = program.inputs.unflatten(features)
    return tuple(nested[name] for name in program.arguments)


def measured(
    case: Case, artifact: rankc.Artifact, scorers: Mapping[str, Scorer], size: int
) -> tuple[dict[str, float], float]:
    """Milliseconds by name, and how far the request's scores are from eager PyTorch's."""
    rows = synthesize(artifact.signature, size, seed=1).features
    once = one_user(rows, case.shared)
    flat = {n: v.numpy() for n, v in replicated(once, case.shared, size).items()}
    arrays = {n: v.numpy() for n, v in once.items()}
    request = artifact.open_request(1)
    calls = {name: partial(scorer, flat) for name, scorer in scorers.items()}
    calls["flat"] = partial(artifact.open(1), flat)
    calls["request"] = partial(request, arrays)
    timed = side_by_side(calls, rounds=11, clock=time.process_time)
    want, got = scorers["eager"](flat), request(arrays).values()
    apart = max(
        float(np.abs(w - g).max() / np.abs(w).max()) for w, g in zip(want, got, strict=True)
    )
    return {name: 1e3 * timing.median for name, timing in timed.items()}, apart


if __name__ == "__main__":
    main()
