"""Values of a feature at which a model's score may jump: read off the constants it meets.

A feature that is divided by 3,600, taken modulo 24, compared with 0.5 or sorted into buckets has
scores that jump at multiples and at boundaries. That is where translations differ, so rows are made
that lie exactly there, and one step to either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import gives, lookup_of, moves
from ..ir.pattern import shape_of
from ..ir.program import Program
from ..ir.traits import COMPARISONS, Move, Values

Number = int | float

#: What lies further on isn't the feature any more, but a mixture.
_DEPTH = 24
#: Boundaries of a bucketizer beyond these are left out, evenly.
_BOUNDARIES = 8
#: What a value is moved by, or hardly changed by.
_MOVES = Move.VIEW | Move.PART | Move.EXPAND | Move.COPY | Move.CAST
_MOVES |= Move.SPLIT | Move.JOIN | Move.ITEM
#: What undoes a function of one number.
_INVERSE: dict[str, Callable[[float], float]] = {
    "log": math.exp,
    "log1p": math.expm1,
    "log2": lambda y: 2.0**y,
    "log10": lambda y: 10.0**y,
    "exp": lambda y: math.log(y) if y > 0 else math.nan,
    "sqrt": lambda y: y * y,
    "sigmoid": lambda y: math.log(y / (1 - y)) if 0 < y < 1 else math.nan,
    "tanh": lambda y: math.atanh(y) if -1 < y < 1 else math.nan,
    "neg": lambda y: -y,
}


@dataclass
class Landmarks:
    """Where a feature's score may jump.

    Attributes:
        levels: Numbers it is compared with, and boundaries of buckets.
        steps: What it is divided by, or taken modulo: the score may jump at every multiple.
        padding: Ids that stand for no id.
    """

    levels: set[Number] = field(default_factory=set)
    steps: set[Number] = field(default_factory=set)
    padding: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Path:
    """How a value came from the feature: ``back`` takes a number to the feature's own scale."""

    back: Callable[[Number], Number]
    depth: int = 0

    def then(self, undo: Callable[[Any], Number]) -> _Path:
        return _Path(lambda y: self.back(undo(y)), self.depth + 1)


def landmarks(program: Program) -> dict[str, Landmarks]:
    """The landmarks of every feature, by its name."""
    found = {}
    for node in program.graph.find_nodes(op="placeholder"):
        marks = Landmarks()
        _follow(node, _Path(lambda y: y), marks, set())
        found[str(node.target)] = marks
    return found


def truncates_integers(program: Program) -> bool:
    """Whether a truncated integer quotient may be of the least number over -1.

    PyTorch computes it by an instruction that ends the process then, where its floor wraps.
    """
    return any(
        node.op == "call_function"
        and _name(node) == "div"
        and node.kwargs.get("rounding_mode") == "trunc"
        and not node.meta["val"].is_floating_point()
        and (isinstance(node.args[1], fx.Node) or node.args[1] == -1)
        for node in program.graph.nodes
    )


def _follow(node: fx.Node, path: _Path, marks: Landmarks, seen: set[fx.Node]) -> None:
    if path.depth > _DEPTH:
        return
    for user in node.users:
        if user.op != "call_function" or user in seen:
            continue
        seen.add(user)
        if lookup_of(user) is not None:
            padding = next(_numbers(_padding(user)), None)
            if padding is not None and padding >= 0:
                marks.padding.add(int(path.back(int(padding))))
            marks.levels |= {path.back(row - 1) for row in _rows(user)}
            continue
        name = _name(user)
        others = [value for value in (*user.args, *user.kwargs.values()) if value is not node]
        further = _met(name, node, user, others, path, marks)
        if further is not None:
            _follow(user, further, marks, seen)


def _met(
    name: str, node: fx.Node, user: fx.Node, others: list[Any], path: _Path, marks: Landmarks
) -> _Path | None:
    """Notes the constants an operator brings; returns how to go on, or None to stop."""
    if gives(user, *COMPARISONS, Values.BUCKET):
        marks.levels |= {path.back(y) for other in others for y in _numbers(other)}
        return None
    if gives(user, Values.LARGER, Values.CLAMPED, Values.CLAMPED_BY_TENSORS):
        marks.levels |= {path.back(y) for other in others for y in _numbers(other)}
        return path.then(lambda y: y)
    first = bool(user.args) and user.args[0] is node
    number = next((y for other in others[:1] for y in _numbers(other)), None)
    if name in ("floor_divide", "remainder", "fmod") or _divides_whole(user):
        if not first or not number:
            return None
        start = path.back(0)
        marks.levels.add(start)
        marks.steps.add(_absolute(path.back(number), start))
        by = number
        whole = name == "floor_divide" or _divides_whole(user)
        return path.then(lambda y: y * by) if whole else path.then(lambda y: y)
    if name in ("add", "sub", "mul", "div", "rsub") and number is not None:
        return _affine(name, number, path, first=first)
    if name == "index" or name == "gather":
        return None
    if name in _INVERSE:
        return path.then(_INVERSE[name])
    return path.then(lambda y: y) if _keeps(user) else None


def _keeps(node: fx.Node) -> bool:
    """Whether an operator moves a value, or leaves it nearly what it was."""
    nearly = (Values.ROUNDED, Values.ABSOLUTE, Values.RECTIFIED, Values.CHOSEN, Values.BOUNDED)
    return moves(node, _MOVES) or gives(node, *nearly) or _name(node) == "nan_to_num"


def _affine(name: str, by: Number, path: _Path, *, first: bool) -> _Path | None:
    if name == "add":
        return path.then(lambda y: y - by)
    if name == "sub":
        return path.then(lambda y: y + by) if first else path.then(lambda y: by - y)
    if name == "rsub":
        return path.then(lambda y: by - y)
    if not by or (not first and name == "div"):
        return None
    if name == "mul":
        return path.then(lambda y: y / by if isinstance(by, float) or y % by else y // by)
    return path.then(lambda y: y * by)


def _absolute(end: Number, start: Number) -> Number:
    return abs(end - start)


def _divides_whole(node: fx.Node) -> bool:
    return _name(node) == "div" and node.kwargs.get("rounding_mode") is not None


def _padding(lookup: fx.Node) -> Any:
    """The id of an embedding that stands for no id."""
    schema = getattr(lookup.target, "_schema", None)
    for place, wanted in enumerate(schema.arguments if schema is not None else ()):
        if wanted.name == "padding_idx":
            return (
                lookup.args[place] if place < len(lookup.args) else lookup.kwargs.get(wanted.name)
            )
    return None


def _rows(lookup: fx.Node) -> tuple[int, ...]:
    """The rows of the table that is looked up in; empty where they aren't known."""
    places = lookup_of(lookup)
    table = lookup.args[places[0]] if places is not None else None
    rows = shape_of(table)[0] if isinstance(table, fx.Node) else None
    return (rows,) if isinstance(rows, int) else ()


def _name(node: fx.Node) -> str:
    """An operator's name without its namespace and overload."""
    name = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0].removeprefix("aten::")


def _numbers(value: Any) -> Iterator[Number]:
    """The numbers a node's argument always holds, the finite ones, a few of many."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield value
        return
    tensor = _constant(value)
    if tensor is None or tensor.dtype is torch.bool or tensor.is_complex():
        return
    flat = tensor.detach().flatten()
    if len(flat) > _BOUNDARIES:
        flat = flat[torch.linspace(0, len(flat) - 1, _BOUNDARIES).long()]
    yield from (y for y in flat.tolist() if math.isfinite(y))


def _constant(value: Any) -> Tensor | None:
    """The tensor a node always is: a parameter or buffer, as it is or cast."""
    if not isinstance(value, fx.Node):
        return None
    while value.op == "call_function" and len(value.all_input_nodes) == 1 and _keeps(value):
        value = value.all_input_nodes[0]
    if value.op != "get_attr":
        return None
    found: Any = value.graph.owning_module
    for part in str(value.target).split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) and found.dim() <= 1 else None
