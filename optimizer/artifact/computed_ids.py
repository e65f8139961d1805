"""The program of the ids that lookups take behind arithmetic, built beside the artifact."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx

from ..errors import UnsupportedError
from ..ir.facts import site_of
from ..ir.ops import BOUNDED
from ..ir.program import Program
from ..ir.rewrite import Rewriter
from ..registry import backend
from ..requests.ahead import with_outputs
from ..target import Target
from .refusal import CHECKED_BY, CHECKS, Check

#: Programs with larger parameters aren't kept for the sake of a message.
_MOST_BYTES = 2**20


_aten = torch.ops.aten


def checks_of(program: Program) -> tuple[Program | None, tuple[Check, ...], tuple[str, ...]]:
    """A program of the ids that ``rankc.bounded`` bounds, if there are any.

    Returns:
        The program; what is to be checked of its outputs; and the sites whose ids are left out,
        since they are computed of too much.
    """
    result = program.clone()
    rw = Rewriter(result, CHECKS)
    bounded = result.graph.find_nodes(op="call_function", target=BOUNDED.op)
    names: dict[fx.Node, str] = {}
    checks, left_out = [], []
    for node in bounded:
        ids, rows = node.args[0], node.args[1]
        above = _above(ids)
        if sum(one.meta["val"].nbytes for one in above if one.op == "get_attr") > _MOST_BYTES:
            left_out.append(site_of(node))
            continue
        inputs = tuple(str(one.target) for one in above if one.op == "placeholder")
        if not inputs:
            continue  # constants, which were looked up when the model was captured
        names.setdefault(ids, f"{CHECKS}_{len(names)}")
        checks.append(Check(names[ids], site_of(node), max(rows), inputs))
    if not names:
        return None, (), tuple(left_out)
    for node in bounded:  # so that what is computed of ids that are beyond can be had
        with rw.before(node):
            rows = max(node.args[1])
            inside = rw.emit(_aten.clamp.default, node.args[0], 0, rows - 1, like=node)
        rw.replace(node, inside)
    (output,) = result.graph.find_nodes(op="output")
    output.args = (tuple(names),)
    return with_outputs(result, {}, tuple(names.values())), tuple(checks), tuple(left_out)


def _above(node: fx.Node) -> list[fx.Node]:
    """The node and all that it is computed of, in graph order."""
    found, pending = {node}, [node]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                pending.append(source)
    return [one for one in node.graph.nodes if one in found]


def built_checks(
    program: Program, name: str, target: Target, folder: Path
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Writes the program that computes ids behind arithmetic beside what a backend built.

    Returns:
        What is to be checked of its outputs, and the files.

    Raises:
        UnsupportedError: The backend refuses nothing, and ids can't be checked before it runs.
    """
    checked, checks, left_out = checks_of(program)
    if left_out and not backend(name).refuses:
        raise UnsupportedError(
            f"{name} reads whatever lies behind a table, and ids of {', '.join(left_out)} can't "
            "be checked before it runs: they are computed of too much."
        )
    if checked is None:
        return (), ()
    built = backend(CHECKED_BY).build_beside(CHECKS, checked, target, folder, {})
    return checks, tuple(built.files)
