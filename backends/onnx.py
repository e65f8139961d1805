"""From a `Program` to ONNX: the exchange format every other backend reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset21 as op

from ..optimizer.errors import UnsupportedError
from ..optimizer.ir import Program, site_of
from ..optimizer.ir.ops import DEQUANTIZE, QUANTIZE
from ..optimizer.ir.torchapi import silenced

#: Tensors of at least this many bytes go into the data file, which runtimes map into memory.
_EXTERNAL_BYTES = 1024
_OPSET = 21


def _quantize(x: Any, scale: Any, zero_point: Any, axis: int, dtype: int) -> Any:
    return op.QuantizeLinear(x, scale, zero_point, axis=axis)


def _dequantize(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    return op.DequantizeLinear(codes, scale, zero_point, axis=axis)


#: Dialect ops with an ONNX operator of their own; all others are decomposed by their reference.
_TRANSLATIONS: dict[Any, Any] = {QUANTIZE.op: _quantize, DEQUANTIZE.op: _dequantize}


def to_onnx(program: Program) -> ir.Model:
    """The program in standard ONNX, batch dynamic, quantization as Q/DQ.

    Inputs are called like the features, outputs like the signature's outputs. Tables are not
    copied: the model refers to the program's tensors.

    Raises:
        UnsupportedError: An operator ONNX has no form for.
    """
    exported = program.exported()
    try:
        with silenced():
            made = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=_OPSET,
                custom_translation_table=_TRANSLATIONS,
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedError(_explain(error, program)) from error
    assert made is not None
    model: ir.Model = made.model
    _name(model, program)
    _keep_origins(model, exported)
    return model


def _explain(error: BaseException, program: Program) -> str:
    """The exporter's refusal, in the user's names."""
    text = str(error)
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in text:
            return f"ONNX has no form for {node.target}, used at {site_of(node)}: {text[:300]}"
    return f"the program can't be written as ONNX: {type(error).__name__}: {text[:300]}"


def _name(model: ir.Model, program: Program) -> None:
    """Inputs and outputs by their own names; the dynamic batch is called batch."""
    graph = model.graph
    _tell_apart(graph)
    contract = {*program.signature.names, *program.signature.outputs}
    taken = contract | {value.name for value in _inner_values(graph)}
    for value in _inner_values(graph):
        if value.name in contract:
            value.name = _unique(f"{value.name}_value", taken)
    for value, name in zip(graph.inputs, program.signature.names, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, program.signature.outputs, strict=True):
        value.name = name
    symbols: dict[str, str] = {}
    for value in graph.inputs:
        first = value.shape[0] if value.shape else None
        if isinstance(first, ir.SymbolicDim) and first.value is not None:
            symbols.setdefault(str(first.value), "batch" if not symbols else f"rows_{len(symbols)}")
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None:
            continue
        dims = [
            ir.SymbolicDim(symbols[str(d.value)])
            if isinstance(d, ir.SymbolicDim) and str(d.value) in symbols
            else d
            for d in value.shape
        ]
        value.shape = ir.Shape(dims)
    model.producer_name = "rankc"
    model.producer_version = None


def _tell_apart(graph: ir.Graph) -> None:
    """Gives each output a value of its own: two may be the same, or be an input or a weight."""
    seen = {*graph.inputs, *graph.initializers.values()}
    for index, value in enumerate(list(graph.outputs)):
        if value in seen:
            copied = ir.node("Identity", [value])
            graph.append(copied)
            copied.outputs[0].shape, copied.outputs[0].type = value.shape, value.type
            graph.outputs[index] = copied.outputs[0]
        seen.add(value)


def _inner_values(graph: ir.Graph) -> list[ir.Value]:
    """Weights and intermediate values."""
    ends = {*graph.inputs, *graph.outputs}
    made = [value for node in graph for value in node.outputs]
    return [value for value in (*graph.initializers.values(), *made) if value not in ends]


def _unique(name: str, taken: set[str | None]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def _keep_origins(model: ir.Model, exported: torch.export.ExportedProgram) -> None:
    """Leaves on each node only where it came from in the user's model."""
    origins: dict[str, str] = {}
    for node in exported.graph.nodes:
        facts = (node.meta.get("custom") or {}).get("rankc") or {}
        if facts.get("origin"):
            origins[node.name] = facts["origin"][0]
    for made in model.graph.all_nodes():
        source = made.metadata_props.get("pkg.torch.onnx.fx_node", "").split(" ", 1)[0]
        origin = origins.get(source.removeprefix("%"))
        made.metadata_props.clear()
        if origin:
            made.metadata_props["rankc.origin"] = origin


def save_onnx(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Writes a model; large tensors go to ``<name>.data``. Returns the files' names.

    The model is empty of tensors afterwards: the exporter keeps it alive, and its tables would
    stay in memory with it.
    """
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    data = f"{path.name}.data"
    ir.save(model, path, external_data=data, size_threshold_bytes=_EXTERNAL_BYTES)
    for value in model.graph.initializers.values():
        value.const_value = None
    return (path.name, data) if (path.parent / data).exists() else (path.name,)
