"""The sites a number format can be placed on, and what real rows look like there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.pattern import argument, is_op, parameter_name, shape_of
from ..ir.program import Features, Program

_aten = torch.ops.aten


def has_plain_weight(node: Any) -> bool:
    """Whether ``node`` is a linear whose weight ``[N, K]`` is a parameter."""
    if not is_op(node, _aten.linear.default) or parameter_name(node.args[1]) is None:
        return False
    return len(shape_of(node.args[1])) == 2


def is_plain_linear(node: Any) -> bool:
    """Whether ``node`` is a linear whose weight ``[N, K]`` and bias, if any, are parameters."""
    if not has_plain_weight(node):
        return False
    bias = argument(node, 2, "bias")
    return bias is None or parameter_name(bias) is not None


def linear_sites(program: Program) -> list[fx.Node]:
    """Linears whose weight is a parameter that still has its own format, in graph order."""
    return [node for node in program.graph.nodes if has_plain_weight(node)]


def table_sites(program: Program) -> dict[str, list[fx.Node]]:
    """Per table, the lookups that read it; a table read by anything else is left out."""
    lookups, others = _readers(program)
    return {name: nodes for name, nodes in lookups.items() if name not in others}


def mixed_tables(program: Program) -> list[str]:
    """Tables that lookups read and something else reads too."""
    lookups, others = _readers(program)
    return [name for name in lookups if name in others]


def _readers(program: Program) -> tuple[dict[str, list[fx.Node]], set[str]]:
    """Per parameter, the lookups that read it; and the parameters that something else reads."""
    lookups: dict[str, list[fx.Node]] = {}
    others: set[str] = set()
    for node in program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        for user in node.users:
            reads = is_op(user, _aten.embedding.default) and user.args[0] is node
            if reads and user.args[1] is not node:
                lookups.setdefault(name, []).append(user)
            else:
                others.add(name)
    return lookups, others


def inputs_of(
    program: Program, sites: Sequence[fx.Node], batches: Sequence[Features], rows: int = 4096
) -> dict[fx.Node, Tensor]:
    """Real input rows ``[rows, K]`` of each linear, from calibration batches.

    Linears that read the same value share one tensor.
    """
    keep = {site.args[0] for site in sites}
    recorder = _Recorder(program, {node for node in keep if isinstance(node, fx.Node)}, rows)
    with torch.no_grad():
        for batch in batches:
            recorder.run(*program.ordered(batch))
    found = {node: torch.cat(parts) for node, parts in recorder.kept.items() if parts}
    sources = {site: source for site in sites if isinstance(source := site.args[0], fx.Node)}
    return {site: found[source] for site, source in sources.items() if source in found}


def rows_read(
    program: Program, lookups: Sequence[fx.Node], batches: Sequence[Features]
) -> dict[fx.Node, Tensor]:
    """Which rows of its table each lookup reads on calibration batches, each once."""
    recorder = _IdRecorder(
        program, {node for n in lookups if isinstance(node := n.args[1], fx.Node)}
    )
    with torch.no_grad():
        for batch in batches:
            recorder.run(*program.ordered(batch))
    return {n: recorder.seen[n.args[1]] for n in lookups if n.args[1] in recorder.seen}  # type: ignore[index]


class _IdRecorder(fx.Interpreter):
    def __init__(self, program: Program, keep: set[fx.Node]) -> None:
        super().__init__(program.module)
        self.seen: dict[fx.Node, Tensor] = {
            node: torch.empty(0, dtype=torch.int64) for node in keep
        }

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.seen:
            self.seen[n] = torch.unique(torch.cat([self.seen[n], result.flatten().long()]))
        return result


class _Recorder(fx.Interpreter):
    def __init__(self, program: Program, keep: set[fx.Node], rows: int) -> None:
        super().__init__(program.module)
        self.rows = rows
        self.kept: dict[fx.Node, list[Tensor]] = {node: [] for node in keep}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        parts = self.kept.get(n)
        if parts is not None and isinstance(result, Tensor):
            room = self.rows - sum(len(part) for part in parts)
            if room > 0:
                parts.append(result.reshape(-1, result.shape[-1])[:room].clone())
        return result
