"""What is computed of each candidate alone, as a program of its own that is run ahead."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor, fx

from ..analysis.batch_axis import FIRST, row_places
from ..analysis.lineage import Lineage, lineage
from ..errors import SignatureError
from ..ir.facts import site_of
from ..ir.operators import moves
from ..ir.ops import REQUEST_BROADCAST
from ..ir.program import Program
from ..ir.rewrite import sweep
from ..ir.signature import BATCH, Feature, FeatureKind, Signature
from ..ir.structure import Branch, Leaf, Structure
from ..ir.traits import Move
from ..ir.verifier import verify
from .entry import ITEMS, REQUEST, Entry
from .request import Request

_aten = torch.ops.aten


def entries_of(
    request: Request | None, shared: tuple[str, ...], program: Program
) -> tuple[Entry | None, dict[str, Program]]:
    """How an artifact takes requests, and the programs that are built beside that for flat rows.

    Args:
        request: What was asked for.
        shared: The features it shares.
        program: The request program.
    """
    if request is None:
        return None, {}
    if not request.precompute_items:
        return Entry(shared), {REQUEST: program}
    items, rest = split_items(program, shared)
    ahead = tuple(name for name in rest.signature.names if name not in shared)
    return Entry(shared, ahead), {REQUEST: rest, ITEMS: items}


def split_items(program: Program, shared: Collection[str]) -> tuple[Program, Program]:
    """A request program as two: of the candidates alone, and the rest, which takes its results.

    The cut is as late as possible: requests compute nothing that the user has no part in, but
    moves. Candidates' features that requests need as they are stay inputs of theirs.

    Returns:
        The candidates' program, whose outputs are called like the inputs of the other.

    Raises:
        SignatureError: Nothing is computed of the candidates alone.
    """
    names = _cut(program, shared)
    if not names:
        raise SignatureError(
            "nothing is computed of the candidates alone, so there is nothing to precompute; "
            "leave out Request(precompute_items=True)."
        )
    return _items(program, names), _rest(program, names)


def _cut(program: Program, shared: Collection[str]) -> dict[str, str]:
    """The nodes that are computed ahead, and what to call their values."""
    kinds, places = lineage(program, shared), row_places(program)
    taken = {*program.signature.names, *program.signature.outputs}
    found: dict[str, str] = {}
    pending = [
        source
        for node in program.graph.nodes
        if kinds[node] is Lineage.BOTH or node.op == "output"
        for source in node.all_input_nodes
    ]
    seen: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in seen or kinds[node] is not Lineage.ITEM or node.op != "call_function":
            continue
        seen.add(node)
        value = node.meta["val"]
        # Moves are kept on the side of requests, not stored twice.
        moved = moves(node, Move.VIEW)
        kept = isinstance(value, Tensor) and places[node] == FIRST and not moved
        if not kept or any(not isinstance(size, int) for size in value.shape[1:]):
            pending += node.all_input_nodes
            continue
        name = re.sub(r"\W+", "_", site_of(node)).strip("_") or node.name
        while name in taken:
            name += "_"
        taken.add(name)
        found[node.name] = name
    order = [node.name for node in program.graph.nodes if node.name in found]
    return {name: found[name] for name in order}


def _items(program: Program, names: dict[str, str]) -> Program:
    """The program that computes the values that are cut at."""
    result = program.clone()
    nodes = {node.name: node for node in result.graph.nodes}
    (output,) = result.graph.find_nodes(op="output")
    output.args = (tuple(nodes[name] for name in names),)
    return with_outputs(result, {}, tuple(names.values()))


def _rest(program: Program, names: dict[str, str]) -> Program:
    """The program that takes these values."""
    result = program.clone()
    nodes = {node.name: node for node in result.graph.nodes}
    last = result.graph.find_nodes(op="placeholder")[-1]
    vectors: dict[str, Feature] = {}
    for old, name in names.items():
        value: Tensor = nodes[old].meta["val"]
        with result.graph.inserting_after(last):
            last = result.graph.placeholder(name)
        last.meta["val"] = value
        nodes[old].replace_all_uses_with(last)
        dtype = str(value.dtype).removeprefix("torch.")
        shape: tuple[int | str, ...] = (BATCH, *(int(size) for size in value.shape[1:]))
        vectors[name] = Feature(name, FeatureKind.DENSE, dtype, shape)
    for node in result.graph.nodes:  # rows are counted in what is there
        if node.target is _aten.sym_size.int and node.args[1] == 0:
            if str(node.args[0].meta["val"].shape[0]) == str(last.meta["val"].shape[0]):
                node.args = (last, 0)
        elif node.target is REQUEST_BROADCAST.op:
            node.args = (node.args[0], last)
    return with_outputs(result, vectors, program.signature.outputs)


def with_outputs(
    program: Program, vectors: dict[str, Feature], outputs: tuple[str, ...]
) -> Program:
    """Drops inputs that nothing needs, and describes what is left."""
    sweep(program)
    known = {f.name: f for f in program.signature} | vectors
    for node in program.graph.find_nodes(op="placeholder"):
        if not node.users:
            program.graph.erase_node(node)
    features = tuple(known[str(node.target)] for node in program.graph.find_nodes(op="placeholder"))
    whole = outputs == program.signature.outputs
    tasks = program.signature.tasks if whole else ()
    program.signature = Signature(features, tasks, outputs)
    program.inputs, program.arguments = _by_name(program.signature.names), program.signature.names
    if not whole:
        program.outputs = _by_name(outputs)
    program.module.recompile()
    verify(program)
    return program


def _by_name(names: tuple[str, ...]) -> Structure:
    return Structure(Branch("dict", names, tuple(map(Leaf, names))))
