"""Which values integers of a graph can have: what is known without running it.

Whatever isn't known is the whole range of its dtype, so that a range always holds. Floating-point
values have none: a NaN passes every comparison that would bound them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from .operators import gives, moves, traits_of
from .pattern import argument, is_op
from .traits import Move, Values

_aten = torch.ops.aten


@dataclass(frozen=True)
class Range:
    """Least and largest value, both reached or not."""

    low: int
    high: int

    def __or__(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))

    def __and__(self, other: Range) -> Range:
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Range(low, high) if low <= high else self

    def within(self, low: int, high: int) -> bool:
        """Whether all values are from ``low`` to ``high``."""
        return low <= self.low and self.high <= high


_BIT = Range(0, 1)


class IntegerRanges:
    """The ranges of a graph's integers, each worked out once.

    Args:
        inputs: What is known of placeholders.
    """

    def __init__(self, inputs: Mapping[fx.Node, Range] | None = None) -> None:
        self._known: dict[fx.Node, Range] = dict(inputs or {})

    def of(self, value: Any) -> Range | None:
        """The range of a node or a number; None where it isn't an integer."""
        if isinstance(value, (bool, int)):
            return Range(int(value), int(value))
        if not isinstance(value, fx.Node):
            return None
        if value not in self._known:
            whole = _whole(value.meta.get("val"))
            if whole is None:
                return None
            self._known[value] = whole  # while its own inputs are looked at
            found = self._made(value)
            fits = found is not None and found.within(whole.low, whole.high)
            self._known[value] = found if found is not None and fits else whole
        return self._known[value]

    def _made(self, node: fx.Node) -> Range | None:
        if node.op == "get_attr":
            return _values(node)
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:
            return self._item(node)
        rule = _RULES.get(traits_of(node.target).values)
        return rule(self, node) if rule is not None else None

    def _item(self, node: fx.Node) -> Range | None:
        """A part of what gives several values."""
        source, index = node.args
        if moves(source, Move.SPLIT):
            return self.of(source.args[0])  # type: ignore[union-attr]
        if is_op(source, *_PICKS):
            assert isinstance(source, fx.Node)
            if index == 0:
                return self.of(source.args[0])
            return _places(source, int(argument(source, _PICKS[source.target], "dim", -1)))
        return None

    # --- rules ------------------------------------------------------------------------------------

    def same(self, node: fx.Node) -> Range | None:
        """Values of the first argument, moved or picked."""
        return self.of(node.args[0])

    def cast(self, node: fx.Node) -> Range | None:
        """An integer of another width; one of a number that isn't an integer may be anything."""
        return self.of(node.args[0])

    def joined(self, node: fx.Node) -> Range | None:
        """Values of any of several."""
        parts: Any = node.args[0]
        return self._any([self.of(part) for part in parts])

    def filled(self, node: fx.Node) -> Range | None:
        """Values of the first argument, or the one they are filled with."""
        return self._any([self.of(node.args[0]), self.of(node.args[2])])

    def _any(self, found: list[Range | None]) -> Range | None:
        if not found or any(one is None for one in found):
            return None
        low = min(one.low for one in found if one is not None)
        return Range(low, max(one.high for one in found if one is not None))

    def _corners(self, node: fx.Node, compute: Callable[[int, int], int]) -> Range | None:
        """Of an operation that is monotonous in both operands, or bilinear."""
        left, right = self.of(node.args[0]), self.of(node.args[1])
        if left is None or right is None:
            return None
        if argument(node, 2, "alpha", 1) != 1:
            return None
        found = [compute(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        return Range(min(found), max(found))

    def divided(self, node: fx.Node) -> Range | None:
        """Divided by positive integers, rounded down or towards zero."""
        left, right = self.of(node.args[0]), self.of(node.args[1])
        if left is None or right is None or right.low < 1:
            return None
        mode = argument(node, 2, "rounding_mode")
        if mode == "floor" or gives(node, Values.FLOOR_DIVIDE):
            return self._corners_of(left, right, lambda a, b: a // b)
        if mode == "trunc":
            return self._corners_of(left, right, lambda a, b: abs(a) // b * (1 if a >= 0 else -1))
        return None

    @staticmethod
    def _corners_of(left: Range, right: Range, compute: Callable[[int, int], int]) -> Range:
        found = [compute(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        return Range(min(found), max(found))

    def remainder(self, node: fx.Node) -> Range | None:
        """Has the divisor's sign, and stays below it; what is below it already is left alone."""
        left, right = self.of(node.args[0]), self.of(node.args[1])
        if left is None or right is None or right.low < 1:
            return None
        if left.low >= 0 and left.high < right.low:
            return left
        return Range(0, right.high - 1)

    def clamped(self, node: fx.Node) -> Range | None:
        """Between two bounds, of which one may be missing."""
        inner = self.of(node.args[0])
        if is_op(node, _aten.clamp_min.default, _aten.maximum.default, _aten.clamp_min.Tensor):
            low, high = self.of(node.args[1]), None
        elif is_op(node, _aten.clamp_max.default, _aten.minimum.default, _aten.clamp_max.Tensor):
            low, high = None, self.of(node.args[1])
        else:
            low = self.of(argument(node, 1, "min"))
            high = self.of(argument(node, 2, "max"))
        if inner is None or (low is None and high is None):
            return None
        found = inner
        if low is not None:
            found = Range(max(found.low, low.low), max(found.high, low.high))
        if high is not None:
            found = Range(min(found.low, high.low), min(found.high, high.high))
        return found

    def masked(self, node: fx.Node) -> Range | None:
        """Bits of a number that isn't negative."""
        found = [self.of(part) for part in node.args[:2]]
        known = [one.high for one in found if one is not None and one.low >= 0]
        return Range(0, min(known)) if known else None

    def shifted_right(self, node: fx.Node) -> Range | None:
        """A number that isn't negative, divided by a power of two."""
        left, right = self.of(node.args[0]), self.of(node.args[1])
        if left is None or right is None or left.low < 0 or not right.within(0, 62):
            return None
        return Range(left.low >> right.high, left.high >> right.low)

    def absolute(self, node: fx.Node) -> Range | None:
        """The least number of a dtype has no positive counterpart."""
        inner = self.of(node.args[0])
        if inner is None:
            return None
        low = 0 if inner.low <= 0 <= inner.high else min(abs(inner.low), abs(inner.high))
        return Range(low, max(abs(inner.low), abs(inner.high)))

    def rectified(self, node: fx.Node) -> Range | None:
        """Not below zero."""
        inner = self.of(node.args[0])
        return None if inner is None else Range(max(0, inner.low), max(0, inner.high))

    def negated(self, node: fx.Node) -> Range | None:
        """With the other sign."""
        inner = self.of(node.args[0])
        return None if inner is None else Range(-inner.high, -inner.low)

    def chosen(self, node: fx.Node) -> Range | None:
        """Either of two, each as far as the condition lets it through."""
        condition, first, second = node.args
        return self._any(
            [self._where(condition, first, True), self._where(condition, second, False)]
        )

    def _where(self, condition: Any, value: Any, holds: bool) -> Range | None:
        """The range of ``value`` where a condition holds, or doesn't."""
        found = self.of(value)
        if found is None or not isinstance(condition, fx.Node) or condition.op != "call_function":
            return found
        if is_op(condition, _aten.logical_not.default, _aten.bitwise_not.default):
            return self._where(condition.args[0], value, not holds)
        both = is_op(condition, _aten.logical_and.default, _aten.bitwise_and.Tensor)
        either = is_op(condition, _aten.logical_or.default, _aten.bitwise_or.Tensor)
        if (both and holds) or (either and not holds):
            for part in condition.args[:2]:
                inner = self._where(part, value, holds)
                found = found & inner if inner is not None else found
            return found
        bounds = _COMPARED.get(traits_of(condition.target).values)
        limit = self.of(condition.args[1]) if bounds is not None else None
        if bounds is None or limit is None or condition.args[0] is not value:
            return found
        return found & bounds(limit, found, holds)

    def counted(self, node: fx.Node) -> Range | None:
        """A sum of so many."""
        inner = self.of(node.args[0])
        shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
        dims = argument(node, 1, "dim")
        places = dims or range(len(shape))
        places = [places] if isinstance(places, int) else places
        count = 1
        for place in places:
            if not isinstance(shape[place], int):
                return inner if inner == Range(0, 0) else None
            count *= int(shape[place])
        if inner is None:
            return None
        return Range(min(0, inner.low * count), max(0, inner.high * count))

    def bounded(self, node: fx.Node) -> Range | None:
        """What an op of the dialect lets through."""
        inner, rows = self.of(node.args[0]), node.args[1]
        assert isinstance(rows, (list, tuple))
        if inner is None or not all(rows):
            return inner
        return inner & Range(0, max(int(size) for size in rows) - 1)  # type: ignore[arg-type]

    def wrapped(self, node: fx.Node) -> Range | None:
        """Negative ids counted from the end."""
        inner, rows = self.of(node.args[0]), node.args[1]
        assert isinstance(rows, int)
        if inner is None:
            return None
        below = Range(inner.low + rows, min(-1, inner.high) + rows) if inner.low < 0 else inner
        above = Range(max(0, inner.low), inner.high) if inner.high >= 0 else below
        return below | above


def _whole(value: Any) -> Range | None:
    """What a dtype holds."""
    if isinstance(value, torch.SymInt):
        return Range(0, 2**62)
    if not isinstance(value, Tensor) or value.dtype.is_floating_point or value.dtype.is_complex:
        return None
    if value.dtype is torch.bool:
        return _BIT
    limits = torch.iinfo(value.dtype)
    return Range(limits.min, limits.max)


def _values(node: fx.Node) -> Range | None:
    """The values of a parameter."""
    found: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    if not isinstance(found, Tensor) or found.numel() == 0 or found.is_floating_point():
        return None
    return Range(int(found.min()), int(found.max()))


def _places(node: fx.Node, dim: int) -> Range | None:
    """Positions along a dimension of the first argument."""
    size = node.args[0].meta["val"].shape[dim]  # type: ignore[union-attr]
    return Range(0, max(0, int(size) - 1)) if isinstance(size, int) else None


def _place(ranges: IntegerRanges, node: fx.Node) -> Range | None:
    dim = argument(node, 1, "dim")
    return _places(node, dim) if isinstance(dim, int) else None


def _boundaries(ranges: IntegerRanges, node: fx.Node) -> Range | None:
    """Between which of some boundaries."""
    sorted_first = is_op(node, _aten.searchsorted.Tensor, _aten.searchsorted.Scalar)
    boundaries = node.args[0 if sorted_first else 1]
    size = boundaries.meta["val"].shape[-1]  # type: ignore[union-attr]
    return Range(0, int(size)) if isinstance(size, int) else None


def _counting(ranges: IntegerRanges, node: fx.Node) -> Range | None:
    """From a start up to an end, which it doesn't reach."""
    start: Any = 0
    step: Any = 1
    end = node.args[0]
    if not is_op(node, _aten.arange.default):
        start, end = node.args[:2]
        step = argument(node, 2, "step", 1)
    if not isinstance(start, int) or not isinstance(step, int) or step < 1:
        return None
    last = ranges.of(end)
    return None if last is None else Range(start, max(start, last.high - 1))


def _filled(place: int) -> Callable[[IntegerRanges, fx.Node], Range | None]:
    return lambda ranges, node: ranges.of(node.args[place])


def _constant(low: int, high: int) -> Callable[[IntegerRanges, fx.Node], Range | None]:
    return lambda ranges, node: Range(low, high)


def _below(limit: Range, found: Range, holds: bool, *, strict: bool) -> Range:
    """What is below a limit, or isn't."""
    if holds:
        return Range(found.low, max(found.low, limit.high - strict))
    return Range(min(found.high, limit.low + (not strict)), found.high)


def _above(limit: Range, found: Range, holds: bool, *, strict: bool) -> Range:
    return _below(limit, found, not holds, strict=not strict)


def _equal(limit: Range, found: Range, holds: bool) -> Range:
    return limit if holds else found


_COMPARED: dict[Values, Callable[[Range, Range, bool], Range]] = {
    Values.LESS: partial(_below, strict=True),
    Values.LESS_OR_EQUAL: partial(_below, strict=False),
    Values.GREATER: partial(_above, strict=True),
    Values.GREATER_OR_EQUAL: partial(_above, strict=False),
    Values.EQUAL: _equal,
    Values.UNEQUAL: lambda limit, found, holds: _equal(limit, found, not holds),
}
#: What gives values of its first argument and their places: which argument is the dimension.
_PICKS: Any = {
    _aten.max.dim: 1,
    _aten.min.dim: 1,
    _aten.sort.default: 1,
    _aten.topk.default: 2,
}
_RULES: dict[Values, Callable[[IntegerRanges, fx.Node], Range | None]] = {
    Values.SAME: IntegerRanges.same,
    Values.EXTREME: IntegerRanges.same,
    Values.PICKED: IntegerRanges.same,
    Values.INDEXED: IntegerRanges.same,
    Values.LOOKED_UP: IntegerRanges.same,
    Values.CAST: IntegerRanges.cast,
    Values.JOINED: IntegerRanges.joined,
    Values.ADD: lambda ranges, node: ranges._corners(node, operator.add),
    Values.SUBTRACT: lambda ranges, node: ranges._corners(node, operator.sub),
    Values.SUBTRACT_REVERSED: lambda ranges, node: ranges._corners(node, lambda a, b: b - a),
    Values.MULTIPLY: lambda ranges, node: ranges._corners(node, operator.mul),
    Values.DIVIDE_ROUNDED: IntegerRanges.divided,
    Values.FLOOR_DIVIDE: IntegerRanges.divided,
    Values.REMAINDER: IntegerRanges.remainder,
    Values.CLAMPED: IntegerRanges.clamped,
    Values.CLAMPED_BY_TENSORS: IntegerRanges.clamped,
    Values.LARGER: IntegerRanges.clamped,
    Values.AND: IntegerRanges.masked,
    Values.SHIFT_RIGHT: IntegerRanges.shifted_right,
    Values.ABSOLUTE: IntegerRanges.absolute,
    Values.RECTIFIED: IntegerRanges.rectified,
    Values.NEGATED: IntegerRanges.negated,
    Values.CHOSEN: IntegerRanges.chosen,
    Values.FILLED: IntegerRanges.filled,
    Values.SUM: IntegerRanges.counted,
    Values.CUMULATED: IntegerRanges.counted,
    Values.PLACE: _place,
    Values.BUCKET: _boundaries,
    Values.BIT: _constant(0, 1),
    Values.SIGN: _constant(-1, 1),
    Values.COUNTING: _counting,
    Values.CONSTANT: _filled(1),
    Values.CONSTANT_LIKE: _filled(1),
    Values.SCALAR: _filled(0),
    Values.ZERO: _constant(0, 0),
    Values.ONE: _constant(1, 1),
    Values.BOUNDED: IntegerRanges.bounded,
    Values.WRAPPED: IntegerRanges.wrapped,
}
