"""Rules: what to look for, when it is legal, and what to put there instead.

Rules are tried where the graph is visited, never collected first: an earlier rewrite may have
erased what a later match refers to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from .rewrite import Rewriter

_aten = torch.ops.aten
#: Operators that compute every element of their result from one of their only tensor.
UNARY = frozenset(
    {
        _aten.abs.default,
        _aten.elu.default,
        _aten.exp.default,
        _aten.gelu.default,
        _aten.leaky_relu.default,
        _aten.neg.default,
        _aten.relu.default,
        _aten.sigmoid.default,
        _aten.silu.default,
        _aten.tanh.default,
    }
)
#: Operators that do so from one of either operand, with broadcasting.
BINARY = (_aten.add.Tensor, _aten.div.Tensor, _aten.mul.Tensor, _aten.sub.Tensor)


@dataclass(frozen=True)
class Miss:
    """Why a rule that nearly applied didn't.

    Attributes:
        reason: A short sentence, the same for all misses of one kind.
        nodes: The culprits.
    """

    reason: str
    nodes: tuple[fx.Node, ...] = ()


class Rule(ABC):
    """One rewrite: ``Replaces A by B``."""

    #: The operators at which the rule is tried.
    roots: tuple[Any, ...]

    @abstractmethod
    def match(self, node: fx.Node) -> Any:
        """What the rewrite needs, None if ``node`` isn't the pattern, or a `Miss` if nearly."""

    @abstractmethod
    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        """Emits the replacement and returns it; None when the graph was edited in place."""


def apply_rules(
    rules: Sequence[Rule], rw: Rewriter, on_miss: Callable[[Rule, fx.Node, Miss], None]
) -> int:
    """Visits the graph once, trying every rule at every node; returns the number of rewrites."""
    applied = 0
    for node in list(rw.program.graph.nodes):
        if node.op != "call_function" or node.graph is not rw.program.graph or _is_erased(node):
            continue
        for rule in rules:
            if node.target not in rule.roots:
                continue
            found = rule.match(node)
            if found is None:
                continue
            if isinstance(found, Miss):
                on_miss(rule, node, found)
                continue
            if not rw.site(node):
                continue
            with rw.before(node):
                replacement = rule.rewrite(rw, node, found)
            if replacement is not None and replacement is not node:
                rw.replace(node, replacement)
            applied += 1
            break
    return applied


def _is_erased(node: fx.Node) -> bool:
    return bool(node._erased)


def is_op(value: Any, *targets: Any) -> bool:
    """Whether ``value`` is a call of one of ``targets``."""
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target in targets


def parameter_name(value: Any) -> str | None:
    """The parameter a node reads, or None if it is no parameter."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return str(value.target)
    return None


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument that may be positional, by keyword, or left out."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def shape_of(node: Any) -> tuple[int | torch.SymInt, ...]:
    """The node's shape; dynamic sizes are symbols."""
    return tuple(node.meta["val"].shape)


def dtype_of(node: Any) -> torch.dtype:
    """The node's dtype."""
    dtype = node.meta["val"].dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def static(size: int | torch.SymInt) -> int | None:
    """A size that is a number, or None if it is dynamic."""
    return size if isinstance(size, int) else None


def size_at(size: int | torch.SymInt, batch: int) -> float:
    """A size as a number: a dynamic one at ``batch`` rows, every symbol in it taken for them."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return batch if expression.is_Symbol else _number(expression, batch)


@cache
def _number(expression: Any, batch: int) -> float:
    return float(expression.subs(dict.fromkeys(expression.free_symbols, batch)))
