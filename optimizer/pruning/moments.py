"""What the inputs of linears, normalizations, joins and sums are like, to make up for what goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..ir.pattern import is_op
from ..ir.program import Features, Program
from .branches import REPLACED_IN

_aten = torch.ops.aten


@dataclass(frozen=True)
class Moments:
    """What the inputs of a linear or a normalization are like.

    Attributes:
        mean: ``[K]`` float64.
        covariance: ``[K, K]`` float64; None to make up by the mean alone.
    """

    mean: Tensor
    covariance: Tensor | None = None


def input_moments(program: Program, batches: Sequence[Features]) -> dict[str, Moments]:
    """The moments of every linear's and normalization's input, by the node's name.

    And of every operand of a join or a sum, element by element, by the operand's name.
    """
    recorder = _Sums(program)
    with torch.no_grad():
        for batch in batches:
            recorder.run(*program.ordered(batch))
    found = {}
    for name, (count, total) in recorder.totals.items():
        mean = total / count
        squares = recorder.squares.get(name)
        around = None if squares is None else squares / count - torch.outer(mean, mean)
        found[name] = Moments(mean, around)
    return found


class _Sums(fx.Interpreter):
    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.totals: dict[str, tuple[int, Tensor]] = {}
        self.squares: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        if is_op(n, _aten.linear.default, _aten.layer_norm.default):
            assert isinstance(n.args[0], fx.Node)
            rows = self._add(n.name, self.env[n.args[0]].flatten(0, -2))
            if is_op(n, _aten.linear.default):
                squares = rows.T @ rows
                self.squares[n.name] = self.squares.get(n.name, torch.zeros_like(squares)) + squares
        elif is_op(n, *REPLACED_IN):
            for operand in n.all_input_nodes:
                value = self.env[operand]
                if operand.op == "call_function" and value.is_floating_point():
                    self._add(f"{operand.name} as a branch", value)
        return super().run_node(n)

    def _add(self, name: str, values: Tensor) -> Tensor:
        wide = values.double()
        count, total = self.totals.get(name, (0, torch.zeros_like(wide[0])))
        self.totals[name] = count + len(wide), total + wide.sum(0)
        return wide
