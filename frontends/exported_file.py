"""Capture of a ``.pt2`` file: a program that rankc saved, or anyone's ``torch.export.save``."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ..optimizer.data.synthetic import synthesize
from ..optimizer.errors import CaptureError, SignatureError
from ..optimizer.ir import Facts, Form, Program, Signature, set_facts
from ..optimizer.ir.infer import infer_signature
from ..optimizer.ir.program import flatten_exported
from ..optimizer.ir.structure import Structure
from ..optimizer.ir.torchapi import core_decompositions, silenced, unlift
from .check_file import BATCHES, check_rows, compare
from .contract import with_contract

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor while the nesting around it is looked at."""

    index: int


def load(
    path: Path, *, signature: Signature | None = None, outputs: tuple[str, ...] | None = None
) -> Program:
    """Reads a ``.pt2`` file; one that rankc didn't save is checked against itself.

    A foreign program keeps its own inputs and outputs, nested and named as its call spec says, and
    its dynamic batch. The file is unpickled, so whoever wrote it must be trusted.

    Args:
        path: The file.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.

    Raises:
        CaptureError: The file is damaged, its batch is fixed, or it holds what a program can't.
    """
    if _is_ours(path):
        try:
            saved = Program.load(path, trust_code=True)
        except Exception as error:
            raise CaptureError(
                f"{path} is damaged, or not what Program.save wrote: {error}"
            ) from error
        return with_contract(saved, signature, outputs)
    try:
        exported = torch.export.load(path)
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        raise CaptureError(
            f"{path} is damaged, or no file of Program.save or torch.export.save: {first}"
        ) from error
    return with_contract(from_exported(exported, str(path)), signature, outputs)


def _is_ours(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("extra/rankc.json") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def from_exported(exported: torch.export.ExportedProgram, where: str) -> Program:
    """The program of an exported module, batch dynamic as it was exported.

    Args:
        exported: What ``torch.export.export`` gave.
        where: What messages call it.

    Raises:
        CaptureError: Its batch is fixed, or its inputs or outputs aren't tensors in containers.
    """
    original = unlift(exported)
    given = _inputs(exported, original, where)
    structure = _structure(given, "input", where)
    _check(original, structure, given, where)
    with torch.no_grad(), silenced():
        try:
            lowered = exported.run_decompositions(core_decompositions())
        except Exception as error:
            raise CaptureError(f"{where} can't be decomposed to core ATen: {error}") from error
    flat = unlift(lowered).graph.find_nodes(op="placeholder")
    order = structure.flatten(given)
    names = {place.index: name for name, place in order.items()}
    module = flatten_exported(
        lowered, tuple(names.get(i, f"unused_{i}") for i in range(len(flat))), prefix=""
    )
    _drop_constants(module, set(order), where)
    outputs = _outputs(exported, module, structure.names, where)
    _record_origins(module)
    program = Program(
        module,
        infer_signature(module.graph, outputs.names),
        structure,
        outputs,
        tuple(given),
        Form.CAPTURED,
    )
    _check_parity(program, exported, original, where)
    return program


def _inputs(
    exported: torch.export.ExportedProgram, original: fx.GraphModule, where: str
) -> dict[str, Any]:
    """The call's arguments by name, with a place for each tensor and constants as they are."""
    placeholders = original.graph.find_nodes(op="placeholder")
    leaves = [
        _Place(index) if isinstance(node.meta.get("val"), Tensor) else node.meta.get("val")
        for index, node in enumerate(placeholders)
    ]
    try:
        args, kwargs = exported.call_spec.in_spec.unflatten(leaves)
    except Exception as error:
        raise CaptureError(
            f"{where} takes inputs of a class that can't be rebuilt here: {error}. "
            "Import the package that defines it first, or export with tensors and dicts."
        ) from error
    signature = exported.module_call_graph[0].signature
    known = list((signature.forward_arg_names if signature else None) or ())
    names = [n for n in known if n not in kwargs]
    if len(names) < len(args):
        names = [f"arg_{index}" for index in range(len(args))]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _structure(value: Any, root: str, where: str) -> Structure:
    try:
        return Structure.of(value, root, lambda v: isinstance(v, _Place))
    except SignatureError as error:
        raise CaptureError(f"{where}: {error}") from error


def _check(
    original: fx.GraphModule, structure: Structure, given: dict[str, Any], where: str
) -> None:
    """What can be told from the file alone: fixed batches, devices, training mode."""
    placeholders = original.graph.find_nodes(op="placeholder")
    places = structure.flatten(given)
    if not places:
        raise CaptureError(f"{where} takes no tensors.")
    for name, place in places.items():
        value = placeholders[place.index].meta["val"]
        if value.dim() == 0:
            raise CaptureError(f"input {name!r} of {where} is a single number, not one per row.")
        if isinstance(value.shape[0], int):
            raise CaptureError(
                f"{where} was exported with a fixed batch: input {name!r} is {list(value.shape)}. "
                "Export it again with a dynamic one: torch.export.export(model, inputs, "
                f'dynamic_shapes={{"{name}": {{0: torch.export.Dim("batch")}}, …}}), or give '
                "rankc the model itself."
            )
    for tensor_name, tensor in (*original.named_parameters(), *original.named_buffers()):
        if tensor.device.type != "cpu":
            raise CaptureError(
                f"weight {tensor_name!r} of {where} is on {tensor.device}; export model.cpu()."
            )
    for node in original.graph.find_nodes(op="call_function", target=_aten.dropout.default):
        if len(node.args) > 2 and node.args[2] is True:
            raise CaptureError(
                f"{where} was exported in training mode: {node.name} drops values at random. "
                "Call model.eval() before torch.export.export."
            )


def _drop_constants(module: fx.GraphModule, features: set[str], where: str) -> None:
    """Removes arguments that were constants when exported, and writes into buffers."""
    for node in reversed(module.graph.find_nodes(op="call_function", target=_aten.copy_.default)):
        if not node.users:
            module.graph.erase_node(node)
    for node in module.graph.find_nodes(op="placeholder"):
        if str(node.target) in features:
            continue
        if node.users:
            raise CaptureError(f"{where} computes with its argument {node.name}, no tensor.")
        module.graph.erase_node(node)
    module.recompile()


def _outputs(
    exported: torch.export.ExportedProgram,
    module: fx.GraphModule,
    features: tuple[str, ...],
    where: str,
) -> Structure:
    """The outputs' nesting, with names that no feature has; constants leave the graph."""
    (output,) = module.graph.find_nodes(op="output")
    found = output.args[0]
    assert isinstance(found, tuple)
    leaves = [_Place(i) if isinstance(v, fx.Node) else v for i, v in enumerate(found)]
    try:
        result = exported.call_spec.out_spec.unflatten(leaves)
    except Exception as error:
        raise CaptureError(
            f"{where} returns a class that can't be rebuilt here: {error}. "
            "Import the package that defines it first, or return tensors and dicts."
        ) from error
    structure = _structure(result, "score", where)
    places = structure.flatten(result)
    if not places:
        raise CaptureError(f"{where} returns no tensor.")
    output.args = (tuple(found[place.index] for place in places.values()),)
    values = [v.meta["val"] for v in output.args[0]]
    for name, value in zip(places, values, strict=True):
        if value.dim() == 0 or isinstance(value.shape[0], int):
            raise CaptureError(
                f"output {name!r} of {where} is {list(value.shape)}, not one score per row."
            )
    module.recompile()
    taken = {*features, *places}
    renamed: dict[str, str] = {}
    for name in places:
        other = name
        while name in features and other in taken:
            other += "_out"
        taken.add(other)
        renamed[name] = other
    return structure.rename(renamed)


def _record_origins(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(entry[0]) for entry in stack.values() if isinstance(entry, (tuple, list))]
        path = (paths[-1] if paths else "").removeprefix("L['self']").removeprefix(".")
        set_facts(node, Facts(origin=(path,) if path else ()))


def _check_parity(
    program: Program, exported: torch.export.ExportedProgram, original: fx.GraphModule, where: str
) -> None:
    """The flat program must score like what is in the file, called as the file is called."""
    rows: dict[str, Tensor] = {}
    for size in BATCHES:
        rows = dict(synthesize(program.signature, size, seed=size).features)
        arguments = program.inputs.unflatten(rows)
        # What was passed by position then is passed by position now.
        count = len(exported.call_spec.in_spec.child(0).children())
        by_place = [arguments[name] for name in program.arguments[:count]]
        by_name = {name: arguments[name] for name in program.arguments[count:]}
        try:
            with torch.no_grad():
                want = original(*by_place, **by_name)
        except Exception as error:
            raise CaptureError(f"{where} doesn't run at batch {size}: {error}") from error
        expected = program.outputs.flatten(want)
        for name, score in program.run(rows).items():
            compare(where, name, score, expected[name], size)
    check_rows(program, rows)
