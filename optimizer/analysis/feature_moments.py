"""What batch norms have seen of a model's features: their means and standard deviations.

A BatchNorm that reads a feature as it is holds, in its running statistics, what training rows were
like. That is data, kept by the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import moves
from ..ir.pattern import is_op, parameter_name
from ..ir.program import Features, Program
from ..ir.traits import Move

_aten = torch.ops.aten
_NORM = _aten._native_batch_norm_legit_no_training.default
#: Operators that move values and don't change them.
_MOVES = Move.VIEW | Move.PART | Move.JOIN | Move.COPY | Move.CAST
#: What stands for a value that is no feature as it is.
_OTHER = -1.0


@dataclass(frozen=True)
class Moments:
    """What one feature's values were like in training.

    Attributes:
        mean: float64, shaped like a row of the feature.
        deviation: The same.
    """

    mean: Tensor
    deviation: Tensor


def feature_moments(program: Program, rows: Features, names: Sequence[str]) -> dict[str, Moments]:
    """The moments of features that batch norms read as they are, every value of theirs.

    Args:
        program: As captured, before norms are folded.
        rows: One row, any.
        names: Features that are looked for.
    """
    tracker = _Places(program, rows, names)
    with torch.no_grad():
        tracker.run(*(rows[name] for name in program.signature.names))
    found = {}
    for name, (start, count) in tracker.spans.items():
        mean, variance = (values[start : start + count] for values in tracker.seen)
        if count and not bool(mean.isnan().any()):
            shape = rows[name].shape[1:]
            found[name] = Moments(mean.reshape(shape), variance.sqrt().reshape(shape))
    return found


class _Places(fx.Interpreter):
    """Runs one row, and beside it where each value that is a feature's comes from."""

    def __init__(self, program: Program, rows: Features, names: Sequence[str]) -> None:
        super().__init__(program.module)
        self._program = program
        self._places: dict[fx.Node, Tensor] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        start = 0
        holders = program.graph.find_nodes(op="placeholder")
        for node, name in zip(holders, program.signature.names, strict=True):
            if name not in names:
                continue
            count = rows[name].numel()
            self.spans[name] = start, count
            places = torch.arange(start, start + count, dtype=torch.float64)
            self._places[node] = places.reshape(rows[name].shape)
            start += count
        self.seen = torch.full((2, start), float("nan"), dtype=torch.float64)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function":
            return value
        if moves(n, _MOVES) and any(source in self._places for source in n.all_input_nodes):
            self._move(n)
        elif is_op(n, _NORM) and n.args[0] in self._places:
            self._learn(n)
        return value

    def _move(self, node: fx.Node) -> None:
        def placed(source: fx.Node) -> Any:
            value = self.env[source]
            if not isinstance(value, Tensor):
                return value
            found = self._places.get(source)
            return torch.full(value.shape, _OTHER).double() if found is None else found

        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("dtype", "memory_format")}
        args = fx.node.map_arg(node.args, placed)
        self._places[node] = node.target(*args, **fx.node.map_arg(kwargs, placed))  # type: ignore[operator]

    def _learn(self, norm: fx.Node) -> None:
        names = [parameter_name(a) for a in norm.args[3:5]]
        if None in names:
            return
        moments = [self._program.tensor(str(name)).double() for name in names]
        places = self._places[norm.args[0]].movedim(1, -1)  # type: ignore[index]
        flat = places.reshape(-1, places.shape[-1]).long()
        for channel, column in enumerate(flat.T):
            kept = column[column >= 0]
            for row, values in enumerate(moments):
                self.seen[row, kept] = values[channel]


def as_seen(
    moments: Mapping[str, Moments], name: str, like: Tensor, generator: torch.Generator
) -> Tensor:
    """Normal values with the mean and the deviation of a feature, in the shape of ``like``."""
    found = moments[name]
    normal = torch.randn(like.shape, generator=generator).double()
    return (found.mean + normal * found.deviation).to(like.dtype)
