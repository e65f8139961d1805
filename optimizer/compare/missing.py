"""Which missing values a model takes: found by running it, not by reading it.

``where(x.isnan(), fill, x)``, ``nan_to_num`` and masked sums score NaN; most models don't. Every
floating-point feature is tried with NaN and with both infinities, in a made-up row each: in all of
it, and in one column of it. What the scores stay finite for is what callers may give. A mask or a
length may be what hides a value, so that rows whose integers are zero count as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.delimiters import row_count
from ..data.ragged import take
from ..data.rows import Rows
from ..data.synthetic import synthesize
from ..ir.program import Program
from ..ir.signature import BATCH, MISSING, Feature, FeatureKind, Signature

#: More columns than these aren't tried one by one.
_MOST_COLUMNS = 256


@dataclass(frozen=True)
class _Trial:
    """One value in all of a feature, or in one column of it."""

    feature: str
    column: int | None
    word: str


def with_missing(program: Program, example: Mapping[str, Tensor] | None = None) -> Program:
    """The program; its signature says which features may hold NaN or Inf.

    Args:
        program: What is run.
        example: Rows that the user gave, by feature: made-up ones may be beyond what it takes.
    """
    signature = program.signature
    trials = [trial for feature in signature for trial in _trials(feature)]
    if not trials:
        return program
    rows = synthesize(signature, len(trials) + 1)
    passed: set[_Trial] = set()
    bases = [rows, _emptied(rows, signature)]
    count = row_count(example, rows.ragged) if example else 0
    if example and count:
        places = torch.arange(len(rows)) % count
        given = take(example, rows.ragged, places)
        features = {name: given[name].to(value.dtype) for name, value in rows.features.items()}
        bases.append(replace(rows, features=features))
    for base in bases:
        finite = _finite(program, _with_trials(base, trials))
        if finite[-1]:
            passed |= {trial for trial, good in zip(trials, finite, strict=False) if good}
    program.signature = replace(
        signature, features=tuple(_told(feature, passed) for feature in signature)
    )
    return program


def _trials(feature: Feature) -> Iterator[_Trial]:
    """What is tried of a feature."""
    if feature.is_integer or feature.delimiter or feature.shape[:1] != (BATCH,):
        return
    if any(feature.cardinalities) or feature.kind is FeatureKind.UNUSED:
        return
    columns: list[int | None] = [None]
    width = feature.shape[1] if len(feature.shape) == 2 else 1
    if isinstance(width, int) and 1 < width <= _MOST_COLUMNS:
        columns += range(width)
    for column in columns:
        for word in MISSING:
            yield _Trial(feature.name, column, word)


def _with_trials(rows: Rows, trials: list[_Trial]) -> Rows:
    """The rows, each but the last with what one trial puts into it."""
    features = dict(rows.features)
    for name in {trial.feature for trial in trials}:
        features[name] = features[name].clone()
    for row, trial in enumerate(trials):
        value = features[trial.feature]
        place = value[row] if trial.column is None else value[row, trial.column]
        place.fill_(float(trial.word))
    return replace(rows, features=features)


def _emptied(rows: Rows, signature: Signature) -> Rows:
    """The rows with zeros for all integers, which is what masks and lengths hide values by."""
    ragged = {name for one in rows.ragged for name in (one.delimiter, *one.values)}
    kept = {f.name for f in signature if not f.is_integer} | ragged
    features = {n: v if n in kept else torch.zeros_like(v) for n, v in rows.features.items()}
    return replace(rows, features=features)


def _finite(program: Program, rows: Rows) -> list[bool]:
    """Which rows have finite scores; those that the program doesn't run on haven't."""
    try:
        return _all_finite(program.run(rows.features))
    except (IndexError, RuntimeError, ValueError):
        if len(rows) == 1:
            return [False]
        middle = len(rows) // 2
        halves = rows.part(0, middle), rows.part(middle, len(rows))
        return [good for half in halves for good in _finite(program, half)]


def _all_finite(scores: dict[str, Tensor]) -> list[bool]:
    found = [torch.isfinite(value).reshape(len(value), -1).all(1) for value in scores.values()]
    return torch.stack(found).all(0).tolist() if found else []


def _told(feature: Feature, passed: set[_Trial]) -> Feature:
    """The feature with what it may hold: in all of it, or else column by column."""
    if not any(True for _ in _trials(feature)):
        return feature
    words = [word for word in MISSING if _Trial(feature.name, None, word) in passed]
    whole = len(feature.shape) != 2 or not isinstance(feature.shape[1], int)
    if words == list(MISSING) or whole or feature.shape[1] == 1:
        return replace(feature, missing=(" ".join(words),) if words else ())
    columns = tuple(
        " ".join(word for word in MISSING if _Trial(feature.name, column, word) in passed)
        for column in range(int(feature.shape[1]))
    )
    if len(set(columns)) == 1:
        columns = columns[:1]
    return replace(feature, missing=columns if any(columns) else ())
