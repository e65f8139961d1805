"""From a `Program` to ONNX: the exchange format every other backend reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import opset21

from ...optimizer.errors import UnsupportedError
from ...optimizer.ir import Program, site_of
from ...optimizer.ir.ops import (
    DEQUANTIZE,
    HALF_LINEAR,
    QUANTIZE,
    ROWWISE_EMBEDDING4,
    ROWWISE_LINEAR,
)
from ...optimizer.ir.printer import operator
from ...optimizer.ir.torchapi import exported_as_onnx, operator_name, silenced
from . import bags, bounds
from .arithmetic import ARITHMETIC
from .attention import ATTENTION
from .cleanup import clean_up
from .double import DOUBLE
from .forms import forms
from .functions import FUNCTIONS
from .indexing import INDEXING
from .reductions import REDUCTIONS, drop_needless
from .rowwise_linear import rowwise_linear

#: Tensors of more bytes go into the data file, which runtimes map into memory.
_EXTERNAL_BYTES = 1024
_OPSET = 21
# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21


def _quantize(x: Any, scale: Any, zero_point: Any, axis: int, dtype: int) -> Any:
    return op.QuantizeLinear(x, scale, zero_point, axis=axis)


def _dequantize(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    return op.DequantizeLinear(codes, scale, zero_point, axis=axis)


def _rowwise_embedding4(codes: Any, scale: Any, bias: Any, ids: Any) -> Any:
    """The reference; torch.onnx shifts an unsigned byte as a signed one."""
    pairs = op.Gather(codes, ids, axis=0)
    low = op.BitwiseAnd(pairs, op.Constant(value=_byte(15)))
    high = op.BitShift(pairs, op.Constant(value=_byte(4)), direction="RIGHT")
    last = op.Constant(value_ints=[-1])
    halves = op.Concat(op.Unsqueeze(low, last), op.Unsqueeze(high, last), axis=-1)
    # 0 copies a dimension, -1 takes what is left: [..., D / 2, 2] to [..., D].
    shape = [0] * len(ids.shape) + [-1]
    values = op.Cast(op.Reshape(halves, op.Constant(value_ints=shape)), to=ir.DataType.FLOAT)
    step = op.Cast(op.Gather(scale, ids, axis=0), to=ir.DataType.FLOAT)
    return op.Add(op.Mul(values, step), op.Cast(op.Gather(bias, ids, axis=0), to=ir.DataType.FLOAT))


def _half_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """The reference: the product in the weight's format, the rest in float32."""
    low = op.Cast(x, to=int(weight.dtype))
    product = op.Cast(op.MatMul(low, op.Transpose(weight, perm=[1, 0])), to=ir.DataType.FLOAT)
    return product if bias is None else op.Add(product, bias)


def _squeeze(x: Any, dims: Any) -> Any:
    """``aten.squeeze.dims``: the exporter has none, and traces the whole anew."""
    asked = [dim % len(x.shape) for dim in dims]
    axes = [axis for axis in asked if x.shape[axis] == 1]
    return op.Squeeze(x, op.Constant(value_ints=axes)) if axes else op.Identity(x)


def _byte(value: int) -> Any:
    return onnx.numpy_helper.from_array(np.array(value, dtype=np.uint8))


_FORMS = forms()
#: Dialect ops with an ONNX form of their own (all others are decomposed by their reference), and
#: ATen's whose form by the exporter isn't what PyTorch computes.
_TRANSLATIONS: dict[Any, Any] = {
    **ARITHMETIC,
    **INDEXING,
    **FUNCTIONS,
    **REDUCTIONS,
    **ATTENTION,
    **DOUBLE,
    torch.ops.aten.squeeze.dims: _squeeze,
    QUANTIZE.op: _quantize,
    DEQUANTIZE.op: _dequantize,
    HALF_LINEAR.op: _half_linear,
    ROWWISE_EMBEDDING4.op: _rowwise_embedding4,
    ROWWISE_LINEAR.op: rowwise_linear,
    **bounds.TRANSLATIONS,
    **bags.TRANSLATIONS,
    **{target: made for form in _FORMS for target, made in form.translations.items()},
}


def own_forms() -> tuple[str, ...]:
    """ATen's operators that aren't written as the exporter would."""
    return tuple(sorted({name for name in map(operator_name, _TRANSLATIONS) if name}))


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
            model: ir.Model = exported_as_onnx(exported, _OPSET, _TRANSLATIONS)
    except Exception as error:
        raise UnsupportedError(_explain(error, program)) from error
    drop_needless(model)
    clean_up(model)
    _name(model, program)
    _keep_origins(model, exported)
    bounds.count_by_gather(model)
    bounds.bound_inputs(model, program.signature)
    bags.name_refusals(model)
    for form in _FORMS:
        form.finish(model)
    return model


def _explain(error: BaseException, program: Program) -> str:
    """The exporter's refusal, in the user's names; its own message says how to report it."""
    reasons = [error]
    while reasons[-1].__cause__ is not None:
        reasons.append(reasons[-1].__cause__)
    text = "\n".join(str(reason) for reason in reasons[1:] or reasons)
    reason = str(reasons[-1]).split("\n", 1)[0][:300]
    # The exporter decomposes on its own: it may say prims.bessel_j0 for aten.special_bessel_j0.
    refused = re.search(r"OpOverload\(op='\w+\.(\w+)', overload='(\w+)'", text)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    whole = f"aten.{refused[1]}.{refused[2]}" if refused else ""
    exact = [node for node in calls if str(node.target) == whole]
    for node in exact or calls:
        inner = refused is not None and operator(node).split(".")[0].endswith(refused[1])
        if node in exact or inner or str(node.target) in text:
            return f"ONNX has no form for {node.target}, used at {site_of(node)}: {reason}"
    return f"the program can't be written as ONNX: {type(reasons[-1]).__name__}: {reason}"


def _name(model: ir.Model, program: Program) -> None:
    """Inputs and outputs by their own names; the dynamic batch is called batch."""
    graph = model.graph
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
    return _files(path)


def share_data(path: Path, other: Path) -> tuple[str, ...]:
    """Lets a saved model read the tensors it has in common with another from the other's data file.

    Args:
        path: The model's file; its own data file keeps what only it has.
        other: The other's, in the same folder.

    Returns:
        The names of the files that are the model's alone.
    """
    model = ir.load(path)
    known = {
        _content(t): t for t in map(_external, ir.load(other).graph.initializers.values()) if t
    }
    own = {}
    for value in model.graph.initializers.values():
        tensor = _external(value)
        if tensor is None:
            continue
        same = known.get(_content(tensor))
        if same is None:
            own[value] = tensor
            continue
        value.const_value = ir.ExternalTensor(
            same.location,
            same.offset,
            same.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
            base_dir=path.parent,
        )
    kept = [ir.tensor(t.numpy().copy(), t.dtype, name=t.name) for t in own.values()]
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    if kept:
        written = ir.external_data.convert_tensors_to_external(kept, path.parent, data.name)
        for value, tensor in zip(own, written, strict=True):
            value.const_value = tensor
    ir.save(model, path)
    return _files(path)


def _external(value: ir.Value) -> ir.ExternalTensor | None:
    tensor = value.const_value
    return tensor if isinstance(tensor, ir.ExternalTensor) else None


def _content(tensor: ir.ExternalTensor) -> tuple[Any, ...]:
    """What makes two stored tensors the same."""
    digest = hashlib.blake2b(tensor.tobytes(), digest_size=16).digest()
    return tensor.dtype, tuple(tensor.shape), digest


def _files(path: Path) -> tuple[str, ...]:
    data = f"{path.name}.data"
    return (path.name, data) if (path.parent / data).exists() else (path.name,)
