"""Bounds before lookups: what eager PyTorch refuses is refused wherever the program runs.

Runtimes count negative ids from the end, and a table that is stacked on others has rows of theirs
behind its last. An id beyond its table is refused before the lookup:

- where a feature is looked up as it is, by its limits in the signature, which callers and backends
  check;
- where nothing computed on the way can leave the table (a modulo, a clamp), there is nothing to do;
- everywhere else by a ``rankc.bounded`` right before the lookup.

Offsets that cut a list of ids into bags are refused by a ``rankc.rising`` where they don't cut it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .infer import lookups
from .integers import IntegerRanges, Range
from .operators import gives, lookup_of
from .ops import BOUNDED, RISING
from .pattern import argument, is_op, parameter_name, shape_of
from .program import Program
from .rewrite import Rewriter
from .signature import Feature
from .traits import Values

_aten = torch.ops.aten
#: A table of unknown size: what looks up refuses what is beyond it, and negative ids are left.
_ANY_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Reading:
    """A lookup by ids that eager PyTorch refuses beyond a range.

    Attributes:
        node: The lookup.
        place: Which argument the ids are.
        rows: How many there are to look up.
        name: What is looked up in: the table's name, or what it is.
        alone: Whether runtimes look nothing up for it, so that nothing of theirs refuses.
    """

    node: fx.Node
    place: int
    rows: int
    name: str
    alone: bool = False

    @property
    def ids(self) -> Any:
        """The ids."""
        return self.node.args[self.place]


#: Operators along a dimension: which argument is what is looked up in, the dimension, the ids.
_ALONG: dict[Any, tuple[int, int, int]] = {
    _aten.index_select.default: (0, 1, 2),
    _aten.gather.default: (0, 1, 2),
    _aten.index_add.default: (0, 1, 2),
    _aten.index_copy.default: (0, 1, 2),
    _aten.scatter.src: (0, 1, 2),
    _aten.scatter.value: (0, 1, 2),
    _aten.scatter.reduce: (0, 1, 2),
    _aten.scatter.value_reduce: (0, 1, 2),
    _aten.scatter_add.default: (0, 1, 2),
    _aten.scatter_reduce.two: (0, 1, 2),
}


def readings(graph: fx.Graph) -> Iterator[Reading]:
    """Every lookup of a graph by computed or given ids."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if (places := lookup_of(node)) is not None:
            table, ids = places
            name = parameter_name(node.args[table]) or "a computed table"
            yield Reading(node, ids, _size(node.args[table], 0), name)
        elif node.target in _ALONG:
            source, dim, ids = _ALONG[node.target]
            size = _size(node.args[source], int(node.args[dim]))
            name = parameter_name(node.args[source]) or "a computed value"
            yield Reading(node, ids, size, name, alone="scatter" in str(node.target))
        elif is_op(node, _aten.one_hot.default):
            classes = argument(node, 1, "num_classes", -1)
            if isinstance(classes, int) and classes > 0:
                yield Reading(node, 0, classes, "one_hot", alone=True)


def _size(value: Any, dim: int) -> int:
    size = shape_of(value)[dim]
    return size if isinstance(size, int) else _ANY_SIZE


def bound_lookups(program: Program) -> None:
    """Puts a ``rankc.bounded`` before every lookup whose ids nothing else bounds."""
    rw = Rewriter(program, "bound lookups")
    covered = _covered(program)
    ranges = IntegerRanges(dict(_inputs(program)))
    made: dict[tuple[Any, ...], fx.Node] = {}
    for one in list(readings(program.graph)):
        ids = one.ids
        if not isinstance(ids, fx.Node) or one.node in covered:
            continue
        found = ranges.of(ids)
        if found is None or found.within(0, one.rows - 1):
            continue
        key = ids, one.rows, one.alone
        if key not in made:
            with rw.before(one.node):
                made[key] = rw.emit(BOUNDED.op, ids, [one.rows], 0, one.alone, like=one.node)
        rw.set_argument(one.node, one.place, made[key])
    if _bound_offsets(program, rw) or made:
        program.module.recompile()


def _bound_offsets(program: Program, rw: Rewriter) -> int:
    """Puts a ``rankc.rising`` before every bag whose offsets are given or computed; how many."""
    made = 0
    for bag in program.graph.nodes:
        if not is_op(bag, _aten.embedding_bag.padding_idx, _aten.embedding_bag.default):
            continue
        ids, offsets = bag.args[1:3]
        if not isinstance(offsets, fx.Node) or is_op(offsets, RISING.op):
            continue
        if gives(offsets, Values.COUNTING):
            continue  # of bags of one size
        ends = bool(argument(bag, 7, "include_last_offset", False))
        with rw.before(bag):
            rising = rw.emit(RISING.op, offsets, ids, ends, like=bag)
        rw.set_argument(bag, 2, rising)
        made += 1
    return made


def _covered(program: Program) -> set[fx.Node]:
    """Lookups of features as they are, whose limits the signature has."""
    found: set[fx.Node] = set()
    for node, feature in _features(program):
        by_node: dict[fx.Node, list[bool]] = {}
        for lookup in lookups(node):
            columns = lookup.part.columns
            limits = _limits(feature, columns)
            known = columns != () and lookup.site is not None and bool(limits)
            fits = known and all(
                0 < high <= lookup.rows and low >= lookup.low for low, high in limits
            )
            assert lookup.site is not None
            by_node.setdefault(lookup.site, []).append(fits)
        found |= {site for site, fits in by_node.items() if all(fits)}
    return found


def _limits(feature: Feature, columns: tuple[int, ...] | None) -> list[tuple[int, int]]:
    """The least and one more than the largest id of some columns of a feature."""
    every = list(zip(feature.least, feature.cardinalities, strict=True))
    if columns is None or len(every) == 1:
        return every
    return [every[column] for column in columns if column < len(every)]


def _inputs(program: Program) -> Iterator[tuple[fx.Node, Range]]:
    """The ranges of features that are ids in every column."""
    for node, feature in _features(program):
        if feature.is_integer and feature.cardinalities and all(feature.cardinalities):
            yield node, Range(min(feature.least), max(feature.cardinalities) - 1)


def feature_ranges(program: Program) -> Iterator[tuple[fx.Node, Range]]:
    """The ranges of integer features that their tables or their bounds limit."""
    known = dict(_inputs(program))
    for node, feature in _features(program):
        if feature.is_integer and feature.bounds is not None:
            low, high = feature.bounds
            within = Range(math.ceil(low), math.floor(high))
            known[node] = known[node] & within if node in known else within
    yield from known.items()


def _features(program: Program) -> Iterator[tuple[fx.Node, Feature]]:
    yield from zip(
        program.graph.find_nodes(op="placeholder"), program.signature.features, strict=True
    )


def without_bounds(program: Program) -> Program:
    """The program for a runtime that can't refuse: ids are to be checked before it runs."""
    if not any(_bounding(program)):
        return program
    result = program.clone()
    for node in list(_bounding(result)):
        given = node.args[0]
        assert isinstance(given, fx.Node)
        node.replace_all_uses_with(given)
        result.graph.erase_node(node)
    result.module.recompile()
    return result


def _bounding(program: Program) -> Iterator[fx.Node]:
    for op in (BOUNDED, RISING):
        yield from program.graph.find_nodes(op="call_function", target=op.op)
