"""Random rankers, optimized without data and held against eager PyTorch; ``make fuzz-models``.

Each is built for ``cpu-fp32``, saved, loaded, and scored at batches of 1, 3 and 64 on rows that
nothing was compared on. What is refused with a reason is counted apart; a score that differs and
nobody says so is a failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import rankc
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from random_rankers import PIECES, RandomRanker, every_form, rankers
from rankc.optimizer.errors import RankcError
from torch import Tensor

BATCHES = (1, 3, 64)
#: Of the largest score, where the model's own error against fp64 isn't larger.
_TOLERANCE = 2e-5


def scores(model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's scores by task."""
    with torch.no_grad():
        found = model(batch)
    return found if isinstance(found, dict) else {"score": found}


def difference(model: RandomRanker, artifact: rankc.Artifact, rows: int, start: int) -> str:
    """Where an artifact scores fresh rows otherwise than its model; empty where it doesn't."""
    batch = model.inputs(rows, start)
    want, got = scores(model, batch), artifact(batch)
    got = got if isinstance(got, dict) else {"score": got}
    for name, right in want.items():
        have = got[name]
        if not torch.equal(have.isfinite(), right.isfinite()):
            return f"{name} at {rows} rows is {have.tolist()[:4]}, {right.tolist()[:4]} is right"
        known = right.isfinite()
        size = right[known].abs().max().item() if bool(known.any()) else 1.0
        apart = (have - right).double().abs()[known]
        if apart.numel() and apart.max().item() > _TOLERANCE * max(size, 1e-3):
            at = int((have - right).abs().nan_to_num().argmax())
            return f"{name} at {rows} rows, row {at}: {have[at]:.7g}, {right[at]:.7g} is right"
    return ""


def wrong(model: RandomRanker, target: rankc.Target) -> str:
    """What is wrong with what is built of a model; empty if nothing is.

    Raises:
        RankcError: The model is refused, with a reason.
    """
    artifact = rankc.optimize(model, target, inputs=(model.inputs(16, 1),))
    with tempfile.TemporaryDirectory() as place:
        loaded = rankc.load(artifact.save(Path(place) / "saved"))
        for number, rows in enumerate((*BATCHES, *BATCHES)):
            found = difference(model, loaded, rows, 100 + number)
            if found:
                return found
    lines = str(artifact.report).splitlines()
    undone = [line for line in lines if "rolled back" in line or "│ failed" in line]
    return f"a pass was undone: {undone[0].strip()}" if undone else ""


def described(model: RandomRanker) -> str:
    """What a ranker is made of."""
    pieces = ", ".join(f"{type(p).__name__}({p.variant})" for p in model.pieces)
    return f"[{pieces}] {model.top}, {model.tasks} tasks"


def main() -> int:
    """Tries so many models; prints what is wrong and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="onnxruntime")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    target = dataclasses.replace(rankc.Target.of("cpu-fp32"), backends=(chosen.backend,))
    counts: Counter[str] = Counter()
    until = time.monotonic() + 60 * chosen.minutes

    @seed(chosen.seed)
    @settings(
        max_examples=chosen.models,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(rankers())
    def tried(model: RandomRanker) -> None:
        if time.monotonic() < until:
            attempt(model)

    def attempt(model: RandomRanker) -> None:
        counts["tried"] += 1
        try:
            found, kind = wrong(model, target), "wrong"
        except RankcError as error:
            found, kind = f"{type(error).__name__}: {error}", "refused"
        except Exception:  # a bare error is a fault as well; the next model is tried
            found, kind = traceback.format_exc(), "crashed"
        if found:
            counts[kind] += 1
            print(f"{kind}: {described(model)}: {found}", flush=True)

    for model in every_form(together=6) if chosen.models >= 100 else ():
        attempt(model)
    tried()
    print(f"{len(PIECES)} kinds of pieces on {chosen.backend}: {dict(counts)}")
    return 1 if counts["wrong"] or counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
