"""compose-linears: a linear of a linear is one linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import argument, dtype_of, is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class ComposeLinears(Pass):
    """Replaces ``V (W x + b) + c`` by ``(V W) x + (V b + c)``.

    Exact because: the product is associative.
    Pays because: it is only done where V W has no more weights than V and W, and so as many
    multiplications fewer. One thread of ONNX Runtime, batch 1, 64, 512 (inputs, between, outputs:
    us apart, composed): 512, 512, 64: 24, 255, 2020; 10, 37, 228. 256, 64, 32: 9, 25, 135; 8, 16,
    67. 64, 64, 64: 8, 18, 77; 8, 14, 46.
    Requires: CANONICAL.
    Misses when: the inner linear has other users, or V W would have more weights, as where the
    matrix was split into two of low rank.
    """

    name: ClassVar[str] = "compose-linears"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Composes in graph order, so that chains collapse."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        composed = apply_rules((_LinearOfLinear(),), rw, missed)
        if composed:
            ctx.applied(f"composed {composed} linears with the linears before them")


class _LinearOfLinear(Rule):
    """Replaces a linear of a linear, with a reshape that keeps rows in between or without."""

    roots = (_aten.linear.default,)

    def match(self, node: fx.Node) -> Any:
        inner: Any = node.args[0]
        if (
            is_op(inner, _aten.reshape.default)
            and shape_of(inner)[-1] == shape_of(inner.args[0])[-1]
        ):
            inner = inner.args[0]
        if not is_plain_linear(node) or not is_plain_linear(inner):
            return None
        between = node.args[0]
        if len(inner.users) > 1 or len(between.users) > 1:  # type: ignore[union-attr]
            return Miss("the linear before it has other users", (node,))
        middle, inputs = (int(size) for size in shape_of(inner.args[1]))
        outputs = int(shape_of(node.args[1])[0])
        if inputs * outputs > middle * (inputs + outputs):
            return Miss("composed they would have more weights", (inner, node))
        return inner

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        weights = [rw.program.tensor(str(n.args[1].target)) for n in (found, node)]  # type: ignore[union-attr]
        inner, outer = (weight.double() for weight in weights)
        biases = [argument(n, 2, "bias") for n in (found, node)]
        name = str(node.args[1].target).replace(".", "_")  # type: ignore[union-attr]
        dtype = dtype_of(node)
        arguments = [found.args[0], rw.parameter(f"{name}_composed", (outer @ inner).to(dtype))]
        if any(bias is not None for bias in biases):
            bias = outer.new_zeros(len(outer))
            if biases[0] is not None:
                bias = bias + outer @ rw.program.tensor(str(biases[0].target)).double()
            if biases[1] is not None:
                bias = bias + rw.program.tensor(str(biases[1].target)).double()
            arguments.append(rw.parameter(f"{name}_composed_bias", bias.to(dtype)))
        made = rw.emit(_aten.linear.default, *arguments, like=(found, node))
        return rw.arrange(made, range(len(shape_of(made))), node)
