"""What the placed formats gain on trained models, beside the peers, each judged by the same gate.

``make bench-precision`` writes ``benchmarks/results/precision.md``. Models are trained on real
data. Ours is `rankc.optimize` for cpu-int8 at 0.02 %; the peers are ONNX Runtime in fp32 and with
dynamic INT8, and OpenVINO in fp32 and bf16, on what torch.onnx writes. All scores are judged on the
same proof rows, at batch 512; all are timed in one process on one thread, interleaved, as medians
of process CPU time.
"""

from __future__ import annotations

import argparse
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
from onnxruntime.quantization import QuantType, quantize_dynamic
from rankc.models import DLRM, DCNv2, DCNv2Config, DeepFM, DeepFMConfig, DLRMConfig
from rankc.models.data import RankingData, load_census, load_flights
from rankc.models.train import train
from rankc.optimizer.data import collect, split
from rankc.optimizer.registry import backend
from rankc.optimizer.scoring import Judge, score
from rankc.optimizer.timing import side_by_side
from rankc.optimizer.verdict import Status, Verdict
from structure import Scorer, export, onnxruntime_scorer, openvino_scorer
from torch import nn

BUDGET = rankc.Budget(ne=2e-4)
BATCHES = (64, 512)
#: Loader, task and learning settings (learning rate, epochs) of each data set.
DATA: Mapping[str, tuple[Callable[[], RankingData], str]] = {
    "census": (load_census, "income"),
    "flights": (load_flights, "late_arr"),
}


@dataclass(frozen=True)
class Result:
    """One candidate on one model: its verdict and its milliseconds by batch size."""

    model: str
    candidate: str
    verdict: Verdict
    milliseconds: Mapping[int, float]


def main() -> None:
    """Trains, measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--models", default="dlrm,dcn_v2,deepfm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/precision.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in arguments.data.split(","):
        load, task = DATA[name]
        data = load()
        for kind in arguments.models.split(","):
            torch.manual_seed(arguments.seed)
            model = build(kind, data)
            train(model, data.train, task=task)
            results += measure(f"{name} {kind}", model.eval(), data, task)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(report(results, arguments.seed))


def build(kind: str, data: RankingData) -> nn.Module:
    """An untrained model at a width where linears matter."""
    dense = data.train.dense.shape[1]
    if kind == "dlrm":
        return DLRM(DLRMConfig(data.cardinalities, dense, 64, bottom=(512, 256), top=(512, 256)))
    if kind == "dcn_v2":
        return DCNv2(DCNv2Config(data.cardinalities, dense, embedding_dim=16, deep=(512, 256)))
    return DeepFM(DeepFMConfig(data.cardinalities, dense, embedding_dim=16, deep=(400, 400, 400)))


def measure(name: str, model: nn.Module, data: RankingData, task: str) -> list[Result]:
    """Judges and times ours and every peer."""
    batches = []
    for start in range(0, len(data.test), 2048):
        rows = data.test.take(slice(start, start + 2048))
        inputs = torch.from_numpy(rows.dense), torch.from_numpy(rows.ids)
        batches.append(rankc.Batch(inputs, rows.labels[task], rows.group, rows.cohorts))
    artifact = rankc.optimize(model, target="cpu-int8", data=batches, budget=BUDGET)
    program = rankc.capture(model, batches[0].inputs)
    proof = split(collect(batches, program)).proof
    judge = Judge.of(program, proof, BUDGET)
    outputs = program.signature.outputs
    with tempfile.TemporaryDirectory() as folder:
        scorers = make_scorers(model, artifact, Path(folder))
        timed: dict[str, dict[int, float]] = {name: {} for name in scorers}
        for batch in BATCHES:
            features = {n: v.numpy() for n, v in proof.part(0, batch).features.items()}
            calls = {n: partial(scorer, features) for n, scorer in scorers.items()}
            found = side_by_side(calls, rounds=11, clock=time.process_time)
            for candidate, timing in found.items():
                timed[candidate][batch] = 1e3 * timing.median
        results = []
        for candidate, scorer in scorers.items():

            def run(features: Mapping[str, torch.Tensor], scorer: Scorer = scorer) -> dict:
                scores = scorer({n: v.numpy() for n, v in features.items()})
                return dict(zip(outputs, map(np.asarray, scores), strict=True))

            verdict = judge.on(score(run, proof, program.signature, batch=512))
            results.append(Result(name, candidate, verdict, timed[candidate]))
            print(row(results[-1], timed["onnxruntime fp32"]), flush=True)
    return results


def make_scorers(model: nn.Module, artifact: rankc.Artifact, folder: Path) -> dict[str, Scorer]:
    """Ours and the peers as functions of feature arrays."""
    ours = backend(artifact.manifest.backend).open(artifact.folder, 1)
    path = export(model, artifact, folder)
    dynamic = folder / "dynamic.onnx"
    quantize_dynamic(path, dynamic, weight_type=QuantType.QInt8, per_channel=True)
    return {
        "rankc cpu-int8": lambda features: list(ours(features).values()),
        "onnxruntime fp32": onnxruntime_scorer(path),
        "onnxruntime dynamic int8": onnxruntime_scorer(dynamic),
        "openvino fp32": openvino_scorer(path),
        "openvino bf16": openvino_scorer(path, "bf16"),
    }


def row(result: Result, plain: Mapping[int, float]) -> str:
    """One line of the table."""
    (task,) = result.verdict.delta_ne.values()
    times = " | ".join(
        f"{result.milliseconds[b]:.3f} ({plain[b] / result.milliseconds[b]:.2f}×)" for b in BATCHES
    )
    return (
        f"| {result.model} | {result.candidate} | {result.verdict.status.value} | "
        f"{100 * task.estimate:+.4f} [{100 * task.low:+.4f}, {100 * task.high:+.4f}] | {times} |"
    )


def report(results: Sequence[Result], seed: int) -> str:
    """The page."""
    libraries = ("torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    lines = [
        "# Precision: trained models under a budget of 0.02 %",
        "",
        f"{time.strftime('%Y-%m-%d')}, seed {seed}; one thread, interleaved, medians of process "
        f"CPU time. Verdicts on the same proof rows. {versions}, "
        f"Python {platform.python_version()}.",
        "",
        "| model | candidate | gate | ΔNE % [interval] | "
        + " | ".join(f"batch {b}, ms (× ONNX Runtime fp32)" for b in BATCHES)
        + " |",
        "|---|---|---|---|" + "---|" * len(BATCHES),
    ]
    plain = {r.model: r.milliseconds for r in results if r.candidate == "onnxruntime fp32"}
    lines += [row(r, plain[r.model]) for r in results]
    lines += ["", "## Ours over the fastest peer that passes the gate", ""]
    for model in dict.fromkeys(r.model for r in results):
        own = {r.candidate: r for r in results if r.model == model}
        ours = own.pop("rankc cpu-int8")
        passing = [r for r in own.values() if r.verdict.status is Status.PASS]
        for batch in BATCHES:
            best = min(passing, key=lambda r: r.milliseconds[batch])
            ratio = best.milliseconds[batch] / ours.milliseconds[batch]
            lines.append(f"- {model}, batch {batch}: {ratio:.2f}× {best.candidate}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
