"""reassociate-fm: a product of all pairs that is projected right away is never made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.analysis.interactions import sum_square_identities
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext
from ..optimizer.report.records import Kind

_aten = torch.ops.aten
_PRODUCTS = (_aten.bmm.default, _aten.matmul.default)


@dataclass(frozen=True)
class ReassociateFm(Pass):
    """Replaces ``(X Xᵀ) Y`` by ``X (Yᵀ X)ᵀ``, Y a parameter or a value.

    Method: Wukong's optimized FM (2403.02545, section 3.6): n²d + n²k multiplications become 2ndk.
    Exact because: the product is associative. The transpose in between is part of ONNX Runtime's
    product, where ``X (Xᵀ Y)`` would copy X.
    Requires: CANONICAL.
    Misses when: X Xᵀ has other users, or it doesn't pay. Kernels fill columns in multiples of
    ``tile``, so that counts decide with n and k rounded up to it where they are columns. Measured
    on one thread of ONNX Runtime, batch 512 (n, d, k: ratio of counts, speedup): 64, 64, 16: 2.5,
    1.88; 24, 16, 4: 2.8, 1.25; 32, 64, 8: 1.7, 1.22; 32, 128, 8: 1.5, 1.10; 64, 128, 24: 1.4, 0.87
    (1.28 at batch 64); 27, 128, 24: 0.7, 0.51. Small products lose: 16, 16, 2: 1.8, 0.78.
    """

    name: ClassVar[str] = "reassociate-fm"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    tile: int = 16
    min_ratio: float = 1.5
    min_saved: int = 8192

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rule."""
        for node in sum_square_identities(program):
            ctx.remark(Kind.ANALYSIS, "a factorization machine as the square of a sum", node)
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        changed = apply_rules((_ProjectedPairs(self),), rw, missed)
        if changed:
            ctx.applied(f"projected {changed} factorization machines before their pairs are made")

    def pays(self, n: int, d: int, k: int) -> bool:
        """Whether the multiplications per example, in whole tiles, are enough fewer."""
        wide_n, wide_d, wide_k = (-(-size // self.tile) * self.tile for size in (n, d, k))
        before = n * wide_n * d + n * wide_k * n
        after = k * wide_d * n + n * wide_k * d
        return before >= self.min_ratio * after and before - after >= self.min_saved


class _ProjectedPairs(Rule):
    """Replaces (X Xᵀ) Y by X (Yᵀ X)ᵀ."""

    roots = _PRODUCTS

    def __init__(self, options: ReassociateFm) -> None:
        self.options = options

    def match(self, node: fx.Node) -> Any:
        pairs, projection = node.args
        if not is_op(pairs, *_PRODUCTS) or pairs is projection:
            return None
        assert isinstance(pairs, fx.Node)
        x, other = pairs.args
        if not isinstance(x, fx.Node) or not _is_transposed(other, x) or len(shape_of(node)) != 3:
            return None
        n, d, k = *shape_of(x)[1:], shape_of(node)[2]
        if not (isinstance(n, int) and isinstance(d, int) and isinstance(k, int)):
            return None
        if len(shape_of(projection)) not in (2, 3):
            return None
        if len(pairs.users) > 1:
            return Miss("the product of all pairs has other users", (pairs,))
        if not self.options.pays(n, d, k):
            return Miss("projecting first wouldn't be faster", (node,))
        return x, projection

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        x, projection = found
        last = len(shape_of(projection)) - 1
        turned = rw.emit(_aten.transpose.int, projection, last - 1, last, like=node)
        small = rw.emit(_aten.matmul.default, turned, x, like=node)
        back = rw.emit(_aten.transpose.int, small, 1, 2, like=node)
        return rw.emit(_aten.matmul.default, x, back, like=node)


def _is_transposed(node: Any, x: fx.Node) -> bool:
    """Whether ``node`` is x with its last two of three dimensions exchanged."""
    if len(shape_of(x)) != 3:
        return False
    if is_op(node, _aten.transpose.int):
        return node.args[0] is x and {dim % 3 for dim in node.args[1:3]} == {1, 2}
    if is_op(node, _aten.permute.default):
        return node.args[0] is x and [dim % 3 for dim in node.args[1]] == [0, 2, 1]
    return False
