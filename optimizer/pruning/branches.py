"""Branches: operands of a join or a sum that could be a constant, with all that only they need."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from ..analysis.cost import cost_of
from ..ir.pattern import is_op
from .dependence import Scene

_aten = torch.ops.aten
JOINS = (_aten.cat.default, _aten.stack.default)
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
#: Rows at which a branch's share of the cost is told, and the least share that is worth a try.
_BATCH, _SHARE = 256, 0.01


def branches(scene: Scene) -> Iterator[tuple[fx.Node, list[fx.Node], dict[fx.Node, Tensor]]]:
    """Per join, the operands that cost something alone, and per node of their cones who owns it.

    Yields:
        The join; its operands worth a try; and ``{node: [U, *shape]}`` where all of a node's
        elements go with the operand that alone needs it.
    """
    graph = scene.program.graph
    costs = {node: cost_of(node, _BATCH).flops for node in graph.nodes}
    least = _SHARE * sum(costs.values())
    for node in graph.nodes:
        operands = [n for n in node.all_input_nodes if _is_branch(scene, n, node)]
        if not is_op(node, *JOINS, *_SUMS) or len(node.all_input_nodes) < 2:
            continue
        cones = {operand: _cone(operand, node) for operand in operands}
        worth = [o for o in operands if sum(costs[n] for n in cones[o]) > least]
        worth = worth[:-1] if len(worth) == len(node.all_input_nodes) else worth
        if worth:
            yield node, worth, _owned(scene, worth, cones)


def _is_branch(scene: Scene, operand: fx.Node, join: fx.Node) -> bool:
    value = scene.row.values[operand]
    return (
        operand.op == "call_function"
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and list(operand.users) == [join]
        and sum(n is operand for n in _listed(join)) == 1
        and not scene.frozen(operand)
        and _batch_first(operand)
    )


def _listed(join: fx.Node) -> list[object]:
    return list(join.args[0]) if is_op(join, *JOINS) else list(join.args[:2])  # type: ignore[arg-type]


def _batch_first(node: fx.Node) -> bool:
    """Whether the first dimension is the batch, and nothing else is dynamic."""
    shape = node.meta["val"].shape
    dynamic = [d for d, size in enumerate(shape) if not isinstance(size, int)]
    return dynamic == [0] and str(shape[0]).isidentifier()


def _cone(operand: fx.Node, join: fx.Node) -> set[fx.Node]:
    """The operand, and whatever is computed for it alone."""
    cone = {operand}
    order = list(operand.graph.nodes)
    for node in reversed(order[: order.index(operand)]):
        if node.op == "call_function" and node.users and set(node.users) <= cone:
            cone.add(node)
    return cone


def _owned(
    scene: Scene, operands: list[fx.Node], cones: dict[fx.Node, set[fx.Node]]
) -> dict[fx.Node, Tensor]:
    owned: dict[fx.Node, Tensor] = {}
    for unit, operand in enumerate(operands):
        for node in cones[operand]:
            shape = scene.row.shape(node)
            if shape:
                gone = torch.zeros((len(operands), *shape), dtype=torch.bool)
                gone[unit] = True
                owned[node] = gone
    return owned


#: What a whole branch may go from, a constant taking its place.
REPLACED_IN = (*JOINS, _aten.add.Tensor, _aten.sub.Tensor)
