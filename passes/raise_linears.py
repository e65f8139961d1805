"""raise-linears: products with a parameter are linears, however they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class RaiseLinears(Pass):
    """Replaces ``x W``, ``addmm(b, x, W)`` and ``W x`` of a column x by a linear.

    Public code writes a linear as a matmul with a parameter on the right, a tensordot, an einsum,
    or as a product of a matrix and a column ``[B, K, 1]``, as the cross layers of deepctr do. A
    linear is what other passes merge, fold and place formats on.

    Exact because: both are the same sums.
    Pays because: a runtime multiplies columns one by one. 256 x 1027 by 512 columns, one thread of
    ONNX Runtime: 20 ms as columns, 2 ms as a linear.
    Requires: CANONICAL.
    Misses when: the parameter isn't a matrix, or what addmm adds isn't a parameter per column.
    """

    name: ClassVar[str] = "raise-linears"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rules."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        raised = apply_rules((_Product(), _Column()), rw, missed)
        if raised:
            ctx.applied(f"wrote {raised} products with parameters as linears")


class _Product(Rule):
    """Replaces x W and addmm(b, x, W) by a linear."""

    roots = (_aten.mm.default, _aten.matmul.default, _aten.addmm.default, _aten.bmm.default)

    def match(self, node: fx.Node) -> Any:
        added = is_op(node, _aten.addmm.default)
        if node.kwargs or len(node.args) != 2 + added:
            return None
        x, weight = node.args[-2:]
        if is_op(node, _aten.bmm.default) and len(shape_of(weight)) == 3:
            return self._unbatched(node, x, weight)
        if not isinstance(x, fx.Node) or x.op == "get_attr" or len(shape_of(x)) < 2:
            return None
        if parameter_name(weight) is None:
            return None
        if len(shape_of(weight)) != 2:
            return Miss("its parameter isn't a matrix", (node,))
        bias = node.args[0] if added else None
        if bias is not None and not _is_bias(bias, weight):
            return Miss("what it adds isn't a bias", (node,))
        return x, weight, bias

    def _unbatched(self, node: fx.Node, x: Any, weight: Any) -> Any:
        """A product of one batch, as einsum and tensordot make it: ``bmm(x[None], W[None])``."""
        if parameter_name(weight) is None:
            return None
        if shape_of(weight)[0] != 1 or shape_of(x)[0] != 1:
            return Miss("its parameter isn't a matrix", (node,))
        return x, weight, None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        x, weight, bias = found
        value = rw.program.tensor(str(weight.target))
        value = value.squeeze(0) if value.dim() == 3 else value
        name = str(weight.target).replace(".", "_")
        own = rw.parameter(f"{name}_turned", value.T.contiguous())
        return rw.emit(_aten.linear.default, x, own, *([] if bias is None else [bias]), like=node)


def _is_bias(added: Any, weight: Any) -> bool:
    return parameter_name(added) is not None and shape_of(added) == shape_of(weight)[1:]


class _Column(Rule):
    """Replaces W x, x a column, by a linear of the column as a row."""

    roots = (_aten.matmul.default,)

    def match(self, node: fx.Node) -> Any:
        weight, x = node.args
        if parameter_name(weight) is None or len(shape_of(weight)) != 2:
            return None
        if not isinstance(x, fx.Node) or x.op == "get_attr" or len(shape_of(x)) < 3:
            return None
        return (x, weight) if shape_of(x)[-1] == 1 and shape_of(weight)[0] != 1 else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        x, weight = found
        last = len(shape_of(x)) - 1
        row = rw.emit(_aten.squeeze.dims, x, [last], like=node)
        made = rw.emit(_aten.linear.default, row, weight, like=node)
        return rw.emit(_aten.unsqueeze.default, made, last, like=node)
