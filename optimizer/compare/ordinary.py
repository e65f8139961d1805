"""Ordinary rows for a model without data: an example varied, or made up, as the model takes them.

What an integer without a table stands for (a length, an hour, a count) isn't known from its type,
so ranges are tried on the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..data.delimiters import ragged_of
from ..data.ragged import join
from ..data.rows import Rows
from ..data.synthetic import synthesize
from ..errors import DataError
from ..ir.program import Program, with_defaults
from ..ir.signature import Feature, FeatureKind, Signature
from .domain import Domain, finite_rows, picked, some_finite

#: Rows that a guess is tried on.
_TRIED = 32
#: Ranges of an integer that is no id, the likeliest first; the widths of lists come in between.
_COUNTS = ((0, 99), (1, 99))
_FEW = ((0, 9), (1, 9), (0, 1), (1, 1), (0, 0))


def ordinary(
    program: Program, count: int, seed: int = 0, example: Mapping[str, Tensor] | None = None
) -> Rows:
    """Rows that a program scores with finite numbers.

    Args:
        program: The model.
        count: How many rows.
        seed: For what is drawn.
        example: Features by name, as the user gave them: the rows are these, varied.

    Raises:
        DataError: The model scores no such row with a finite number.
    """
    generator = torch.Generator().manual_seed(seed)
    ragged = ragged_of(program.signature)
    given = Rows(with_defaults(program.signature, example or {}), synthetic=True, ragged=ragged)
    if example is None or len(given) == 0:
        rows = _guessed(program, synthesize(program.signature, count, seed), generator)
        return _sound(program, rows, None)
    sound = _sound(program, given, example)
    rows = _varied(program.signature, sound.filled(count), len(sound), generator)
    return _sound(program, rows, example, sound)


def _sound(
    program: Program,
    rows: Rows,
    example: Mapping[str, Tensor] | None,
    instead: Rows | None = None,
) -> Rows:
    """The rows with those that aren't scored, or not with finite numbers, replaced by others.

    Args:
        program: The model.
        rows: The rows.
        example: What the user gave, to say what is wrong with it.
        instead: Rows that are scored; some of ``rows`` when None.
    """
    domain = Domain(program)
    kept, outputs = domain.scored(rows)
    fine = finite_rows(outputs, len(kept))
    if not bool(fine.any()):
        fine = some_finite(outputs, len(kept))
    good = [place for place, row in zip(kept, fine, strict=True) if bool(row)]
    if instead is not None:
        merged = Rows(instead.features, synthetic=True, ragged=rows.ragged)
        spare = [place for place in range(len(rows)) if place not in set(good)]
        return _with_spare(rows, good, merged.filled(len(spare))) if spare else rows
    if not good:
        raise DataError(_unscored(program, rows, example, domain, outputs))
    if len(good) == len(rows):
        return rows
    return Rows(
        picked(rows, [good[i % len(good)] for i in range(len(rows))]),
        synthetic=True,
        ragged=rows.ragged,
    )


def _with_spare(rows: Rows, good: list[int], spare: Rows) -> Rows:
    parts = [part for part in (picked(rows, good), spare.features) if part]
    return Rows(join(parts, rows.ragged), synthetic=True, ragged=rows.ragged)


def _unscored(
    program: Program,
    rows: Rows,
    example: Mapping[str, Tensor] | None,
    domain: Domain,
    outputs: Mapping[str, Tensor],
) -> str:
    """Why there is no row to compare anything on, and what to do."""
    if domain.raised:
        place, said = min(domain.raised.items())
        what = f"the model raises on row {place}: {said}"
    else:
        name, value = next((n, v) for n, v in outputs.items() if not bool(v.isfinite().all()))
        what = f"output {name!r} is {float(value.flatten()[0]):g} in row 0"
    if example is None:
        return (
            f"the model scores none of {len(rows)} made-up rows with a finite number ({what}), so "
            "nothing that is built could be compared with it. Give inputs=, an example of rows "
            "that are scored, or data=."
        )
    missing = [
        f"feature {name!r} is NaN in row {int(value.isnan().nonzero()[0, 0])}"
        for name, value in example.items()
        if value.is_floating_point() and bool(value.isnan().any())
    ]
    told = f" {', '.join(missing)}." if missing else ""
    return (
        f"the model scores no row of the example with a finite number ({what}), so nothing that is "
        f"built could be compared with it.{told} Give an example of rows that are scored, or data=."
    )


def _varied(signature: Signature, rows: Rows, plain: int, generator: torch.Generator) -> Rows:
    """The rows, all but the first ``plain`` of them with other values in place of some."""
    features = dict(rows.features)
    delimiters = {one.delimiter for one in rows.ragged}
    for feature in signature:
        if feature.name in delimiters:
            continue
        value = features[feature.name]
        other = _other(feature, value, generator)
        changed = torch.rand(value.shape, generator=generator) < 0.5
        if feature.shape[:1] == ("batch",):
            changed[:plain] = False
        features[feature.name] = torch.where(changed, other, value)
    return replace(rows, features=features)


def _other(feature: Feature, value: Tensor, generator: torch.Generator) -> Tensor:
    """What could stand in place of each value: those of other rows, or near them."""
    if len(value) == 0:
        return value
    order = torch.randint(len(value), value.shape, generator=generator)
    moved = value.gather(0, order)
    if value.dtype is torch.bool:
        return moved
    if value.is_floating_point():
        finite = value[value.isfinite()]
        if finite.numel() < 2 or bool((finite == finite.round()).all()):
            return moved  # ids, masks or counts: in between there is nothing
        noise = torch.randn(value.shape, generator=generator).to(value.dtype)
        return moved + 0.1 * finite.std() * noise
    known = feature.cardinalities
    if known and all(known) and feature.kind is not FeatureKind.LENGTHS:
        limits = torch.tensor(known)
        if len(known) > 1:
            shape = [len(known) if d == feature.axis else 1 for d in range(value.dim())]
            limits = limits.reshape(shape)
        uniform = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        # 0 is what short lists are filled up with, and stays where it is.
        lowest = 1 if value.dim() > 1 and len(known) == 1 else 0
        drawn = (lowest + uniform * (limits - lowest).clamp(min=1)).floor().to(torch.int64)
        drawn = drawn.minimum(limits - 1).to(value.dtype)
        return torch.where((value == 0) & (lowest == 1), value, drawn)
    low, high = int(value.min()), int(value.max())
    near = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    between = (low + (near * (high - low + 1)).floor()).to(value.dtype)
    return torch.where(torch.rand(value.shape, generator=generator) < 0.5, moved, between)


def _guessed(program: Program, rows: Rows, generator: torch.Generator) -> Rows:
    """The rows with what isn't known of a feature tried on the model, feature by feature."""
    delimiters = {one.delimiter for one in rows.ragged}
    free = [
        feature
        for feature in program.signature
        if feature.name not in delimiters
        and feature.kind is not FeatureKind.UNUSED
        and feature.bounds is None
    ]
    best = _rank(program, rows)
    for _ in range(2):
        for feature in free:
            sure = feature.is_integer and not feature.cardinalities
            if not sure and best == 2:
                continue
            for value in _guesses(feature, rows, generator):
                tried = replace(rows, features={**rows.features, feature.name: value})
                rank = _rank(program, tried)
                if rank > best or (rank == best and sure):
                    rows, best = tried, rank
                    break
        if best == 2:
            break
    return rows


def _rank(program: Program, rows: Rows) -> int:
    """0 where the program raises, 1 where some score isn't finite, 2 where all are."""
    few = rows.part(0, min(_TRIED, len(rows)))
    try:
        outputs = program.run(few.features)
    except Exception:  # whatever it is: these rows are beyond what the model takes
        return 0
    return 1 + bool(finite_rows(outputs, len(few)).all())


def _guesses(feature: Feature, rows: Rows, generator: torch.Generator) -> Iterator[Tensor]:
    """Values of a feature, the likeliest first; the first that do are taken."""
    now = rows.features[feature.name]
    if now.dtype is torch.bool:
        yield now
        yield torch.ones_like(now)
        yield torch.zeros_like(now)
        return
    if now.is_floating_point():
        yield now.abs()
        yield torch.rand(now.shape, generator=generator).to(now.dtype)
        yield torch.ones_like(now)
        return
    if feature.cardinalities:
        return
    widths = [
        (1, size)
        for size in dict.fromkeys(
            size for value in rows.features.values() for size in value.shape[1:2] if size > 1
        )
    ]
    ranges = (*_COUNTS, *widths, *_FEW)
    if feature.kind is FeatureKind.LENGTHS:
        ranges = (*widths, *_COUNTS, *_FEW)
    for low, high in ranges:
        yield torch.randint(low, high + 1, now.shape, generator=generator).to(now.dtype)
