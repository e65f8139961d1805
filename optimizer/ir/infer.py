"""Reading a signature off a graph: what an input feeds tells what it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .pattern import argument, is_op, parameter_name, shape_of
from .signature import BATCH, Feature, FeatureKind, Score, Signature, Task, TaskKind

_aten = torch.ops.aten

#: Operators that only reshape or retype their first argument.
_TRANSPARENT = frozenset(
    {
        _aten.view.default,
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.squeeze.default,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.alias.default,
        _aten.detach.default,
        _aten.lift_fresh_copy.default,
        _aten._to_copy.default,
        _aten.to.dtype,
        _aten.transpose.int,
        _aten.permute.default,
        _aten.expand.default,
        _aten.slice.Tensor,
    }
)
_SPLITS = frozenset(
    {
        _aten.unbind.int,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.chunk.default,
        _aten.tensor_split.sections,
    }
)
_LOOKUPS: dict[Any, tuple[int, int]] = {
    _aten.embedding.default: (0, 1),
    torch.ops.rankc.rowwise_embedding.default: (0, 2),
    _aten.embedding_bag.padding_idx: (0, 1),
    _aten.embedding_bag.default: (0, 1),
}
_ENDINGS = frozenset({_aten.sigmoid.default, _aten.softmax.int, _aten._softmax.default})
_MAX_TASK_COLUMNS = 64


@dataclass(frozen=True)
class Lookup:
    """An input read as ids of a table.

    Attributes:
        table: The parameter's name.
        rows: Rows of the table.
        column: Which column of the input, None for all of it.
        pooled: Whether several ids of a row are looked up and pooled.
    """

    table: str
    rows: int
    column: int | None
    pooled: bool


def infer_signature(
    graph: fx.Graph, outputs: tuple[str, ...], tasks: tuple[Task, ...] | None = None
) -> Signature:
    """The signature of a captured graph.

    Args:
        graph: Placeholders are the features; the output is a tuple of tensors.
        outputs: Names of the output tensors.
        tasks: Given tasks; inferred from the outputs when None.
    """
    features = tuple(_feature(node) for node in graph.find_nodes(op="placeholder"))
    (output,) = graph.find_nodes(op="output")
    if tasks is None:
        pairs = zip(outputs, output.args[0], strict=True)
        tasks = tuple(task for name, node in pairs for task in _tasks(name, node))
    return Signature(features, tasks, outputs)


def lookups(node: fx.Node) -> Iterator[Lookup]:
    """Every table lookup whose ids are (a column of) ``node``, unchanged in value."""
    yield from _lookups(node, None, set())


def _lookups(node: fx.Node, column: int | None, seen: set[fx.Node]) -> Iterator[Lookup]:
    for user in node.users:
        if user in seen:
            continue
        seen.add(user)
        places = _LOOKUPS.get(user.target) if user.op == "call_function" else None
        if places is not None:
            table, ids = user.args[places[0]], user.args[places[1]]
            name = parameter_name(table)
            if ids is node and name is not None:
                rows = int(shape_of(table)[0])
                yield Lookup(name, rows, column, _is_pooled(user))
        elif is_op(user, *_TRANSPARENT) and user.args[0] is node:
            yield from _lookups(user, column, seen)
        elif is_op(user, _aten.select.int) and column is None:
            index = user.args[2]
            last = node.meta["val"].dim() - 1
            picked = index if user.args[1] in (last, -1) and isinstance(index, int) else None
            yield from _lookups(user, picked, seen)
        elif is_op(user, *_SPLITS) and column is None:
            for piece in user.users:
                size = piece.meta["val"].shape[-1] if piece.meta["val"].dim() else 1
                single = is_op(user, _aten.unbind.int) or size == 1
                yield from _lookups(piece, piece.args[1] if single else None, seen)  # type: ignore[arg-type]


def _is_pooled(lookup: fx.Node) -> bool:
    if lookup.target is not _aten.embedding.default:
        return "embedding_bag" in str(lookup.target)
    return any(
        is_op(user, _aten.sum.dim_IntList, _aten.mean.dim) and 1 in _dims(user)
        for user in lookup.users
    )


def _dims(node: fx.Node) -> list[int]:
    dims = argument(node, 1, "dim", [])
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    return [d % rank for d in dims] if isinstance(dims, (list, tuple)) else []


def _feature(node: fx.Node) -> Feature:
    value: Tensor = node.meta["val"]
    found = list(lookups(node))
    dtype = str(value.dtype).removeprefix("torch.")
    return Feature(
        name=str(node.target),
        kind=_kind(node, value, found),
        dtype=dtype,
        shape=tuple(_size(size, index) for index, size in enumerate(value.shape)),
        tables=tuple(dict.fromkeys(lookup.table for lookup in found)),
        cardinalities=_cardinalities(value, found),
    )


def _kind(node: fx.Node, value: Tensor, found: list[Lookup]) -> FeatureKind:
    if not node.users:
        return FeatureKind.UNUSED
    if any(
        "embedding_bag" in str(user.target) and argument(user, 2, "offsets") is node
        for user in node.users
    ):
        return FeatureKind.OFFSETS
    if found:
        if any(lookup.pooled for lookup in found):
            return FeatureKind.JAGGED if value.dim() == 1 else FeatureKind.ID_LIST
        whole = any(lookup.column is None for lookup in found)
        several = value.dim() >= 2 and value.shape[-1] != 1
        return FeatureKind.SEQUENCE if whole and several and len(found) == 1 else FeatureKind.ID
    if value.dtype is torch.bool:
        return FeatureKind.MASK
    return FeatureKind.DENSE if value.is_floating_point() else FeatureKind.ID


def _cardinalities(value: Tensor, found: list[Lookup]) -> tuple[int, ...]:
    """Rows of the smallest table each column, or the whole input, is looked up in."""
    if not found:
        return ()
    width = value.shape[-1] if value.dim() >= 2 else None
    by_column: dict[int | None, int] = {}
    for lookup in found:
        rows = by_column.get(lookup.column, lookup.rows)
        by_column[lookup.column] = min(rows, lookup.rows)
    if None in by_column:
        return (min(by_column.values()),)
    if isinstance(width, int) and set(by_column) == set(range(width)):
        return tuple(by_column[index] for index in range(width))
    return ()


def _size(size: int | torch.SymInt, index: int) -> int | str:
    if isinstance(size, int):
        return size
    return BATCH if index == 0 else str(size)


def _tasks(name: str, node: Any) -> Iterator[Task]:
    value = node.meta["val"]
    score = Score.PROBABILITY if _ends_in_probability(node) else Score.LOGIT
    columns = value.shape[1] if value.dim() == 2 else 1
    if value.dim() > 2 or not isinstance(columns, int) or columns > _MAX_TASK_COLUMNS:
        return
    if not value.is_floating_point():
        return
    if columns == 1:
        yield Task(name, name, None, TaskKind.BINARY, score)
        return
    for column in range(columns):
        yield Task(f"{name}_{column}", name, column, TaskKind.BINARY, score)


def _ends_in_probability(node: fx.Node) -> bool:
    """Whether a sigmoid, or a softmax, is the last thing that computes."""
    while True:
        if is_op(node, *_ENDINGS):
            return True
        if is_op(node, *_TRANSPARENT, _aten.select.int, _aten.clamp.default):
            first = node.args[0]
        elif is_op(node, _aten.cat.default, _aten.stack.default):
            parts = node.args[0]
            return isinstance(parts, (list, tuple)) and all(
                isinstance(part, fx.Node) and _ends_in_probability(part) for part in parts
            )
        elif is_op(node, _aten.mul.Tensor):
            return all(isinstance(a, fx.Node) and _ends_in_probability(a) for a in node.args)
        else:
            return False
        if not isinstance(first, fx.Node):
            return False
        node = first
