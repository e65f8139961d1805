"""Random rankers, optimized without data and held against eager PyTorch; ``make fuzz-models``.

Several at a time are built for ``cpu-fp32``, side by side as one module whose outputs are their
scores, saved, loaded, and scored on rows that nothing was compared on: ordinary ones at batches of
1, 3 and 64, hostile ones, and rows that the model raises on, which must be refused. Where something
is refused, crashes or differs, each of the rankers is tried alone. What is refused with a reason is
counted apart; a score that differs and nobody says so is a failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import rankc
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from random_rankers import PIECES, RandomRanker, Several, every_variant, rankers
from rankc.optimizer.compare.numerics import truth
from rankc.optimizer.errors import RankcError
from torch import Tensor

BATCHES = (1, 3, 64)
#: Rankers of one module.
TOGETHER = 5
#: Of a usual score, where the model's own error against fp64 isn't larger.
_TOLERANCE = 2e-5
#: How many rows that the model raises on, or scores with NaN, are given to what was built.
_REFUSED = 4
Batch = dict[str, Tensor]


def scores(model: torch.nn.Module, batch: Batch) -> Batch:
    """A model's scores by task."""
    with torch.no_grad():
        found = model(batch)
    return found if isinstance(found, dict) else {"score": found}


def split(model: torch.nn.Module, batch: Batch) -> tuple[Batch, list[Batch]]:
    """The rows that a model scores, and those that it raises on."""
    rows = len(next(iter(batch.values())))
    try:
        scores(model, batch)
    except (RuntimeError, IndexError) as error:
        if rows == 1:
            return _part(batch, 0, 0), [batch]
        halves = [_part(batch, 0, rows // 2), _part(batch, rows // 2, rows)]
        (first, bad), (second, worse) = (split(model, half) for half in halves)
        if not bad and not worse:
            raise AssertionError("rows are scored apart, and not together") from error
        return {name: torch.cat([first[name], second[name]]) for name in batch}, bad + worse
    return batch, []


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return {name: value[start:stop] for name, value in batch.items()}


def _finite(model: torch.nn.Module, batch: Batch) -> tuple[Batch, list[Batch]]:
    """The rows whose scores are all numbers, and each of the others."""
    found = torch.stack([value.isfinite() for value in scores(model, batch).values()]).all(0)
    others = (~found).nonzero().flatten().tolist()
    return {n: value[found] for n, value in batch.items()}, [
        _part(batch, row, row + 1) for row in others
    ]


def _refuses(artifact: rankc.Artifact, batch: Batch) -> bool:
    try:
        artifact(batch)
    except RankcError:
        return True
    return False


def difference(model: Several, artifact: rankc.Artifact, batch: Batch) -> str:
    """Where an artifact scores rows otherwise than its model; empty where it doesn't.

    Half precision is computed in float32, as capture says, and held against that.
    """
    want, got = (
        scores(model, {name: _wide(value) for name, value in batch.items()}),
        artifact(batch),
    )
    for name, right in want.items():
        have = got[name]
        if have.dtype != right.dtype or have.shape != right.shape:
            return f"{name} is {have.dtype} {list(have.shape)}"
        far = _far(model, name, have.double(), right.double(), batch)
        if far is not None:
            own = model.own(int(name[1 : name.index("_")]), _part(batch, far, far + 1))
            return (
                f"{name} of {len(right)} rows, row {far}: {have[far]:.8g}, {right[far]:.8g} is "
                f"right; {own}"
            )
    return ""


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _far(model: Several, name: str, have: Tensor, right: Tensor, batch: Batch) -> int | None:
    """The first row whose score differs by more than the model's own rounding."""
    known = right[right.isfinite()]
    usual = known.abs().median().item() if known.numel() else 1.0
    near = (have - right).abs() <= _TOLERANCE * right.abs().clamp(min=max(usual, 1e-3))
    same = near | (have == right) | (have.isnan() & right.isnan())
    if bool(same.all()):
        return None
    rows = (~same).nonzero().flatten()
    some = {feature: value[rows] for feature, value in batch.items()}
    exact = truth(rankc.capture(model, inputs=(some,)), some)[name].double()
    got, score = have[rows], right[rows]
    # Where the model itself is off, or overflows where fp64 doesn't, nobody can say what is right.
    unsure = (got - score).abs() <= 4 * (score - exact).abs()
    unsure |= ~score.isfinite() & exact.isfinite()
    wrong = rows[~unsure]
    return int(wrong[0]) if len(wrong) else None


def wrong(model: RandomRanker | Several, target: rankc.Target) -> str:
    """What is wrong with what is built of a model; empty if nothing is.

    Raises:
        RankcError: The model is refused, with a reason.
    """
    model = model if isinstance(model, Several) else Several([model])
    artifact = rankc.optimize(model, target, inputs=(model.inputs(16, 1),))
    with tempfile.TemporaryDirectory() as place:
        loaded = rankc.load(artifact.save(Path(place) / "saved"))
        batches = [model.inputs(rows, 100 + n) for n, rows in enumerate((*BATCHES, *BATCHES))]
        for number in range(2):
            kept, refused = split(model, model.hostile(128, 200 + number))
            for row in refused[:_REFUSED]:
                if not _refuses(loaded, row):
                    return f"a row is scored that the model raises on: {row}"
            finite, others = _finite(model, kept)
            batches.append(finite)
            # Values that make the model's own scores NaN may be refused, not scored otherwise.
            batches += [row for row in others[:_REFUSED] if not _refuses(loaded, row)]
        for batch in batches:
            found = difference(model, loaded, batch)
            if found:
                return found
    lines = str(artifact.report).splitlines()
    undone = [line for line in lines if "rolled back" in line or "│ failed" in line]
    return f"a pass was undone: {undone[0].strip()}" if undone else ""


def described(model: RandomRanker) -> str:
    """What a ranker is made of."""
    pieces = ", ".join(f"{type(p).__name__}({p.variant})" for p in model.pieces)
    taken = "".join("ft"[taken] for taken in model.taken)
    return f"[{pieces}] {model.top}, {model.tasks} tasks, {model.form} {taken}"


@dataclasses.dataclass
class Tally:
    """What became of the models that were tried.

    Attributes:
        target: What they are built for.
        counts: By what became of them.
        reasons: What was refused, by the error and the start of its message.
    """

    target: rankc.Target
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)

    def attempt(self, models: list[RandomRanker]) -> None:
        """Tries models together, and each alone where not all of them come out right."""
        try:
            found, kind = wrong(Several(models), self.target), "wrong"
        except RankcError as error:
            found, kind = f"{type(error).__name__}: {error}", "refused"
        except Exception:  # a bare error is a fault as well; the next model is tried
            found, kind = traceback.format_exc(), "crashed"
        if not found:
            self.counts["right"] += len(models)
        elif len(models) > 1:
            before = self.counts["right"]
            for model in models:
                self.attempt([model])
            if self.counts["right"] - before == len(models):
                self.counts[f"{kind} together alone"] += 1
                print(f"{kind} together alone: {list(map(described, models))}: {found}", flush=True)
        else:
            self.counts[kind] += 1
            if kind == "refused":
                self.reasons[re.sub(r"r\d+_\S+|[\d.e+-]+", "·", found)[:90]] += 1
            print(f"{kind}: {described(models[0])}: {found}", flush=True)


def main() -> int:
    """Tries so many models; prints what is wrong and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--every", action="store_true", help="every variant of every piece first")
    parser.add_argument("--skip", type=int, default=0, help="so many modules of these are known")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    target = dataclasses.replace(rankc.Target.of("cpu-fp32"), backends=(chosen.backend,))
    tally = Tally(target)
    until = time.monotonic() + 60 * chosen.minutes

    @seed(chosen.seed)
    @settings(
        max_examples=-(-chosen.models // TOGETHER),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(rankers(most=3), min_size=TOGETHER, max_size=TOGETHER))
    def tried(models: list[RandomRanker]) -> None:
        if time.monotonic() < until:
            tally.attempt(models)
            print(f"{dict(tally.counts)} after {time.process_time():.0f} s of CPU", flush=True)

    every: list[Any] = every_variant(together=3) if chosen.every else []
    for start in range(chosen.skip * TOGETHER, len(every), TOGETHER):
        if time.monotonic() < until:
            tally.attempt(every[start : start + TOGETHER])
            print(f"{dict(tally.counts)} after {time.process_time():.0f} s of CPU", flush=True)
    tried()
    print(f"{len(PIECES)} kinds of pieces on {chosen.backend}: {dict(tally.counts)}")
    for reason, count in tally.reasons.most_common():
        print(f"{count} x {reason}")
    bad = [n for kind, n in tally.counts.items() if kind.startswith(("wrong", "crashed"))]
    return 1 if sum(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
