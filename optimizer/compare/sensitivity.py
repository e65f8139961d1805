"""How far rounding alone may move a score, row by row.

Method: Monte-Carlo arithmetic (Parker 1997; Vignes's CESTAC before it). A program is run several
times, and every operator whose result depends on how it is computed has it moved at random by a few
steps of its format. The scores of a well-conditioned row stay put; a difference of large numbers, a
code that is nearly the next one, or a number that is nearly a bucket's boundary show as spread.
Whatever is computed alike everywhere (a sum of two numbers, a lookup, a comparison) isn't moved, so
that a boundary hit exactly stays one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import traits_of
from ..ir.program import Program, with_defaults
from ..ir.traits import Rounding

#: Runs; and how many steps of a format an operator's result is moved by, at most.
_RUNS, _STEPS = 8, 8.0


@dataclass(frozen=True)
class Spread:
    """Where rounding may take one output.

    Attributes:
        reach: How far from the program's own result, ``[n, …]`` float64.
        unsure: Where it is now finite and now not, ``[n, …]``.
    """

    reach: Tensor
    unsure: Tensor


def spreads(
    program: Program, features: Mapping[str, Tensor], *, reordered: bool = False, seed: int = 0
) -> dict[str, Spread]:
    """Where rounding may take each output, by its name.

    Args:
        program: What is run.
        features: The rows.
        reordered: Whether sums and products of single numbers may be computed in another order as
            well, as passes do.
        seed: For the moves.
    """
    given = with_defaults(program.signature, features)
    inputs = [given[name] for name in program.signature.names]
    own = program.run(features)
    found = {
        name: Spread(torch.zeros(v.shape, dtype=torch.float64), torch.zeros(v.shape).bool())
        for name, v in own.items()
    }
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_RUNS):
        with torch.no_grad():
            results = _Shaken(program.module, generator, reordered=reordered).run(*inputs)
        for name, value in zip(program.signature.outputs, results, strict=True):
            here, there = own[name].double(), value.double()
            both = here.isfinite() & there.isfinite()
            apart = (there - here).abs().where(both, torch.zeros(()).double())
            same = (here == there) | (here.isnan() & there.isnan())
            last = found[name]
            found[name] = Spread(torch.maximum(last.reach, apart), last.unsure | (~both & ~same))
    return found


class _Shaken(fx.Interpreter):
    """Runs a graph with what rounding decides moved at random."""

    def __init__(
        self, module: fx.GraphModule, generator: torch.Generator, *, reordered: bool
    ) -> None:
        super().__init__(module)
        self._generator = generator
        self._reordered = reordered
        self._decides = False

    def run_node(self, n: fx.Node) -> Any:
        # A comparison, a bucket or a cast to integers says the same of the same numbers anywhere.
        made = n.meta.get("val")
        self._decides = isinstance(made, Tensor) and not made.is_floating_point()
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        # What IEEE 754 says every bit of, all runtimes agree on.
        rounding = traits_of(target).rounding
        once = rounding is Rounding.ONCE
        exact = rounding is Rounding.NONE or (once and not self._reordered)
        exact = exact or self._decides or kwargs.get("rounding_mode") is not None
        if exact:
            return super().call_function(target, args, kwargs)
        if not once:
            # What is summed over is moved before: terms that cancel show only then.
            args = tuple(fx.node.map_aggregate(arg, self._moved) for arg in args)
        result = super().call_function(target, args, kwargs)
        return fx.node.map_aggregate(result, self._moved)

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return value
        if value.dtype.itemsize < 2:
            return value  # codes, not numbers
        step = _STEPS * torch.finfo(value.dtype).eps
        wide = value.float() if value.dtype.itemsize < 4 else value
        noise = torch.rand(value.shape, generator=self._generator, dtype=wide.dtype)
        return (wide * (1.0 + step * (2.0 * noise - 1.0))).to(value.dtype)
