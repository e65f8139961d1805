"""Inputs whose rows hold different numbers of ids: all values in one, and where each row begins.

An ``EmbeddingBag`` takes ids ``[N]`` of all rows one after another, and offsets: where each row's
ids begin (``[B]``), those and the end (``[B + 1]``), or how many there are (lengths ``[B]``). Rows
of a batch are taken, and batches joined, through what is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations, permutations, product

import torch
from torch import Tensor

from .delimiters import Delimits, Ragged

Features = Mapping[str, Tensor]

#: A vector that ends where the values do fits by chance less often than one that may end before.
_EXACT_FIRST = (Delimits.BOUNDS, Delimits.LENGTHS, Delimits.STARTS)
#: Vectors of integers among which every choice of delimiters is tried.
_FEW = 5


def bounds_of(one: Ragged, features: Features) -> Tensor:
    """Where each row of what is delimited begins, and the end, int64 ``[B + 1]``."""
    return torch.from_numpy(one.bounds(features))


def delimiter_of(one: Ragged, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """The delimiter of rows of these lengths."""
    return torch.from_numpy(one.delimiter_of(lengths.numpy())).to(dtype)


def take(features: Features, ragged: Sequence[Ragged], rows: Tensor | slice) -> dict[str, Tensor]:
    """Some rows of every feature.

    Args:
        features: By name.
        ragged: Those that are delimited, and by what.
        rows: Positions ``[n]``, or a slice without a step.
    """
    special = {name for one in ragged for name in (one.delimiter, *one.values)}
    taken = {name: value[rows] for name, value in features.items() if name not in special}
    for one in ragged:
        bounds = bounds_of(one, features)
        starts, ends = bounds[:-1][rows], bounds[1:][rows]
        lengths = ends - starts
        if isinstance(rows, slice):
            places = slice(int(starts[0]), int(ends[-1])) if len(starts) else slice(0, 0)
        else:
            within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(
                lengths.cumsum(0) - lengths, lengths
            )
            places = torch.repeat_interleave(starts, lengths) + within  # type: ignore[assignment]
        taken[one.delimiter] = delimiter_of(one, lengths, features[one.delimiter].dtype)
        taken |= {name: features[name][places] for name in one.values}
    return {name: taken[name].contiguous() for name in features}


def join(parts: Sequence[Features], ragged: Sequence[Ragged]) -> dict[str, Tensor]:
    """Batches one after another."""
    if len(parts) == 1:
        return dict(parts[0])
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for one in ragged:
        lengths = torch.cat([bounds_of(one, part).diff() for part in parts])
        joined[one.delimiter] = delimiter_of(one, lengths, parts[0][one.delimiter].dtype)
    return joined


def find_ragged(leaves: Features) -> tuple[Ragged, ...]:
    """The likeliest of the `readings` of an example; empty where no input delimits another."""
    return next(readings(leaves), ())


def readings(leaves: Features) -> Iterator[tuple[Ragged, ...]]:
    """Which of an example's tensors may delimit the rows of which, likeliest first.

    A delimiter is a vector of integers that fits: lengths that add up to the values' size, bounds
    that begin at 0 and end there, starts that begin at 0, never fall, and stay within it. Where
    several fit, the one nearest before or after the values is theirs, the exact ones first. Sizes
    can coincide, and starts such as 0, 2, 4 are lengths of six ids as well: which reading is right
    only the model tells.

    Args:
        leaves: The example's tensors, by name.
    """
    sizes = {name: len(leaf) for name, leaf in leaves.items()}
    vectors = [n for n, v in leaves.items() if v.dim() == 1 and not v.is_floating_point()]
    seen: set[tuple[Ragged, ...]] = set()
    if len(set(sizes.values())) == 1:
        seen.add(())
        yield ()
    # One less first: bounds that end where the values do fit by chance less often than starts.
    counts = _row_counts(sizes, vectors, leaves)
    for kinds, rows in product(permutations(_EXACT_FIRST), counts):
        nearest = _nearest(leaves, vectors, kinds, rows)
        ways = (nearest, _in_turn(leaves, vectors, kinds, rows))
        for found in chain(ways, _any(leaves, vectors, kinds, rows)):
            if found and found not in seen:
                seen.add(found)
                yield found


def _nearest(
    leaves: Features, vectors: Sequence[str], kinds: Sequence[Delimits], rows: int
) -> tuple[Ragged, ...]:
    """Each input that has no value a row goes to the nearest delimiter that fits."""
    names = list(leaves)
    found: dict[tuple[str, Delimits], list[str]] = {}
    for name in names:
        if len(leaves[name]) == rows or any(name == key[0] for key in found):
            continue
        fitting = [
            (rank, abs(names.index(other) - names.index(name)), other, delimits)
            for other in vectors
            if other != name
            for rank, delimits in enumerate(kinds)
            if _fits(leaves[other], delimits, len(leaves[name]), rows)
        ]
        if fitting:
            *_, other, delimits = min(fitting)
            found.setdefault((other, delimits), []).append(name)
    return _consistent(leaves, rows, found)


def _in_turn(
    leaves: Features, vectors: Sequence[str], kinds: Sequence[Delimits], rows: int
) -> tuple[Ragged, ...]:
    """The first values go to the first delimiter, and so on, as lists of both are given."""
    half = len(vectors) // 2
    if half < 2 or len(vectors) % 2:
        return ()
    for delimiters, values in (
        (vectors[:half], vectors[half:]),
        (vectors[half:], vectors[:half]),
        (vectors[::2], vectors[1::2]),
        (vectors[1::2], vectors[::2]),
    ):
        found: dict[tuple[str, Delimits], list[str]] = {}
        for other, name in zip(delimiters, values, strict=True):
            size = len(leaves[name])
            kind = next((k for k in kinds if _fits(leaves[other], k, size, rows)), None)
            if kind is not None:
                found[other, kind] = [name]
        if len(found) == half and (consistent := _consistent(leaves, rows, found)):
            return consistent
    return ()


def _any(
    leaves: Features, vectors: Sequence[str], kinds: Sequence[Delimits], rows: int
) -> Iterator[tuple[Ragged, ...]]:
    """Every choice of delimiters among few vectors, also for values of as many as the rows."""
    if len(vectors) > _FEW:
        return
    flat = [name for name, leaf in leaves.items() if leaf.dim() == 1]
    sizes = {name: len(leaf) for name, leaf in leaves.items()}
    kind_of: dict[tuple[str, int], Delimits] = {}
    for other, size, kind in product(vectors, set(sizes.values()), reversed(kinds)):
        if _fits(leaves[other], kind, size, rows):
            kind_of[other, size] = kind
    for count in range(1, len(vectors) + 1):
        for delimiters in combinations(vectors, count):
            values = [n for n in leaves if n not in delimiters and (n in flat or sizes[n] != rows)]
            fitting = [
                (None,) * (sizes[name] == rows)
                + tuple(other for other in delimiters if (other, sizes[name]) in kind_of)
                for name in values
            ]
            for owners in _owners(fitting, frozenset(delimiters)):
                found: dict[tuple[str, Delimits], list[str]] = {}
                for name, owner in zip(values, owners, strict=True):
                    if owner is not None:
                        found.setdefault((owner, kind_of[owner, sizes[name]]), []).append(name)
                yield _consistent(leaves, rows, found)


def _owners(
    fitting: Sequence[tuple[str | None, ...]], missing: frozenset[str]
) -> Iterator[tuple[str | None, ...]]:
    """Every choice of one that fits for each input, with all of ``missing`` among them.

    What can't be completed (P. Hall, "On Representatives of Subsets", 1935) isn't begun: of forty
    columns a trillion choices would be.
    """
    for count in range(1, len(missing) + 1):
        for some in combinations(sorted(missing), count):
            if sum(not set(some).isdisjoint(owners) for owners in fitting) < count:
                return
    if not fitting:
        yield ()
        return
    for owner in fitting[0]:
        for more in _owners(fitting[1:], missing - {owner}):
            yield (owner, *more)


def _consistent(
    leaves: Features, rows: int, found: Mapping[tuple[str, Delimits], Sequence[str]]
) -> tuple[Ragged, ...]:
    """What was found, if it explains every input's size; else nothing."""
    delimited = {name for values in found.values() for name in values}
    delimiters = {name for name, _ in found}
    rest = [n for n in leaves if n not in delimited | delimiters and len(leaves[n]) != rows]
    if not found or rest or delimited & delimiters:
        return ()
    return tuple(Ragged(name, kind, tuple(values)) for (name, kind), values in found.items())


def _row_counts(sizes: Mapping[str, int], vectors: Sequence[str], leaves: Features) -> list[int]:
    """How many rows an example may have: the commonest size of what is no vector first."""
    dense = [size for name, size in sizes.items() if name not in vectors]
    likely = sorted(set(dense), key=dense.count, reverse=True)
    others = [sizes[name] for name in vectors]
    ends = [size - 1 for size in others if size > 1]
    return list(dict.fromkeys([*likely, *sorted(ends), *sorted(others)]))


def _fits(delimiter: Tensor, delimits: Delimits, size: int, rows: int) -> bool:
    if len(delimiter) != rows + (delimits is Delimits.BOUNDS) or len(delimiter) == 0:
        return False
    if delimits is Delimits.LENGTHS:
        return bool((delimiter >= 0).all()) and int(delimiter.sum()) == size
    rising = int(delimiter[0]) == 0 and bool((delimiter.diff() >= 0).all())
    last = int(delimiter[-1])
    return rising and (last == size if delimits is Delimits.BOUNDS else last <= size)
