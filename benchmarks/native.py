"""What the native operators gain: kernel by kernel, and on whole models.

``make bench-native`` writes ``benchmarks/results/native.md``. Each module is lowered as an artifact
would be, and one file runs twice: with the library of native operators, and without, where ONNX
Runtime takes the standard forms. Beside them eager PyTorch, and FBGEMM's inference tables where
fbgemm-gpu-cpu is installed. All run in one process on one thread, interleaved, as medians of
process CPU time; every call has other ids than the call before, so that rows aren't in the caches.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rankc
import torch
from rankc.backends.onnx.files import MODEL
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.backends.onnxruntime.runtime import OrtRunner
from rankc.models import DLRM
from rankc.optimizer.analysis.sites import table_sites
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Rewriter, sweep
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.precision.table_formats import realise_table
from rankc.optimizer.timing import side_by_side
from structure import build
from torch import Tensor, nn

BATCHES = (64, 512)
#: Calls before ids come again.
DRAWS = 8
ROWS = 100_000
MODELS = ("dlrm", "dlrm-multihot", "din", "two-sided", "deepfm", "afm")
TARGET = rankc.Target.of("cpu-fp32")

Call = Callable[[], object]


class Bags(nn.Module):
    """Sums of the rows of some ids in each of some tables, behind one another."""

    def __init__(self, tables: int, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, width, mode="sum") for _ in range(tables))

    def forward(self, ids: Tensor) -> Tensor:
        """Pools ``[B, tables, size]`` ids to ``[B, tables * width]``."""
        return torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)

    def draw(self, batch: int) -> tuple[Tensor, ...]:
        """Ids of a batch."""
        return (torch.randint(0, ROWS, (batch, len(self.tables), self.size)),)


class ListedBags(nn.Module):
    """Means of the rows of ids that offsets cut from a list."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.EmbeddingBag(ROWS, width, mode="mean", include_last_offset=True)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Pools ids ``[N]`` by offsets ``[B + 1]`` to ``[B, width]``."""
        pooled: Tensor = self.table(ids, offsets)
        return pooled

    def draw(self, batch: int) -> tuple[Tensor, ...]:
        """Bags of no ids to twice the size."""
        lengths = torch.randint(0, 2 * self.size + 1, (batch,))
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return torch.randint(0, ROWS, (int(offsets[-1]),)), offsets


class Rows(nn.Module):
    """A row of each table beside dense features."""

    def __init__(self, tables: int, width: int, dense: int) -> None:
        super().__init__()
        self.dense = dense
        self.tables = nn.ModuleList(nn.Embedding(ROWS, width) for _ in range(tables))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Joins ``[B, dense]`` and the rows of ``[B, tables]`` ids."""
        return torch.cat([dense, *(table(ids[:, i]) for i, table in enumerate(self.tables))], 1)

    def draw(self, batch: int) -> tuple[Tensor, ...]:
        """Dense features and ids of a batch."""
        return torch.randn(batch, self.dense), torch.randint(0, ROWS, (batch, len(self.tables)))


class Interaction(Rows):
    """DLRM's: dot products of all pairs of rows and of the dense vector, beside the latter."""

    def __init__(self, tables: int, width: int) -> None:
        super().__init__(tables, width, width)
        count = tables + 1
        self.rows = [i for i in range(count) for _ in range(i)]
        self.columns = [j for i in range(count) for j in range(i)]

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Gives ``[B, width + pairs]``."""
        vectors = super().forward(dense, ids).view(len(dense), -1, self.dense)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        return torch.cat([dense, dots], 1)


class Stacked(nn.Module):
    """A row of each of the features of one table."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.table = nn.Embedding(ROWS, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Looks ``[B, features]`` ids up."""
        rows: Tensor = self.table(ids)
        return rows

    def draw(self, batch: int) -> tuple[Tensor, ...]:
        """Ids of a batch."""
        return (torch.randint(0, ROWS, (batch, self.features)),)


class Pairs(Stacked):
    """AFM's: elementwise products of all pairs of them."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.rows = [i for i in range(features) for _ in range(i)]
        self.columns = [j for i in range(features) for j in range(i)]

    def forward(self, ids: Tensor) -> Tensor:
        """Gives ``[B, pairs, width]``."""
        rows = super().forward(ids)
        return rows[:, self.rows] * rows[:, self.columns]


#: What is timed, and in which formats of tables.
KERNELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "26 bags of 10, width 64": (partial(Bags, 26, 10, 64), ("fp32", "fp16", "int8", "int4")),
    "26 bags of 10, width 128": (partial(Bags, 26, 10, 128), ("fp32", "int8")),
    "1 bag of 100, width 64": (partial(Bags, 1, 100, 64), ("fp32", "int8")),
    "bags of 0 to 40 by offsets, width 64": (partial(ListedBags, 20, 64), ("fp32", "int8")),
    "26 rows of width 16": (partial(Stacked, 26, 16), ("fp32", "int8")),
    "26 rows of width 64": (partial(Stacked, 26, 64), ("fp32", "int8")),
    "26 rows of width 16 beside 13": (partial(Rows, 26, 16, 13), ("fp32", "int8")),
    "26 rows of width 64 beside 13": (partial(Rows, 26, 64, 13), ("fp32", "fp16", "int8", "int4")),
    "dots of 27 vectors, width 64": (partial(Interaction, 26, 64), ("fp32", "int8")),
    "dots of 27 vectors, width 128": (partial(Interaction, 26, 128), ("fp32", "int8")),
    "products of 325 pairs, width 16": (partial(Pairs, 26, 16), ("fp32", "int8")),
    "products of 120 pairs, width 64": (partial(Pairs, 16, 64), ("fp32", "int8")),
}


@dataclass(frozen=True)
class Result:
    """One line of a table: milliseconds by candidate, and how far native is from standard."""

    name: str
    format: str
    batch: int
    milliseconds: Mapping[str, float]
    divergence: float

    def line(self, candidates: Sequence[str]) -> str:
        """The line."""
        native = self.milliseconds["native"]
        cells = [
            f"{self.milliseconds[c]:.3f} ({self.milliseconds[c] / native:.2f}×)"
            if c in self.milliseconds
            else "–"
            for c in candidates
        ]
        head = f"| {self.name} | {self.format} | {self.batch} | {native:.3f} | "
        return f"{head}{' | '.join(cells)} | {self.divergence:.0e} |"


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", default="", help="those whose name has this in it")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/native.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kernels: list[Result] = []
    models: list[Result] = []
    for name, (make, formats) in KERNELS.items():
        if arguments.kernels not in name:
            continue
        torch.manual_seed(0)
        kernels += measure_kernel(name, make().eval(), formats)
    for name in filter(None, arguments.models.split(",")):
        for target in ("cpu-fp32", "cpu-int8"):
            models += measure_model(name, target)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(report(kernels, models))


def measure_kernel(name: str, module: nn.Module, formats: Sequence[str]) -> list[Result]:
    """One module, its tables in each format, at each batch size."""
    captured = rankc.capture(module, module.draw(8))
    context = PassContext(TARGET)
    Pipeline.parse("rounding,structure").run(captured, context)
    results = []
    for number_format in formats:
        program = captured.clone()
        if number_format != "fp32":
            for lookups in table_sites(program).values():
                realise_table(Rewriter(program, "benchmark"), lookups, number_format)
            sweep(program)
        Pipeline.parse("grouping,eliminate").run(program, context)
        fbgemm = fbgemm_call(module, number_format)
        with tempfile.TemporaryDirectory() as folder:
            OnnxRuntime().build(program, TARGET, Path(folder), {})
            runners = runners_of(Path(folder) / MODEL)
        for batch in BATCHES:
            draws = [module.draw(batch) for _ in range(DRAWS)]
            feeds = [
                dict(zip(program.arguments, (value.numpy() for value in draw), strict=True))
                for draw in draws
            ]
            calls = {n: cycle(runner, [(feed,) for feed in feeds]) for n, runner in runners.items()}
            if number_format == "fp32":
                calls["eager"] = cycle(torch.inference_mode()(module), draws)
            if fbgemm is not None:
                calls["fbgemm"] = cycle(fbgemm, [flattened(draw) for draw in draws])
            results.append(timed(name, number_format, batch, calls, runners, feeds[0]))
    return results


def measure_model(name: str, target: str) -> list[Result]:
    """A model of the zoo at its paper's size, every table and linear in the format that pays.

    The models aren't trained, so the budget is one that any plan passes.
    """
    torch.manual_seed(0)
    if name == "dlrm-multihot":
        config = dataclasses.replace(DLRM.paper(ROWS).config, bag_size=10)
        model: nn.Module = DLRM(config).eval()
    else:
        found = build(name, "paper")
        assert found is not None, f"{name} has no size of its own"
        model = found
    data = None
    if target != "cpu-fp32":
        program = rankc.capture(model)
        rows = synthesize(program.signature, 6000, seed=3)
        data = []
        for start in range(0, 6000, 500):
            call = program.inputs.unflatten(rows.part(start, start + 500).features)
            inputs = tuple(call[name] for name in program.arguments)
            data.append(rankc.Batch(inputs, torch.rand(500).round()))
    budget = rankc.Budget(ne=0.99, max_rms_shift=1e6)
    artifact = rankc.optimize(model, target=target, data=data, budget=budget)
    runners = runners_of(artifact.onnx_path)
    results = []
    for batch in BATCHES:
        feeds = []
        for seed in range(DRAWS):
            features = synthesize(artifact.signature, batch, seed).features
            feeds.append({name: value.numpy() for name, value in features.items()})
        calls = {n: cycle(r, [(feed,) for feed in feeds]) for n, r in runners.items()}
        results.append(timed(name, target, batch, calls, runners, feeds[0]))
    return results


def runners_of(model: Path) -> dict[str, OrtRunner]:
    """The same file with the library and without."""
    return {
        "native": OrtRunner(model, 1, native=True),
        "onnxruntime": OrtRunner(model, 1, native=False),
    }


def cycle(call: Callable[..., object], draws: Sequence[tuple[object, ...]]) -> Call:
    """A call that takes the next draw each time."""
    endless = itertools.cycle(draws)
    return lambda: call(*next(endless))


def timed(
    name: str,
    number_format: str,
    batch: int,
    calls: Mapping[str, Call],
    runners: Mapping[str, OrtRunner],
    feed: Mapping[str, np.ndarray],
) -> Result:
    """Times candidates side by side, and prints the line."""
    native, standard = (runners[one](feed) for one in ("native", "onnxruntime"))
    divergence = max(
        float(np.abs(native[one] - standard[one]).max() / np.abs(standard[one]).max())
        for one in standard
    )
    found = side_by_side(calls, rounds=15, clock=time.process_time)
    milliseconds = {one: 1e3 * timing.median for one, timing in found.items()}
    result = Result(name, number_format, batch, milliseconds, divergence)
    print(result.line(("onnxruntime", "eager", "fbgemm")), flush=True)
    return result


def fbgemm_call(module: nn.Module, number_format: str) -> Callable[..., object] | None:
    """FBGEMM's tables of the same sizes; None where it isn't installed or has no such form."""
    if not isinstance(module, Bags):
        return None
    try:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
            IntNBitTableBatchedEmbeddingBagsCodegen,
        )
    except ImportError:
        return None
    width = module.tables[0].embedding_dim
    spec = ("", ROWS, width, SparseType(number_format), EmbeddingLocation.HOST)
    tables = IntNBitTableBatchedEmbeddingBagsCodegen(
        [spec] * len(module.tables), output_dtype=SparseType.FP32, device="cpu"
    )
    tables.fill_random_weights()
    call: Callable[..., object] = tables
    return call


def flattened(draw: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Ids table by table, and where each bag begins, as FBGEMM takes them."""
    (ids,) = draw
    batch, tables, size = ids.shape
    offsets = torch.arange(0, batch * tables * size + 1, size, dtype=torch.int32)
    return ids.transpose(0, 1).reshape(-1).int(), offsets


def report(kernels: Sequence[Result], models: Sequence[Result]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    peers = ("onnxruntime", "eager", "fbgemm")
    lines = [
        "# Native operators",
        "",
        f"{time.strftime('%Y-%m-%d')}; milliseconds a call of one thread, interleaved, medians of "
        f"process CPU time; in brackets, how many times native is faster. Tables of {ROWS:,} rows, "
        f"other ids at every call. {versions}, Python {platform.python_version()}; CPU: {cpu()}.",
        "",
        "## Kernels",
        "",
        "`onnxruntime` is the same file without the library: the standard forms, which the library "
        "replaces.",
        "",
        f"| kernel | tables | batch | native | {' | '.join(peers)} | difference |",
        "|---|---|---:|---:|" + "---:|" * (len(peers) + 1),
        *(result.line(peers) for result in kernels),
        "",
        "## Models",
        "",
        "At their papers' sizes, not trained, every linear and table in the format that pays.",
        "",
        "| model | target | batch | native | onnxruntime | difference |",
        "|---|---|---:|---:|---:|---:|",
        *(result.line(("onnxruntime",)) for result in models),
    ]
    return "\n".join(lines) + "\n"


def cpu() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


if __name__ == "__main__":
    main()
