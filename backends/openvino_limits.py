"""What OpenVINO's CPU plug-in computes otherwise than PyTorch, and therefore isn't given.

The conformance suite found each of these (``docs/operators.md``). The plug-in has no integers of 64
bits: it computes them in 32, so that a time in milliseconds or a hash is another number. Whatever
can't be shown to fit is refused; a feature fits by its tables, or by bounds in the signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..optimizer.ir import Program
from ..optimizer.ir.bounds import feature_ranges
from ..optimizer.ir.integers import IntegerRanges, Range
from ..optimizer.ir.operators import gives
from ..optimizer.ir.pattern import argument, is_op
from ..optimizer.ir.traits import Values

_aten = torch.ops.aten
_LEAST, _LARGEST = -(2**31), 2**31 - 1
_REST = "OpenVINO's remainder of floats isn't exact: 0.5 // 0.1 is 5 there, and 4 in PyTorch"
_SORTED = "OpenVINO's TopK gives other values, in another order"
_NARROWED = {
    torch.float16: "OpenVINO leaves a cast to float16 out",
    torch.bfloat16: "OpenVINO rounds a cast to bfloat16 towards zero",
}
_MISH = "OpenVINO's mish of -20 is 0.00004, and -0.00000004 in PyTorch"
_MASKED = "OpenVINO's attention is NaN where a row's mask leaves nothing; PyTorch's is 0"

#: Of any type.
REFUSED: Mapping[Any, str] = {
    _aten.argsort.stable: _SORTED,
    **dict.fromkeys(
        (
            *(_aten.bitwise_right_shift.Tensor, _aten.bitwise_right_shift.Tensor_Scalar),
            *(_aten.__rshift__.Scalar, _aten.__rshift__.Tensor),
        ),
        "OpenVINO shifts negative integers as if they were large ones",
    ),
}
#: Of floats.
_INEXACT = (Values.REMAINDER, Values.FMOD, Values.FLOOR_DIVIDE)


def refusal(node: fx.Node) -> str | None:
    """Why OpenVINO isn't given a node; None if it may be."""
    value = node.meta.get("val")
    real = isinstance(value, Tensor) and value.dtype.is_floating_point
    if node.target in REFUSED:
        return REFUSED[node.target]
    if gives(node, Values.SORTED):
        return _SORTED
    if _has_none(node):
        return "OpenVINO can't open a logarithm of integers, or a sum of none"
    if real and (gives(node, *_INEXACT) or _rounds_down(node)):
        return _REST
    if node.target is _aten._to_copy.default and isinstance(value, Tensor):
        return _NARROWED.get(value.dtype)
    if isinstance(value, Tensor) and value.dtype is torch.float64:
        return "OpenVINO computes float64 in float32"
    if node.target is _aten.scaled_dot_product_attention.default:
        return _MASKED if argument(node, 3, "attn_mask") is not None else None
    if node.target is _aten.tanh.default and is_op(node.args[0], _aten.softplus.default):
        return _MISH
    return _MISH if node.target is _aten.mish.default else None


def _has_none(node: fx.Node) -> bool:
    """Whether it is a logarithm of integers, or a sum of no integers: no form can be opened."""
    source = node.args[0] if node.args else None
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not isinstance(value, Tensor) or value.dtype.is_floating_point:
        return False
    if node.target is _aten.log.default:
        return True
    return node.target is _aten.sum.dim_IntList and any(size == 0 for size in value.shape[1:])


def _rounds_down(node: fx.Node) -> bool:
    if not is_op(node, _aten.div.Tensor_mode, _aten.div.Scalar_mode):
        return False
    return bool(argument(node, 2, "rounding_mode") == "floor")


def wide(program: Program) -> Iterator[tuple[fx.Node, str]]:
    """Integers that may need more than 32 bits, the first of each chain, and why.

    A sum over the batch or a position in it fits: no batch has two thousand million rows.
    """
    known = dict(feature_ranges(program))
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), torch.SymInt):
            known[node] = Range(0, _LARGEST)
    ranges = IntegerRanges(known)
    beyond: set[fx.Node] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype is not torch.int64:
            continue
        found = ranges.of(node)
        if found is None or found.within(_LEAST, _LARGEST):
            continue
        beyond.add(node)
        if node.op == "call_function" and not beyond & set(node.all_input_nodes):
            yield node, "OpenVINO computes integers in 32 bits, and these may need more"
    for node in program.graph.find_nodes(op="placeholder"):
        if node in beyond:
            for user in node.users:
                yield (
                    user,
                    (
                        "OpenVINO computes integers in 32 bits, and nothing bounds "
                        f"{node.target!r}; with_feature({node.target!r}, bounds=(least, most)) of "
                        "the signature does"
                    ),
                )
