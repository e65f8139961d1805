"""Hostile rows: rows at the edges of what a model takes, made from its graph and signature.

Traffic holds few rows without a history, few ids above 2^24 and hardly ever a price that is exactly
a bucket's boundary; that is where translations go wrong unnoticed. What a model can't take (ids
beyond a table, a division by zero) is found by running it, and left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.ragged import bounds_of, delimiter_of
from ..data.rows import Rows
from ..ir.program import Program, with_defaults
from ..ir.signature import BATCH, Feature, FeatureKind
from .domain import Domain, finite_rows, picked
from .landmarks import Landmarks, Number, landmarks, truncates_integers

#: Rows of the user's that stay as they are among the hostile ones; the first is there twice.
_PLAIN = 8
#: Scores above this say that sums on the way may overflow.
_LARGE = 1e15
#: Seconds of 2017, 2023 and 2033, none of them at a full hour.
_TIMES = (1_500_000_000, 1_700_003_599, 2_000_000_001)
_WHOLE = (2, 2**24 + 1, 2**31 - 1, 2**31, 2**40 + 1, 2**53 + 1, -2, -(2**31))
_REAL = (-1.0, 0.5, -0.0, 1e-30, 1e-42, 3e3, -3e3, 1e6, 1e12)


@dataclass(frozen=True)
class Hostile:
    """Rows at the edges of what a model takes.

    Attributes:
        rows: The rows; the original scores every one of them.
        what: Of each row, what is unusual about it.
        refused: What the original can't score, and what it raises.
    """

    rows: Rows
    what: tuple[str, ...]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Edit:
    """One feature's value in a row.

    Attributes:
        feature: Its name.
        what: In words.
        value: The row's value ``[…]``; for jagged values, of each.
        extreme: Whether scores it makes NaN or Inf tell nothing.
        core: Whether it is tried of every feature first: what lists, tables and landmarks tell,
            before numbers that are merely large or small.
    """

    feature: str
    what: str
    value: Tensor
    extreme: bool = False
    core: bool = True


def hostile(program: Program, base: Rows, count: int = 224, seed: int = 0) -> Hostile:
    """Rows at the edges of what a program takes.

    Args:
        program: The original, as it was captured.
        base: Rows it scores: the user's, an example, or made-up ones; what isn't edited stays as
            it is there.
        count: How many rows, at most.
        seed: For what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    base = replace(base, features=with_defaults(program.signature, base.features)).part(0, 64)
    marks = landmarks(program)
    edits = [
        edit
        for feature in program.signature
        for edit in _edits(feature, marks[feature.name], base, generator)
    ]
    if truncates_integers(program):
        edits = [edit for edit in edits if not _least(edit.value)]
    # Those that the model refuses lie together then, and are found in fewer runs; behind those that
    # are as ordinary rows are, for which some runs are left that way.
    edits.sort(key=lambda edit: (_unlike(edit.value, base.features[edit.feature]), edit.what))
    domain = Domain(program)
    single = _single(edits, base, len(base))
    kept, scores = domain.scored(single)
    refused = tuple(
        f"{edits[place].feature} {edits[place].what}: {said}"
        for place, said in domain.raised.items()
    )
    sane = _sane(scores, len(kept))
    good = [
        place
        for place, row in zip(kept, sane, strict=True)
        if bool(row) or not edits[place].extreme
    ]
    rows, what = _composed([edits[place] for place in good], base, count, generator)
    # A search of its own: where that for single values took all runs, no row would be left.
    kept, scores = Domain(program).scored(rows)
    sane = _sane(scores, len(kept))
    told = [
        place
        for place, row in zip(kept, sane, strict=True)
        if bool(row) or not what[place].endswith(_EXTREME)
    ]
    made = Rows(picked(rows, told), synthetic=True, ragged=rows.ragged)
    return Hostile(made, tuple(what[p].removesuffix(_EXTREME) for p in told), refused)


#: Marks a row whose scores, where they are NaN or Inf, tell nothing.
_EXTREME = " (extreme)"


def _sane(scores: Mapping[str, Tensor], rows: int) -> Tensor:
    """Which rows have scores that don't overflow, nor nearly: sums would in another order."""
    found = finite_rows(scores, rows)
    for value in scores.values():
        if value.is_floating_point():
            found &= (value.abs().nan_to_num(0.0) < _LARGE).reshape(rows, -1).all(1)
    return found


def _unlike(value: Tensor, known: Tensor) -> bool:
    """Whether integers are beyond those of ordinary rows."""
    if value.is_floating_point() or value.dtype is torch.bool or known.numel() == 0:
        return False
    return bool(((value < known.min()) | (value > known.max())).any())


def _least(value: Tensor) -> bool:
    """Whether it holds the least integer of its type, or of int32 once it is cast."""
    if value.is_floating_point() or value.dtype is torch.bool:
        return False
    return bool(((value == torch.iinfo(value.dtype).min) | (value.abs() == 2**31)).any())


def _edits(
    feature: Feature, marks: Landmarks, base: Rows, generator: torch.Generator
) -> Iterator[_Edit]:
    """What one feature may hold in a row, within its bounds."""
    value = base.features[feature.name]
    delimiters = {one.delimiter for one in base.ragged}
    delimited = {name for one in base.ragged for name in one.values}
    if feature.name in delimiters:
        yield from (_Edit(feature.name, f"delimits {n} ids", torch.tensor(n)) for n in (0, 1, 2, 9))
        return
    if feature.name not in delimited and feature.shape[:1] != (BATCH,):
        return
    if feature.kind is FeatureKind.UNUSED or len(value) == 0:
        return
    row = value[0]
    made = _of_bools if row.dtype is torch.bool else _of_reals
    if not row.is_floating_point() and row.dtype is not torch.bool:
        made = _of_integers
    seen: set[bytes] = set()
    for edit in made(feature, marks, row, generator):
        key = edit.value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if key in seen or not _within(feature, edit.value):
            continue
        seen.add(key)
        yield edit


def _within(feature: Feature, value: Tensor) -> bool:
    if feature.bounds is None:
        return True
    low, high = feature.bounds
    return bool(((value >= low) & (value <= high)).all())


def _of_bools(
    feature: Feature, marks: Landmarks, row: Tensor, generator: torch.Generator
) -> Iterator[_Edit]:
    for what, value in (("all False", False), ("all True", True)):
        yield _Edit(feature.name, what, torch.full_like(row, value))
    yield from _patterns(feature, torch.ones_like(row), torch.zeros_like(row), "False")


def _of_integers(
    feature: Feature, marks: Landmarks, row: Tensor, generator: torch.Generator
) -> Iterator[_Edit]:
    limits = _limits(feature, row)
    known = limits > 0
    last = torch.where(known, limits - 1, row.to(torch.int64)).to(row.dtype)
    drawn = (torch.rand(row.shape, generator=generator, dtype=torch.float64) * limits).floor()
    ids = torch.where(known, drawn.to(torch.int64), row.to(torch.int64)).to(row.dtype)
    name = feature.name
    yield _Edit(name, "all 0", torch.zeros_like(row))
    yield _Edit(name, "all 1", torch.ones_like(row))
    if bool(known.any()):
        yield _Edit(name, "the last id of each table", last)
        yield _Edit(name, "other ids", ids)
    for padding in sorted({*marks.padding, 0}):
        yield _Edit(name, f"all {padding}, the padding", torch.full_like(row, padding))
        yield from _patterns(feature, ids, torch.full_like(row, padding), str(padding))
    if row.dim():
        yield _Edit(name, "one id repeated", torch.full_like(row, int(ids.min())))
    yield _Edit(name, "all -1, missing", torch.full_like(row, -1))
    if row.numel() > 1:
        yield _Edit(name, "-1, missing, in one place", _with_first(row, -1))
    widths = {size for size in feature.shape[1:] if isinstance(size, int)}
    near = (v + d for v in marks.levels | widths for d in (-1, 0, 1))
    values: dict[Number, str] = {int(v): f"all {int(v)}" for v in near if math.isfinite(v)}
    for step in sorted(marks.steps):
        for times in (1, 2, 7, 41, -1):
            for off in (-1, 0, 1):
                close = f"{off:+d}" if off else ""
                values[int(step * times) + off] = f"all {times} x {step:g}{close}"
        some = _TIMES[1] - _TIMES[1] % max(int(step), 1)
        values |= {some + off: f"all {some + off}" for off in (-1, 0)}
    fits = torch.iinfo(row.dtype)
    large = () if bool(known.all()) else (*_TIMES, *_WHOLE, fits.max, fits.min)
    numbers: dict[Number, str] = {v: f"all {v}" for v in large}
    for v, what in (numbers | values).items():
        if fits.min <= v <= fits.max:
            yield _Edit(name, what, torch.full_like(row, int(v)), core=v in values)


def _of_reals(
    feature: Feature, marks: Landmarks, row: Tensor, generator: torch.Generator
) -> Iterator[_Edit]:
    """Ids packed with dense values stay ids; the dense ones are edited."""
    limits = _limits(feature, row)
    known = limits > 0

    def edit(what: str, value: Tensor, *, extreme: bool = False, core: bool = True) -> _Edit:
        kept = torch.where(known, row, value.to(row.dtype))
        return _Edit(feature.name, what, kept, extreme, core)

    if bool(known.any()):
        first, last = torch.zeros_like(row), (limits - 1).to(row.dtype)
        yield _Edit(feature.name, "ids all 0", torch.where(known, first, row))
        yield _Edit(feature.name, "the last id of each table", torch.where(known, last, row))
    if bool(known.all()):
        return
    yield edit("all 0", torch.zeros_like(row))
    yield edit("all 1", torch.ones_like(row))
    for value in _REAL:
        large = abs(value) > 1e3 or 0.0 < abs(value) < 1e-20
        yield edit(f"all {value:g}", torch.full_like(row, value), extreme=large, core=False)
    # Squares of larger ones overflow, and then runtimes differ in when: a norm of 3e38 is no score.
    largest = min(1e18, torch.finfo(row.dtype).max)
    for value in (largest, -largest):
        yield edit(f"all {value:g}", torch.full_like(row, value), extreme=True, core=False)
    yield edit("all NaN", torch.full_like(row, math.nan), extreme=True)
    if row.numel() > 1:
        yield edit("NaN in one place", _with_first(row, math.nan), extreme=True)
    tail = torch.randn(row.shape, generator=generator)
    yield edit("a long tail", tail.sign() * (4.0 * tail.abs()).exp(), extreme=True)
    yield edit("a long tail above 0", (4.0 * tail).exp(), extreme=True)
    yield edit("0 and 1", (tail > 0).to(row.dtype))
    yield from _patterns(feature, torch.ones_like(row), torch.zeros_like(row), "0")
    values: dict[float, str] = {}
    for level in sorted(marks.levels):
        values |= _around(float(level), f"{level:g}", row.dtype)
    for step in sorted(marks.steps):
        for times in (1, 3, 6, 7, 12, 101, -1):
            values |= _around(times * float(step), f"{times} x {step:g}", row.dtype)
    for value, what in values.items():
        yield edit(f"all {what}", torch.full_like(row, value))


def _around(value: float, what: str, dtype: torch.dtype) -> dict[float, str]:
    """A number, and the next ones the dtype has to either side."""
    if not math.isfinite(value):
        return {}
    here = torch.tensor(value, dtype=torch.float64).to(dtype)
    wide = here if dtype.itemsize >= 4 else here.float()
    sides = {"": wide, " less a step": torch.nextafter(wide, wide - 1)}
    sides[" and a step"] = torch.nextafter(wide, wide + 1)
    near = {float(value): f"{what}{side}" for side, value in sides.items()}
    return {value: said for value, said in near.items() if math.isfinite(value)}


def _patterns(feature: Feature, full: Tensor, empty: Tensor, nothing: str) -> Iterator[_Edit]:
    """Lists of which a few places hold something."""
    if full.dim() == 0 or full.shape[-1] < 2 or feature.kind is FeatureKind.ID:
        return
    width = full.shape[-1]
    places = torch.arange(width)
    shapes: tuple[tuple[str, Tensor], ...] = (
        (f"all {nothing} but the first", places == 0),
        (f"all {nothing} but the last", places == width - 1),
        (f"all {nothing} but the first half", places < width // 2),
        (f"every second {nothing}", places % 2 == 0),
    )
    for what, held in shapes:
        yield _Edit(feature.name, what, torch.where(held, full, empty))


def _with_first(row: Tensor, value: float) -> Tensor:
    edited = row.clone()
    edited.view(-1)[0] = value
    return edited


def _limits(feature: Feature, row: Tensor) -> Tensor:
    """The rows of the table of each value of a row; 0 where it isn't looked up, or isn't known."""
    known = feature.cardinalities
    if len(known) == 1 or row.dim() == 0:
        return torch.full(row.shape, known[0] if known else 0, dtype=torch.int64)
    if not known:
        return torch.zeros(row.shape, dtype=torch.int64)
    shape = [len(known) if axis == feature.axis - 1 else 1 for axis in range(row.dim())]
    return torch.tensor(known).reshape(shape).expand(row.shape)


def _single(edits: Sequence[_Edit], base: Rows, plain: int) -> Rows:
    """A row for each edit, with nothing else unusual in it."""
    return _edited(base, [place % plain for place in range(len(edits))], [[e] for e in edits])


def _composed(
    edits: Sequence[_Edit], base: Rows, count: int, generator: torch.Generator
) -> tuple[Rows, list[str]]:
    """Plain rows, rows of one edit each, the same edit of all features, and random mixtures."""
    by_feature: dict[str, list[_Edit]] = {}
    for edit in edits:
        by_feature.setdefault(edit.feature, []).append(edit)
    plans: list[list[_Edit]] = [[] for _ in range(_PLAIN)]
    alike: dict[str, list[_Edit]] = {}
    for edit in edits:
        kind = edit.what.replace("False", "0").replace("True", "1").partition(",")[0]
        alike.setdefault(kind, []).append(edit)
    several = [together for together in alike.values() if len(together) > 1][: count // 6]
    queues = [_shuffled(queue, generator) for queue in by_feature.values()]
    longest = max(map(len, queues), default=0)
    turns = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    # Of rows that differ the first is told, so the plainest come first.
    plans += [[edit] for edit in turns[: int(0.75 * count) - len(plans) - len(several)]]
    plans += several
    while by_feature and len(by_feature) > 1 and len(plans) < count:
        mixed = [q for q in by_feature.values() if float(torch.rand((), generator=generator)) < 0.5]
        plans.append([q[int(torch.randint(len(q), (), generator=generator))] for q in mixed])
    origins = [0, 0, *(place % len(base) for place in range(2, len(plans)))]
    what = [_described(plan) for plan in plans]
    return _edited(base, origins[: len(plans)], plans), what


def _described(plan: Sequence[_Edit]) -> str:
    said = "; ".join(f"{edit.feature}: {edit.what}" for edit in plan) or "an ordinary row"
    return said + _EXTREME * any(edit.extreme for edit in plan)


def _shuffled(edits: Sequence[_Edit], generator: torch.Generator) -> list[_Edit]:
    """In any order, but two that are tried first for each that isn't, while there are any."""
    order = torch.randperm(len(edits), generator=generator).tolist()
    core = [edits[place] for place in order if edits[place].core]
    rest = [edits[place] for place in order if not edits[place].core]
    mixed: list[_Edit] = []
    while core or rest:
        mixed += [*core[:2], *rest[:1]]
        core, rest = core[2:], rest[1:]
    return mixed


def _edited(base: Rows, origins: Sequence[int], plans: Sequence[Sequence[_Edit]]) -> Rows:
    """Rows of the base with some features' values in place of theirs."""
    features = picked(base, origins)
    sizes = {one.delimiter: bounds_of(one, features).diff() for one in base.ragged}
    for row, plan in enumerate(plans):
        for edit in plan:
            if edit.feature in sizes:
                sizes[edit.feature][row] = int(edit.value)
    for one in base.ragged:
        features = _resized(features, one.delimiter, sizes[one.delimiter], base)
    bounds = {name: one.bounds(features).tolist() for one in base.ragged for name in one.values}
    delimiters = {one.delimiter for one in base.ragged}
    for row, plan in enumerate(plans):
        for edit in plan:
            if edit.feature in delimiters:
                continue
            held = features[edit.feature]
            if edit.feature in bounds:
                start, end = bounds[edit.feature][row : row + 2]
                held[start:end] = edit.value
            else:
                held[row] = edit.value
    return Rows(features, synthetic=True, ragged=base.ragged)


def _resized(
    features: dict[str, Tensor], delimiter: str, sizes: Tensor, base: Rows
) -> dict[str, Tensor]:
    """Rows of other lengths: cut, or filled up with values of all of the base's rows."""
    (one,) = (found for found in base.ragged if found.delimiter == delimiter)
    bounds = bounds_of(one, features)
    pool = len(base.features[one.values[0]])
    places: list[Tensor] = []
    held = len(features[one.values[0]])
    for row, size in enumerate(sizes.tolist()):
        own = torch.arange(int(bounds[row]), int(bounds[row + 1]))[:size]
        more = held + (torch.arange(size - len(own)) + row) % max(pool, 1)
        places += [own, more]
    picked = torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)
    if pool == 0:
        return features
    result = dict(features)
    for name in one.values:
        result[name] = torch.cat([features[name], base.features[name]])[picked]
    result[delimiter] = delimiter_of(one, sizes, features[delimiter].dtype)
    return result
