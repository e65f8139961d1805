"""What the values of a graph can be at most, known without a row of data.

Rows of tables are known, and so are parameters, bounds of features and the results of sigmoids,
softmaxes and norms; interval arithmetic carries that through the rest. Nothing is assumed: a value
that nothing bounds is unbounded, and every range holds for every row that a model can take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import gives, moves, traits_of
from ..ir.pattern import argument
from ..ir.program import Features, Program
from ..ir.traits import Move, Values
from .sites import has_plain_weight

_aten = torch.ops.aten
#: What stands for a value that nothing bounds; its square is still a number.
_HUGE = 1e100
#: From here on a bound bounds nothing.
UNBOUNDED = 1e30


@dataclass(frozen=True)
class Range:
    """The least and the largest that each element of a value can be, for one row.

    Attributes:
        low: float64, shaped like the value.
        high: The same.
    """

    low: Tensor
    high: Tensor

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest of all elements; infinite where nothing bounds them."""
        if self.low.numel() == 0:
            return 0.0, 0.0
        low, high = float(self.low.min()), float(self.high.max())
        return (
            low if abs(low) < UNBOUNDED else -float("inf"),
            high if abs(high) < UNBOUNDED else float("inf"),
        )


Known = Range | list["Known"]


def value_ranges(
    program: Program, rows: Features, bounds: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[fx.Node, Range]:
    """The range of every floating-point value of a program.

    Args:
        program: In canonical form.
        rows: One row, any: what it holds of ids and masks gives shapes alone.
        bounds: ``{feature: (low, high)}`` of floating-point features, broadcast to their shape;
            others are unbounded.
    """
    tracker = _Tracker(program, bounds)
    with torch.no_grad():
        tracker.run(*program.ordered(rows))
    return {node: known for node, known in tracker.known.items() if isinstance(known, Range)}


class _Tracker(fx.Interpreter):
    """Runs one row, and beside each floating-point value its range."""

    def __init__(self, program: Program, bounds: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(program.module)
        self._names = dict(
            zip(program.graph.find_nodes(op="placeholder"), program.signature.names, strict=True)
        )
        self._bounds = bounds
        self.known: dict[fx.Node, Known] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        found = self._range(n, value)
        if found is not None:
            self.known[n] = found
        return value

    def _range(self, node: fx.Node, value: Any) -> Known | None:
        if isinstance(value, (tuple, list)):
            return self._several(node, value)
        if not isinstance(value, Tensor):
            return None
        if not value.is_floating_point():
            return None
        if node.op == "placeholder":
            if self._names[node] not in self._bounds:
                return _anything(value)
            low, high = (end.double() for end in self._bounds[self._names[node]])
            return Range(low.expand(value.shape), high.expand(value.shape))
        if node.op != "call_function":
            return None
        rule = _rule(node.target)
        found = rule(self, node, value) if rule is not None else None
        if found is None or found.low.shape != value.shape:
            return _anything(value)
        return _settled(found)

    def _several(self, node: fx.Node, values: Sequence[Any]) -> Known | None:
        """Of an operator with several results: those of pieces of one value are known."""
        if moves(node, Move.SPLIT) and isinstance(whole := self.of(node.args[0]), Range):
            rest = node.args[1:]
            split: Any = node.target
            low = split(whole.low, *rest, **node.kwargs)
            high = split(whole.high, *rest, **node.kwargs)
            return [Range(a, b) for a, b in zip(low, high, strict=True)]
        return [
            _anything(value)
            if isinstance(value, Tensor) and value.is_floating_point()
            else _anything(torch.zeros(()))
            for value in values
        ]

    def of(self, argument_: Any) -> Known:
        """The range of an argument: a node's, or a number itself."""
        if isinstance(argument_, fx.Node):
            known = self.known.get(argument_)
            if known is not None:
                return known
            value = self.env[argument_]
            if isinstance(value, Tensor):
                return _of_constant(argument_, value)
            argument_ = value
        exact = torch.tensor(float(argument_), dtype=torch.float64)
        return Range(exact, exact)

    def concrete(self, argument_: Any) -> Any:
        """What an argument is for this row."""
        return fx.node.map_arg(argument_, lambda node: self.env[node])


def _of_constant(node: fx.Node, value: Tensor) -> Range:
    """A parameter is known; of what isn't floating-point a bool is 0 or 1, and an id anything."""
    if node.op == "get_attr":
        exact = value.double()
        return Range(exact, exact)
    if value.dtype is torch.bool:
        return Range(torch.zeros(value.shape).double(), torch.ones(value.shape).double())
    return _anything(value)


def _anything(value: Tensor) -> Range:
    high = torch.full(value.shape, _HUGE, dtype=torch.float64)
    return Range(-high, high)


def _settled(found: Range) -> Range:
    """The same with infinite ends, and those that aren't numbers, huge."""
    low = torch.nan_to_num(found.low, nan=-_HUGE).clamp(-_HUGE, _HUGE)
    high = torch.nan_to_num(found.high, nan=_HUGE).clamp(-_HUGE, _HUGE)
    return Range(low, high)


# --- rules ----------------------------------------------------------------------------------------

Rule = Callable[[_Tracker, fx.Node, Tensor], Range | None]


def _first(tracker: _Tracker, node: fx.Node) -> Range:
    known = tracker.of(node.args[0])
    assert isinstance(known, Range)
    return known


def _along(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """What moves values, or rises with them: the same of either end."""
    source = _first(tracker, node)
    if node.target is _aten.leaky_relu.default and float(argument(node, 1, "slope", 0.01)) < 0.0:
        return None
    rest = tracker.concrete(node.args[1:])
    kwargs = dict(tracker.concrete(dict(node.kwargs)))
    kwargs.pop("dtype", None)
    low = node.target(source.low, *rest, **kwargs)  # type: ignore[operator]
    high = node.target(source.high, *rest, **kwargs)  # type: ignore[operator]
    return Range(low, high)


def _copied(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    return _first(tracker, node)


def _piece(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    known = tracker.of(node.args[0])
    if not isinstance(known, list):
        return None
    found = known[int(node.args[1])]  # type: ignore[arg-type]
    return found if isinstance(found, Range) else None


def _joined(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    parts = [tracker.of(part) for part in node.args[0]]  # type: ignore[union-attr]
    ranges = [part for part in parts if isinstance(part, Range)]
    rest = tracker.concrete(node.args[1:])
    low = node.target([part.low for part in ranges], *rest, **node.kwargs)  # type: ignore[operator]
    high = node.target([p.high for p in ranges], *rest, **node.kwargs)  # type: ignore[operator]
    return Range(low, high)


def _looked_up(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """Any row of the table, column by column."""
    table = tracker.concrete(node.args[0])
    if table.dim() != 2 or len(table) == 0 or not _is_parameter(node.args[0]):
        return None
    # Of the table as it is: a copy of it in fp64 may not fit.
    low, high = (end.double().expand(value.shape) for end in (table.amin(0), table.amax(0)))
    return Range(low, high)


def _is_parameter(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _picked(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """Places of a value that ids may choose: those of parameters are known, others any."""
    source, index = _first(tracker, node), node.args[2]
    dim = int(node.args[1])  # type: ignore[arg-type]
    if _is_parameter(index):
        return _along(tracker, node, value)
    low, high = (
        node.target(end, dim, tracker.concrete(index))  # type: ignore[operator]
        for end in (
            source.low.amin(dim, True).expand_as(source.low),
            source.high.amax(dim, True).expand_as(source.high),
        )
    )
    return Range(low, high)


def _negated(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    source = _first(tracker, node)
    return Range(-source.high, -source.low)


def _size(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    source = _first(tracker, node)
    return _magnitude(source)


def _magnitude(source: Range) -> Range:
    high = torch.maximum(source.low.abs(), source.high.abs())
    inside = (source.low <= 0) & (source.high >= 0)
    low = torch.minimum(source.low.abs(), source.high.abs())
    return Range(torch.where(inside, torch.zeros_like(low), low), high)


def _dipping(least: float) -> Rule:
    """A function that rises but for a dip below zero, such as silu."""

    def rule(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
        source = _first(tracker, node)
        kwargs = dict(node.kwargs)
        ends = [node.target(end, **kwargs) for end in (source.low, source.high)]  # type: ignore[operator]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        return Range(torch.where(source.low < 0, low.clamp_max(least), low), high.clamp_min(0.0))

    return rule


def _between(low: float, high: float) -> Rule:
    """A function whose results are within fixed bounds, whatever it is given."""

    def rule(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
        lows = torch.full(value.shape, low, dtype=torch.float64)
        return Range(lows, torch.full(value.shape, high, dtype=torch.float64))

    return rule


def _two(tracker: _Tracker, node: fx.Node) -> tuple[Range, Range]:
    left, right = (tracker.of(a) for a in node.args[:2])
    assert isinstance(left, Range)
    assert isinstance(right, Range)
    return left, right


def _added(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    left, right = _two(tracker, node)
    times = float(argument(node, 2, "alpha") or 1.0)
    if gives(node, Values.SUBTRACT, Values.SUBTRACT_REVERSED):
        times = -times
    if gives(node, Values.SUBTRACT_REVERSED):
        left, right = right, left
    ends = (right.low * times, right.high * times)
    return Range(left.low + torch.minimum(*ends), left.high + torch.maximum(*ends))


def _multiplied(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    if node.args[0] is node.args[1]:
        return _squared(_first(tracker, node))
    return _product(*_two(tracker, node))


def _product(left: Range, right: Range) -> Range:
    ends = torch.stack(
        (
            left.low * right.low,
            left.low * right.high,
            left.high * right.low,
            left.high * right.high,
        )
    )
    return Range(ends.amin(0), ends.amax(0))


def _squared(source: Range) -> Range:
    size = _magnitude(source)
    return Range(size.low.square(), size.high.square())


def _power(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    source, exponent = _first(tracker, node), node.args[1]
    if exponent == 2:
        return _squared(source)
    if not isinstance(exponent, (int, float)) or exponent < 0 or float(source.low.min()) < 0.0:
        return None
    return Range(source.low**exponent, source.high**exponent)


def _quotient(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    left, right = _two(tracker, node)
    if bool(((right.low <= 0) & (right.high >= 0)).any()):
        return None
    return _product(left, Range(1.0 / right.high, 1.0 / right.low))


def _falling(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """A function that falls over positive numbers, such as a reciprocal."""
    source = _first(tracker, node)
    if float(source.low.min()) <= 0.0:
        return None
    low, high = node.target(source.high), node.target(source.low)  # type: ignore[operator]
    return Range(low, high)


def _larger(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    left, right = _two(tracker, node)
    return Range(node.target(left.low, right.low), node.target(left.high, right.high))  # type: ignore[operator]


def _either(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """One of two, a condition tells which."""
    first, second = (tracker.of(a) for a in node.args[1:3])
    assert isinstance(first, Range)
    assert isinstance(second, Range)
    low = torch.minimum(first.low, second.low)
    high = torch.maximum(first.high, second.high)
    return Range(low.expand(value.shape), high.expand(value.shape))


def _filled(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    source, fill = _first(tracker, node), tracker.of(node.args[2])
    assert isinstance(fill, Range)
    return Range(torch.minimum(source.low, fill.low), torch.maximum(source.high, fill.high))


def _repeated(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """Constants in the shape of something else."""
    if not isinstance(node.args[-1], (int, float)):
        return None
    exact = value.double()
    return Range(exact, exact)


def _linear(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    source, weight = _two(tracker, node)
    found = _matrix(source, Range(weight.low.mT, weight.high.mT))
    bias = argument(node, 2, "bias")
    if found is None or bias is None:
        return found
    own = tracker.of(bias)
    assert isinstance(own, Range)
    return Range(found.low + own.low, found.high + own.high)


def _matmul(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    left, right = _two(tracker, node)
    if left.low.dim() < 2 or right.low.dim() < 2:
        return None
    return _matrix(left, right)


def _matrix(left: Range, right: Range) -> Range | None:
    """A product of matrices; None where neither is known and one is unbounded."""
    if right.low is right.high or bool((right.low == right.high).all()):
        above, below = right.low.clamp_min(0.0), right.low.clamp_max(0.0)
        return Range(left.low @ above + left.high @ below, left.high @ above + left.low @ below)
    if bool((left.low == left.high).all()):
        found = _matrix(_transposed(right), _transposed(left))
        assert found is not None
        return _transposed(found)
    if not all(map(_bounded, (left, right))):
        return None
    # The product of the middles, give or take what the halves of the ranges add.
    (middle_left, half_left), (middle_right, half_right) = _middle(left), _middle(right)
    middle = middle_left @ middle_right
    half = half_left @ (middle_right.abs() + half_right) + middle_left.abs() @ half_right
    return Range(middle - half, middle + half)


def _transposed(source: Range) -> Range:
    return Range(source.low.mT, source.high.mT)


def _bounded(source: Range) -> bool:
    return all(abs(end) < float("inf") for end in source.ends)


def _middle(source: Range) -> tuple[Tensor, Tensor]:
    return (source.low + source.high) / 2.0, (source.high - source.low) / 2.0


def _summed(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """A sum over a number of terms that isn't fixed bounds nothing."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    dims = argument(node, 1, "dim")
    over = range(len(shape)) if not dims else [dims] if isinstance(dims, int) else dims
    if any(not isinstance(shape[dim], int) for dim in over):
        return None
    return _along(tracker, node, value)


def _normed(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """One of n numbers is at most √(n − 1) of their standard deviations from their mean."""
    shape = node.args[1]
    assert isinstance(shape, (list, tuple))
    count = prod(shape)
    most = torch.full(value.shape, max(count - 1, 0) ** 0.5, dtype=torch.float64)
    return _affine(tracker, Range(-most, most), argument(node, 2, "w"), argument(node, 3, "b"))


def _root_normed(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """One of n numbers is at most √n of their root mean square."""
    shape = node.args[1]
    assert isinstance(shape, (list, tuple))
    most = torch.full(value.shape, prod(shape) ** 0.5, dtype=torch.float64)
    return _affine(tracker, Range(-most, most), argument(node, 2, "weight"), None)


def _affine(tracker: _Tracker, found: Range, weight: Any, bias: Any) -> Range:
    if weight is not None:
        scale = tracker.of(weight)
        assert isinstance(scale, Range)
        found = _product(found, scale)
    if bias is not None:
        shift = tracker.of(bias)
        assert isinstance(shift, Range)
        found = Range(found.low + shift.low, found.high + shift.high)
    return found


def _attended(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """A mean of the values, weighed."""
    values = tracker.of(node.args[2])
    assert isinstance(values, Range)
    low, high = values.low.amin(-2, True), values.high.amax(-2, True)
    # Where every key is masked the result is zero.
    zero = torch.zeros(())
    return Range(
        torch.minimum(low, zero.double()).expand(value.shape),
        torch.maximum(high, zero.double()).expand(value.shape),
    )


def _pairs(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """Dot products of pairs of rows."""
    source = _first(tracker, node)
    left, right = (tracker.concrete(a) for a in node.args[1:3])
    firsts = Range(source.low[:, left], source.high[:, left])
    seconds = Range(source.low[:, right], source.high[:, right])
    found = _product(firsts, seconds)
    alike = (left == right)[:, None]
    own = _squared(firsts)
    low, high = torch.where(alike, own.low, found.low), torch.where(alike, own.high, found.high)
    return Range(low.sum(-1), high.sum(-1))


def _length(tracker: _Tracker, node: fx.Node, value: Tensor) -> Range | None:
    """Lengths of vectors."""
    size = _magnitude(_first(tracker, node))
    rest = tracker.concrete(node.args[1:])
    low = node.target(size.low, *rest, **node.kwargs)  # type: ignore[operator]
    high = node.target(size.high, *rest, **node.kwargs)  # type: ignore[operator]
    return Range(low, high)


#: How far below zero they dip.
_DIPS: dict[Any, Rule] = {
    _aten.silu.default: _dipping(-0.2785),
    _aten.gelu.default: _dipping(-0.1701),
    _aten.mish.default: _dipping(-0.3089),
    _aten.hardswish.default: _dipping(-0.376),
}
_RULES: dict[Values, Rule] = {
    Values.SAME: _along,
    Values.RISING: _along,
    Values.ROUNDED: _along,
    Values.RECTIFIED: _along,
    Values.SIGN: _along,
    Values.CLAMPED: _along,
    Values.EXTREME: _along,
    Values.MEAN: _along,
    Values.CAST: _copied,
    Values.JOINED: _joined,
    Values.ADD: _added,
    Values.SUBTRACT: _added,
    Values.SUBTRACT_REVERSED: _added,
    Values.MULTIPLY: _multiplied,
    Values.PRODUCT: _matmul,
    Values.SUM: _summed,
    Values.LARGER: _larger,
    Values.FALLING: _falling,
    Values.WEIGHTS: _between(0.0, 1.0),
    Values.WAVE: _between(-1.0, 1.0),
    Values.LOOKED_UP: _looked_up,
    Values.PICKED: _picked,
    Values.NEGATED: _negated,
    Values.ABSOLUTE: _size,
    Values.DIVIDE: _quotient,
    Values.POWER: _power,
    Values.CHOSEN: _either,
    Values.FILLED: _filled,
    Values.CONSTANT_LIKE: _repeated,
    Values.LINEAR: _linear,
    Values.NORMED: _normed,
    Values.ROOT_NORMED: _root_normed,
    Values.ATTENDED: _attended,
    Values.LENGTH: _length,
    Values.PAIRS: _pairs,
}


def _rule(target: Any) -> Rule | None:
    """The rule of what a node calls; None where nothing is known of its values."""
    if target is getitem:
        return _piece
    traits = traits_of(target)
    if traits.move is Move.COPY:
        return _copied
    return _DIPS.get(target) or _RULES.get(traits.values)


def first_linears(program: Program, features: Sequence[str]) -> dict[fx.Node, tuple[str, ...]]:
    """The linears that some features reach before any other linear, and which of them.

    Args:
        program: In canonical form.
        features: Names of inputs. A result within fixed bounds, such as a sigmoid's, a clamp's or a
            norm's, no longer counts as theirs.
    """
    wanted, found = set(features), dict[fx.Node, tuple[str, ...]]()
    placeholders = program.graph.find_nodes(op="placeholder")
    reached: dict[fx.Node, dict[str, None]] = {
        node: {name: None}
        for node, name in zip(placeholders, program.signature.names, strict=True)
        if name in wanted
    }
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        names = {name: None for source in node.all_input_nodes for name in reached.get(source, ())}
        if not names:
            continue
        if has_plain_weight(node):
            if reached.get(node.args[0]):
                found[node] = tuple(reached[node.args[0]])
        elif not _levels(node):
            reached[node] = names
    return found


def _levels(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dtype is torch.bool:
        return True
    if node.target is _aten.clamp.default:
        ends = argument(node, 1, "min"), argument(node, 2, "max")
        return None not in ends
    return traits_of(node.target).level
