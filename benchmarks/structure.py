"""What the exact and rounding passes gain in fp32, beside the peers, on the whole zoo.

``make bench-structure`` writes ``benchmarks/results/structure.md``. Ours is `rankc.optimize` for
cpu-fp32, at each batch size with the backend that a race of its own finds faster there; the peers
are eager PyTorch, torch.compile (default, and with frozen weights), ONNX Runtime on what torch.onnx
writes, and OpenVINO on the same file, all in fp32. Every peer and ours run in one process on one
thread, interleaved; times are medians of process CPU time, which leaves out what other processes
took. Outputs are compared with eager's. Each model is kept under ``build/structure`` once it is
done, so that a run that was stopped goes on.

torch.onnx writes an EmbeddingBag as a loop over its bags, which one runtime takes thirty times as
long for as for a lookup and a sum, and the other not at all: the two get the latter.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import rankc
import torch
from rankc.models import ZOO
from rankc.optimizer.artifact.chunks import piece_of
from rankc.optimizer.artifact.race import Race
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import UnsupportedError
from rankc.optimizer.ir.structure import Branch
from rankc.optimizer.ir.torchapi import silenced
from rankc.optimizer.report.records import Outcome, PassRecord
from rankc.optimizer.timing import side_by_side
from torch import Tensor, nn

CELLS = Path("build/structure")
BATCHES = (1, 64, 512, 2048)
PEERS = ("eager", "compile", "compile frozen", "onnxruntime", "openvino")
#: Rows a table is capped at: enough to leave the caches, little enough to fit the machine.
MAX_ROWS = 100_000

Arrays = Mapping[str, np.ndarray]
Scorer = Callable[[Arrays], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Result:
    """One model at one batch size.

    Attributes:
        backend: Which one serves ours, and the rows of the pieces it takes large batches in.
        milliseconds: By candidate.
        divergence: How far ours is from eager.
    """

    model: str
    batch: int
    backend: str
    milliseconds: Mapping[str, float]
    divergence: float

    @property
    def best_peer(self) -> str:
        """The fastest peer's name."""
        return min(
            (p for p in self.milliseconds if p != "rankc"), key=self.milliseconds.__getitem__
        )

    @property
    def ratio(self) -> float:
        """How many times faster ours is than the fastest peer."""
        return self.milliseconds[self.best_peer] / self.milliseconds["rankc"]


@dataclass(frozen=True)
class Step:
    """What one pass that changed the model did: nodes, FLOPs a row and bytes, before and after."""

    spec: str
    nodes: tuple[int, int]
    flops: tuple[float, float]
    nbytes: tuple[int, int]
    seconds: float

    @classmethod
    def of(cls, record: PassRecord) -> Step:
        """From the report's record."""
        sizes = record.before, record.after
        nodes, flops, nbytes = (
            [getattr(size, name) for size in sizes] for name in ("nodes", "flops", "nbytes")
        )
        return cls(record.spec, tuple(nodes), tuple(flops), tuple(nbytes), record.seconds)

    @property
    def line(self) -> str:
        """The columns of the table."""
        before, after = zip(self.nodes, self.flops, self.nbytes, strict=True)
        return (
            f"{self.spec} | {before[0]} → {after[0]} | {before[1] / 1e3:.1f} → "
            f"{after[1] / 1e3:.1f} | {before[2] / 2**20:.2f} → {after[2] / 2**20:.2f} | "
            f"{self.seconds:.2f}"
        )


@dataclass(frozen=True)
class Measured:
    """What came of one model: times, and what the passes did for the backend it is served by."""

    results: tuple[Result, ...]
    steps: tuple[Step, ...]
    seconds: float

    @classmethod
    def load(cls, path: Path) -> Measured:
        """From the file that `save` wrote."""
        found = json.loads(path.read_text())
        results = tuple(Result(**result) for result in found["results"])
        return cls(results, tuple(Step(**step) for step in found["steps"]), found["seconds"])

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.rename(path)


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="all", help="names of the zoo, comma-separated")
    parser.add_argument("--size", choices=("paper", "small"), default="paper")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/structure.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = list(ZOO) if arguments.models == "all" else arguments.models.split(",")
    batches = tuple(int(size) for size in arguments.batches.split(","))
    found: dict[str, Measured] = {}
    for name in names:
        model = build(name, arguments.size)
        if model is None:
            continue
        path = CELLS / f"{name}-{arguments.size}.json"
        if not path.is_file():
            measure(name, model, batches, tuple(arguments.peers.split(","))).save(path)
        found[name] = Measured.load(path)
        for result in found[name].results:
            print(row(result), flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(report(found, arguments.size))


def build(name: str, size: str) -> nn.Module | None:
    """The zoo's model at the size; None where it has no preset of that size."""
    module, _, factory = ZOO[name].partition(":")
    owner, _, small = factory.partition(".")
    torch.manual_seed(0)
    found = getattr(importlib.import_module(module), owner)
    if size == "small":
        return getattr(found, small)().eval()
    paper = getattr(found, small.replace("small", "paper"), None)
    return None if paper is None else paper(max_rows=MAX_ROWS).eval()


def measure(name: str, model: nn.Module, batches: Sequence[int], peers: Sequence[str]) -> Measured:
    """Times ours and every peer at every batch size."""
    artifacts = optimized(model, batches)
    first = next(iter(artifacts.values()))
    rows = synthesize(first.signature, max(batches), seed=1)
    runs = {n: artifact.open(1) for n, artifact in artifacts.items()}
    serve_alone(model, first)
    chosen = fastest(runs, rows, batches)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        scorers = make_scorers(model, first, Path(folder), peers)
        for batch in batches:
            features = {n: v.numpy() for n, v in rows.part(0, batch).features.items()}
            ours = runs[chosen[batch]]
            reference = scorers["eager"](features)
            calls = {"rankc": partial(ours, features)}
            calls |= {n: partial(scorer, features) for n, scorer in scorers.items()}
            timed = side_by_side(calls, rounds=11, clock=time.process_time)
            results.append(
                Result(
                    name,
                    batch,
                    served_by(artifacts[chosen[batch]], batch),
                    {n: 1e3 * timing.median for n, timing in timed.items()},
                    max(
                        relative(a, b)
                        for a, b in zip(ours(features).values(), reference, strict=True)
                    ),
                )
            )
    torch.compiler.reset()
    records = artifacts[chosen[max(batches)]].report.records
    steps = [Step.of(record) for record in records if record.outcome is Outcome.CHANGED]
    return Measured(tuple(results), tuple(steps), sum(r.seconds for r in records))


def serve_alone(model: nn.Module, artifact: rankc.Artifact) -> None:
    """Drops the outputs that only training needs: no peer should have to compute them."""
    template = artifact.manifest.outputs.template
    if isinstance(template, Branch) and template.kind == "dict":
        model.register_forward_hook(lambda *call: {key: call[2][key] for key in template.keys})


def served_by(artifact: rankc.Artifact, batch: int) -> str:
    """The backend, and the pieces where the batch is run in pieces."""
    piece = piece_of(artifact.manifest.pieces, batch)
    name = artifact.manifest.backend
    return f"{name}, {piece} rows at once" if piece else name


def optimized(model: nn.Module, batches: Sequence[int]) -> dict[str, rankc.Artifact]:
    """What `rankc.optimize` makes of the model with each backend that takes it."""
    target = rankc.Target.of("cpu-fp32")
    found = {}
    for name in target.backends:
        try:
            alone = replace(target, backends=(name,))
            found[name] = rankc.optimize(model, target=alone, batch_sizes=tuple(batches))
        except UnsupportedError as error:
            print(f"{name}: {error}", flush=True)
    return found


def fastest(
    runs: Mapping[str, Callable[..., object]], rows: Rows, batches: Sequence[int]
) -> dict[int, str]:
    """The backend that `rankc.optimize` would choose for each batch size."""
    race = Race.of(runs, rows, batches)
    times = race.milliseconds
    return {batch: min(times, key=lambda name: times[name][batch]) for batch in batches}


def make_scorers(
    model: nn.Module, artifact: rankc.Artifact, folder: Path, peers: Sequence[str]
) -> dict[str, Scorer]:
    """The peers as functions of feature arrays."""
    structure = artifact.manifest.inputs

    def torch_scorer(module: Callable[..., object]) -> Scorer:
        def score(features: Arrays) -> Sequence[np.ndarray]:
            tensors = {n: torch.from_numpy(v) for n, v in features.items()}
            with torch.inference_mode():
                scores = module(**structure.unflatten(tensors))
            return [v.numpy() for v in artifact.manifest.outputs.flatten(scores).values()]

        return score

    scorers: dict[str, Scorer] = {"eager": torch_scorer(model)}
    if "compile" in peers:
        scorers["compile"] = torch_scorer(torch.compile(model, dynamic=False))
    if "compile frozen" in peers:
        frozen = torch.compile(model, dynamic=False, options={"freezing": True})
        scorers["compile frozen"] = torch_scorer(frozen)
    if {"onnxruntime", "openvino"} & set(peers):
        path = export(without_bags(model), artifact, folder)
        made = {"onnxruntime": onnxruntime_scorer, "openvino": openvino_scorer}
        scorers |= {name: make(path) for name, make in made.items() if name in peers}
    return scorers


class SummedRows(nn.Module):
    """What an EmbeddingBag does, as a lookup and a sum or mean."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        if bag.mode == "max":
            raise ValueError(f"no plain form of {bag}")
        self.weight, self.mode, self.padding = bag.weight, bag.mode, bag.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.weight)
        if self.padding is None:
            return rows.sum(1) if self.mode == "sum" else rows.mean(1)
        held = (ids != self.padding).unsqueeze(-1).to(rows.dtype)
        total = (rows * held).sum(1)
        return total if self.mode == "sum" else total / held.sum(1).clamp(min=1.0)


def without_bags(model: nn.Module) -> nn.Module:
    """The model with its parameters, and `SummedRows` in the place of bags."""
    shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, shared)
    bags = [(name, m) for name, m in plain.named_modules() if isinstance(m, nn.EmbeddingBag)]
    for name, bag in bags:
        plain.set_submodule(name, SummedRows(bag))
    return plain


def export(model: nn.Module, artifact: rankc.Artifact, folder: Path) -> Path:
    """The model as torch.onnx writes it."""
    features = synthesize(artifact.signature, 8).features
    structure = artifact.manifest.inputs
    batch = torch.export.Dim("batch")
    dynamic = structure.unflatten({name: {0: batch} for name in features})
    with silenced():
        made = torch.onnx.export(
            model,
            kwargs=structure.unflatten(features),
            dynamo=True,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert made is not None
    made.save(folder / "plain.onnx")
    return folder / "plain.onnx"


def onnxruntime_scorer(path: Path) -> Scorer:
    """ONNX Runtime on one thread, all its optimizations on."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def score(features: Arrays) -> Sequence[np.ndarray]:
        found: Sequence[np.ndarray] = session.run(
            None, dict(zip(names, features.values(), strict=True))
        )
        return found

    return score


def openvino_scorer(path: Path, precision: str = "f32") -> Scorer:
    """OpenVINO on one thread, computing in the given precision."""
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def score(features: Arrays) -> Sequence[np.ndarray]:
        found = request.infer(list(features.values()), share_inputs=True)
        return [found[output] for output in compiled.outputs]

    return score


def relative(left: np.ndarray, right: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(left - right).max() / max(np.abs(right).max(), 1e-30))


def row(result: Result) -> str:
    """One line of the table."""
    times = " | ".join(
        f"{result.milliseconds[p]:.3f}" if p in result.milliseconds else "–"
        for p in ("rankc", *PEERS)
    )
    return (
        f"| {result.model} | {result.batch} | {result.backend} | {times} | {result.best_peer} | "
        f"{result.ratio:.2f}× | {result.divergence:.0e} |"
    )


def report(found: Mapping[str, Measured], size: str) -> str:
    """The page."""
    libraries = ("torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    results = [result for measured in found.values() for result in measured.results]
    lines = [
        "# Structure: the zoo in fp32",
        "",
        f"{size} presets, tables capped at {MAX_ROWS:,} rows, one thread, interleaved, medians of "
        f"process CPU time in milliseconds. {versions}, Python {platform.python_version()}, "
        f"{processor()}.",
        "",
        f"| model | batch | served by | rankc | {' | '.join(PEERS)} | best peer | rankc over it | "
        "difference |",
        "| --- | ---: | --- |" + " ---: |" * (len(PEERS) + 1) + " --- | ---: | ---: |",
        *(row(result) for result in results),
        "",
        "## Geometric means over the models",
        "",
        "| batch | rankc over the best peer | smallest |",
        "| ---: | ---: | ---: |",
    ]
    for batch in sorted({result.batch for result in results}):
        ratios = [result.ratio for result in results if result.batch == batch]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"| {batch} | {mean:.2f}× | {min(ratios):.2f}× |")
    lines += passes(found)
    return "\n".join(lines) + "\n"


def passes(found: Mapping[str, Measured]) -> list[str]:
    """What each pass that changed a model did to its size, and how long all of them took."""
    lines = [
        "",
        "## What the passes did",
        "",
        "Nodes, thousands of FLOPs a row, and mebibytes of parameters, before → after. The last "
        "column is the whole pipeline's seconds.",
        "",
        "| model | pass | nodes | kFLOPs | MiB | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, measured in found.items():
        lines += [f"| {name} | {step.line} |" for step in measured.steps]
        if measured.steps:
            first, last = measured.steps[0], measured.steps[-1]
            pairs = (
                (first.nodes, last.nodes),
                (first.flops, last.flops),
                (first.nbytes, last.nbytes),
            )
            whole = Step("**all**", *((a[0], b[1]) for a, b in pairs), measured.seconds)
            lines.append(f"| {name} | {whole.line} |")
    return lines


def processor() -> str:
    """The CPU's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
