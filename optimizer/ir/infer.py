"""Reading a signature off a graph: what an input feeds tells what it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from . import ops  # noqa: F401 (it registers the dialect)
from .heads import words_of
from .operators import gives, lookup_of, moves
from .pattern import argument, is_op, parameter_name, shape_of
from .signature import BATCH, Feature, FeatureKind, Score, Side, Signature, Task, TaskKind
from .traits import Move, Values

_aten = torch.ops.aten

#: Operators that only reshape or retype their first argument.
_TRANSPARENT = Move.VIEW | Move.EXPAND | Move.COPY | Move.CAST
#: Ahead of a table these make any id valid.
_BOUNDS = frozenset({_aten.remainder.Scalar, _aten.clamp.default})
_WRAPPED = torch.ops.rankc.wrapped.default
#: Words of a feature's name that say whom it describes.
_SIDES = {
    Side.USER: frozenset({"user", "uid", "usr", "member", "viewer", "visitor", "customer"}),
    Side.ITEM: frozenset(
        {"item", "iid", "ad", "adid", "creative", "campaign", "advertiser", "candidate", "target"}
        | {"product", "sku", "video", "movie", "doc", "document", "article", "listing", "seller"}
    ),
    Side.CONTEXT: frozenset(
        {"context", "ctx", "hour", "weekday", "day", "daytime", "request", "session", "device"}
        | {"placement", "browser", "platform", "query"}
    ),
}
_HISTORY = frozenset({"hist", "history", "clicked", "viewed", "bought", "watched", "liked"})
#: Of an output with more scores a row, as many are judged, evenly spaced.
_MAX_TASK_COLUMNS = 64
_MAX_CONSTANT = 4096
#: Rows of a table that takes any id.
_ANY = 0


@dataclass(frozen=True)
class Part:
    """A part of an input.

    Attributes:
        columns: Positions along ``axis``; None for all of it, empty where it isn't known.
        axis: The dimension of the input the columns are counted in.
        aligned: Whether the value still has the input's dimensions.
        scale: What the ids were multiplied by.
        reach: The most that was added to all of them.
        least: The least that was added to all of them.
        shifts: What was added to each of ``columns``, or to each column of the input.
        bounded: Whether something ahead of the table (a modulo, a clamp) makes any id valid.
        wraps: Of how many rows ids are that count from the end where they are negative; 0 for none.
    """

    columns: tuple[int, ...] | None = None
    axis: int = 1
    aligned: bool = True
    scale: int = 1
    reach: int = 0
    least: int = 0
    shifts: tuple[int, ...] = ()
    bounded: bool = False
    wraps: int = 0

    @property
    def is_all(self) -> bool:
        """Whether it is the whole input."""
        return self.columns is None

    def narrow(self, axis: int, columns: Iterable[int], *, aligned: bool) -> Part:
        """The part at some positions of one dimension of this part."""
        if not self.aligned or axis == 0 or (self.columns is not None and axis != self.axis):
            return replace(self, columns=(), axis=axis, aligned=False, shifts=())
        known, places = self.columns, tuple(columns)
        picked = places if known is None else tuple(known[c] for c in places)
        shifts = tuple(self.shifts[c] for c in places) if self.shifts else ()
        return replace(self, columns=picked, axis=axis, aligned=aligned, shifts=shifts)


@dataclass(frozen=True)
class Lookup:
    """An input read as ids of a table.

    Attributes:
        table: The parameter's name.
        rows: One more than the largest id that is valid; 0 where any is.
        part: Which part of the input.
        pooled: Whether several ids of a row are looked up and pooled.
        site: The lookup.
        low: The least id that is valid.
    """

    table: str
    rows: int
    part: Part
    pooled: bool
    site: fx.Node
    low: int = 0


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
        pairs = list(zip(outputs, output.args[0], strict=True))
        # Attention weights or an embedding beside the scores are no tasks, but alone they are.
        plain = [(name, node) for name, node in pairs if _is_plain(node.meta["val"])]
        tasks = tuple(task for name, node in plain or pairs for task in _tasks(name, node))
    return Signature(features, tasks, outputs)


def lookups(node: fx.Node) -> Iterator[Lookup]:
    """Every table lookup whose ids are (columns of) ``node``, unchanged in value."""
    yield from _lookups(node, Part(), set())


def _lookups(node: fx.Node, part: Part, seen: set[fx.Node]) -> Iterator[Lookup]:
    for user in node.users:
        if user in seen:
            continue
        seen.add(user)
        places = lookup_of(user)
        if places is not None:
            table, ids = user.args[places[0]], user.args[places[1]]
            name = parameter_name(table)
            if ids is node and name is not None:
                height = int(shape_of(table)[0])
                yield from _read(Lookup(name, height, part, _is_pooled(user), user))
        elif user.op != "call_function" or user.args[0] is not node:
            continue
        elif moves(user, Move.PART):
            yield from _lookups(user, _picked(node, user, part), seen)
        elif moves(user, _TRANSPARENT):
            yield from _lookups(user, replace(part, aligned=_is_aligned(user, part)), seen)
        elif moves(user, Move.SPLIT):
            yield from _split_lookups(node, user, part, seen)
        elif is_op(user, _WRAPPED):
            if part == replace(part, scale=1, reach=0, least=0, shifts=(), wraps=0):
                rows: Any = user.args[1]
                yield from _lookups(user, replace(part, wraps=int(rows)), seen)
        elif is_op(user, *_BOUNDS):
            yield from _lookups(user, replace(part, bounded=True), seen)
        elif gives(user, Values.ADD, Values.SUBTRACT, Values.MULTIPLY):
            moved = _moved(node, user, part)
            if moved is not None:
                yield from _lookups(user, moved, seen)


def _read(lookup: Lookup) -> Iterator[Lookup]:
    """The lookup with the ids that are valid for it, column by column where columns are shifted."""
    part = lookup.part
    if part.bounded:
        yield replace(lookup, rows=_ANY)
        return
    if not part.shifts:
        # Rounded up: ids times the scale must reach 0 again.
        low = -(part.wraps or part.least // part.scale)
        yield replace(lookup, rows=_valid(part, lookup.rows), low=low)
        return
    columns = range(len(part.shifts)) if part.columns is None else part.columns
    ends = [*sorted(set(part.shifts)), lookup.rows]
    for column, shift in zip(columns, part.shifts, strict=False):
        # A column's ids end where the next column's begin, if they lie one behind the other.
        end = next((end for end in ends if end > shift), lookup.rows)
        rows = _valid(part, end - shift)
        one = replace(part, columns=(column,), shifts=())
        yield replace(lookup, rows=rows, part=one, low=max(0, -(shift // part.scale)))


def _valid(part: Part, rows: int) -> int:
    """How many ids, scaled and shifted as the part's are, stay below ``rows``."""
    return (rows - 1 - part.reach) // part.scale + 1


def _moved(node: fx.Node, user: fx.Node, part: Part) -> Part | None:
    """The part after a constant was added to its ids, or they were multiplied by one."""
    other = _constant(user.args[1])
    if part.wraps or other is None or other.is_floating_point() or other.dtype is torch.bool:
        return None
    if other.numel() == 0 or argument(user, 2, "alpha", 1) != 1:
        return None
    if gives(user, Values.SUBTRACT):
        other = -other
    value: Tensor = user.meta["val"]
    rank = value.dim()
    sizes = (1,) * (rank - other.dim()) + tuple(other.shape)
    wide = [d for d, size in enumerate(sizes) if size > 1]
    flat = [int(v) for v in other.flatten()]
    if gives(user, Values.MULTIPLY):
        moved = part.shifts or part.reach or part.least
        fits = not wide and not moved and flat[0] > 0
        return replace(part, scale=part.scale * flat[0]) if fits else None
    if part.shifts or len(wide) > 1:
        return None
    if wide and wide[0] < node.meta["val"].dim() and _same_shape(node, user):
        fits = part.aligned and (part.columns is None or part.axis == wide[0])
        fits = fits and part.least >= 0 and min(flat) >= 0
        return replace(part, axis=wide[0], shifts=tuple(flat)) if fits else None
    return replace(part, reach=part.reach + max(flat), least=part.least + min(flat))


def _constant(value: Any) -> Tensor | None:
    """The small integers a node always holds, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return torch.tensor(value)
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        found: Any = value.graph.owning_module
        for name in str(value.target).split("."):
            found = getattr(found, name, None)
        if isinstance(found, Tensor) and found.numel() <= _MAX_CONSTANT:
            return found.detach()
        return None
    if value.op != "call_function" or not moves(value, _TRANSPARENT):
        return None
    first = _constant(value.args[0])
    if first is None or len(value.all_input_nodes) > 1:
        return None
    return value.target(first, *value.args[1:], **value.kwargs)  # type: ignore[operator,no-any-return]


def _split_lookups(
    node: fx.Node, split: fx.Node, part: Part, seen: set[fx.Node]
) -> Iterator[Lookup]:
    axis = _axis(split, 1 if is_op(split, _aten.unbind.int) else 2, node)
    whole = is_op(split, _aten.unbind.int)
    sizes = [1 if whole else value.shape[axis] for value in split.meta["val"]]
    for piece in split.users:
        index = piece.args[1]
        columns: Iterable[int] = ()
        if isinstance(index, int) and all(isinstance(size, int) for size in sizes):
            start = sum(sizes[:index])
            columns = range(start, start + sizes[index])
        yield from _lookups(piece, part.narrow(axis, columns, aligned=not whole), seen)


def _picked(node: fx.Node, user: fx.Node, part: Part) -> Part:
    """The part of ``node`` that a select or slice leaves."""
    width = node.meta["val"].shape
    if is_op(user, _aten.select.int):
        axis, index = _axis(user, 1, node), user.args[2]
        if not isinstance(index, int) or not isinstance(width[axis], int):
            return part.narrow(axis, (), aligned=False)
        return part.narrow(axis, [index % width[axis]], aligned=False)
    axis = _axis(user, 1, node)
    if _same_shape(node, user):
        return part
    bounds = (argument(user, 2, "start"), argument(user, 3, "end"), argument(user, 4, "step"))
    static = all(bound is None or isinstance(bound, int) for bound in bounds)
    if not static or not isinstance(width[axis], int):
        return part.narrow(axis, (), aligned=False)
    return part.narrow(axis, range(width[axis])[slice(*bounds)], aligned=True)


def _same_shape(first: Any, second: Any) -> bool:
    """Whether two values have one shape, as written: sizes that only values tell can't be asked."""
    return list(map(str, shape_of(first))) == list(map(str, shape_of(second)))


def _axis(node: fx.Node, place: int, source: fx.Node) -> int:
    dim = argument(node, place, "dim", 0)
    rank: int = source.meta["val"].dim()
    return dim % rank if isinstance(dim, int) and rank else 0


def _is_aligned(user: fx.Node, part: Part) -> bool:
    moved = moves(user, Move.TRANSPOSE)
    return part.aligned and not moved and _same_shape(user, user.args[0])


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
    kind, limits = _kind(node, value, found), _limits(value, found)
    return Feature(
        name=str(node.target),
        side=side_of(str(node.target)),
        kind=kind,
        dtype=dtype,
        shape=tuple(_size(size, index) for index, size in enumerate(value.shape)),
        default=0.0 if kind is FeatureKind.UNUSED else None,
        tables=tuple(dict.fromkeys(lookup.table for lookup in found)),
        cardinalities=tuple(high for _, high in limits),
        lows=tuple(low for low, _ in limits) if any(low for low, _ in limits) else (),
        axis=next((lookup.part.axis for lookup in found if lookup.part.columns), 1),
    )


def side_of(name: str) -> Side:
    """Whom a feature describes, where its name makes it plain; unknown where two sides are named.

    Names are read word by word: ``user_id``, ``histItemIds`` and ``ad.category`` say it, ``music``
    and ``address`` don't. A history of items belongs to the user.
    """
    words = words_of(name)
    found = {side for side, known in _SIDES.items() if known & words}
    if _HISTORY & words and found <= {Side.ITEM, Side.USER}:
        return Side.USER
    return found.pop() if len(found) == 1 else Side.UNKNOWN


def _kind(node: fx.Node, value: Tensor, found: list[Lookup]) -> FeatureKind:
    if not node.users:
        return FeatureKind.UNUSED
    if any(
        is_op(user, torch.ops.rankc.rising.default)
        or ("embedding_bag" in str(user.target) and argument(user, 2, "offsets") is node)
        for user in node.users
    ):
        return FeatureKind.OFFSETS
    if found:
        pooled = [look for look in found if look.pooled]
        if any(look.part.columns is None or len(look.part.columns) != 1 for look in pooled):
            return FeatureKind.JAGGED if value.dim() == 1 else FeatureKind.ID_LIST
        whole = any(lookup.part.is_all for lookup in found)
        several = value.dim() >= 2 and value.shape[-1] != 1
        return FeatureKind.SEQUENCE if whole and several and len(found) == 1 else FeatureKind.ID
    if value.dtype is torch.bool:
        return FeatureKind.MASK
    if value.is_floating_point():
        return FeatureKind.DENSE
    return FeatureKind.LENGTHS if _is_length(node) else FeatureKind.ID


def _is_length(node: fx.Node) -> bool:
    """Whether integers are only held against positions: lengths of padded lists."""
    waiting, compared = list(node.users), False
    while waiting:
        user = waiting.pop()
        if _is_reshaped(user):
            waiting.extend(user.users)
        elif is_op(user, *_COMPARED):
            compared = True
            if not any(_is_positions(other) for other in user.all_input_nodes):
                return False
        elif not is_op(user, *_PICKS):
            return False
    return compared


def _is_positions(node: fx.Node) -> bool:
    while _is_reshaped(node):
        node = node.all_input_nodes[0]
    return gives(node, Values.COUNTING)


#: What lengths become before they are compared, or pick the last of a list.
_RESHAPED = _TRANSPARENT | Move.REPEAT


def _is_reshaped(node: Any) -> bool:
    return moves(node, _RESHAPED) or is_op(node, _aten.sub.Tensor)


_PICKS = (_aten.index.Tensor, _aten.gather.default)
_COMPARED = (
    _aten.lt.Tensor,
    _aten.le.Tensor,
    _aten.gt.Tensor,
    _aten.ge.Tensor,
    _aten.eq.Tensor,
)


def _limits(value: Tensor, found: list[Lookup]) -> tuple[tuple[int, int], ...]:
    """The least id and one more than the largest that are valid in each column, or in all of it.

    Those of the smallest table it is looked up in. A column that is looked up nowhere, beside
    others that are, has 0 and 0: dense values packed with ids, or ids that a modulo makes fit.
    """
    known = [lookup for lookup in found if lookup.rows != _ANY]
    sizes = {(lookup.low, lookup.rows) for lookup in known}
    if not sizes:
        return ()
    smallest = (max(low for low, _ in sizes), min(high for _, high in sizes))
    if all(lookup.part.is_all for lookup in found):
        return _valid_limits((smallest,))
    axes = {lookup.part.axis for lookup in found if not lookup.part.is_all}
    width = value.shape[min(axes)] if max(axes) < value.dim() else None
    unknown = any(lookup.part.columns == () for lookup in found)
    if unknown or len(axes) > 1 or not isinstance(width, int):
        # Which ids go where isn't known: a limit can be given only if it is the same for all.
        same = len(sizes) == 1 and not value.is_floating_point()
        return _valid_limits((smallest,)) if same else ()
    limits: dict[int, tuple[int, int]] = {}
    for lookup in known:
        for column in range(width) if lookup.part.columns is None else lookup.part.columns:
            low, high = limits.get(column, (lookup.low, lookup.rows))
            limits[column] = max(low, lookup.low), min(high, lookup.rows)
    return _valid_limits(tuple(limits.get(column, (0, 0)) for column in range(width)))


def _valid_limits(limits: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Limits between which there are ids, and none where they can't be told from those of none."""
    kept = tuple((low, high) if high > max(0, low) else (0, 0) for low, high in limits)
    return kept if any(high for _, high in kept) else ()


def _size(size: int | torch.SymInt, index: int) -> int | str:
    if isinstance(size, int):
        return size
    return BATCH if index == 0 else str(size)


def _is_plain(value: Any) -> bool:
    """Whether an output is a score a row, or a few side by side."""
    columns = value.shape[1] if value.dim() == 2 else 1
    few = value.dim() <= 2 and isinstance(columns, int) and columns <= _MAX_TASK_COLUMNS
    return few and bool(value.is_floating_point())


def _tasks(name: str, node: Any) -> Iterator[Task]:
    value = node.meta["val"]
    sizes = value.shape[1:]
    if not value.is_floating_point() or not all(isinstance(size, int) for size in sizes):
        return
    score = Score.PROBABILITY if _ends_in_probability(node) else Score.LOGIT
    columns = math.prod(sizes)
    if columns == 1:
        yield Task(name, name, None, TaskKind.BINARY, score)
        return
    judged = min(columns, _MAX_TASK_COLUMNS)
    for number in range(judged):
        column = number * columns // judged
        yield Task("_".join((name, *_place(column, sizes))), name, column, TaskKind.BINARY, score)


def _place(column: int, sizes: Sequence[int]) -> list[str]:
    """Where a column of flattened rows lies in each dimension that has several."""
    place: list[str] = []
    for size in reversed(sizes):
        column, index = divmod(column, size)
        if size > 1:
            place.insert(0, str(index))
    return place


def judged_in_part(graph: fx.Graph, signature: Signature) -> Iterator[str]:
    """What there is to say of outputs with more scores a row than are tasks."""
    (output,) = graph.find_nodes(op="output")
    for name, node in zip(signature.outputs, output.args[0], strict=True):
        tasks = sum(task.output == name for task in signature.tasks)
        sizes = node.meta["val"].shape[1:]
        columns = math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0
        if columns > tasks == _MAX_TASK_COLUMNS:
            yield (
                f"output {name!r} has {columns:,} scores a row: {tasks} of them, evenly spaced, "
                "are tasks and judged; all are served, and compared with the original's"
            )


def _ends_in_probability(node: fx.Node) -> bool:
    """Whether a sigmoid, or a softmax, is the last thing that computes."""
    while True:
        if is_op(node, _aten.sigmoid.default) or gives(node, Values.WEIGHTS):
            return True
        if moves(node, _TRANSPARENT | Move.PART) or is_op(node, _aten.clamp.default):
            first = node.args[0]
        elif moves(node, Move.JOIN):
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
