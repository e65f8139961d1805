"""Which format each linear really runs in, read from TensorRT's build log.

Without a GPU there is no engine inspector. But a build with detailed profiling prints, at its most
talkative, a block ``Layers:`` with the dtypes of every kernel and the ONNX nodes it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...optimizer.formats import LINEAR, NUMBERS
from .rules import site_of

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\S+), Inputs: (?P<inputs>.*), "
    r"Constants: (?P<constants>.*), Outputs: (?P<outputs>.*), TacticName: (?P<tactic>.*), "
    r"StreamId: \d+, Metadata: (?P<metadata>.*)"
)
_TENSOR = re.compile(r"Name: [^,]+, Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_ONNX_NODE = re.compile(r"ONNX Layer: ([^\]]+)\]")
#: TensorRT's names of the formats.
_FORMATS = {number.tensorrt: number.word for number in NUMBERS}
#: What weights' codes are, by their dtype in the graph.
_CODES = {ir.DataType[data.weight.onnx]: data.weight.word for data in LINEAR.values()}
_PRODUCTS = ("Gemm", "MatMul")
#: What makes codes and decodes them; TensorRT's own operators have such names as well.
_ENCODES, _DECODES = ("QuantizeLinear", "DynamicQuantize"), ("DequantizeLinear",)


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine.

    Attributes:
        name: TensorRT's name of it.
        kind: ``gemm``, ``runtime_fusion``, ``kgen`` and others.
        inputs: Formats of its inputs.
        weights: Formats of its constants of more than one element.
        outputs: Formats of its outputs.
        nodes: The ONNX nodes it came from.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class LinearRun:
    """What was planned for a linear, and what runs.

    Attributes:
        site: The user's module.
        planned: ``"fp8"``, ``"int8"``, ``"int4"`` with ``" weights"`` where the input isn't coded.
        runs: The same words, of the kernel it runs in.
        standing: Quantize and dequantize nodes that became kernels of their own, and why.
    """

    site: str
    planned: str
    runs: str
    standing: tuple[str, ...] = ()

    @property
    def as_planned(self) -> bool:
        """Whether the plan was kept."""
        return self.planned == self.runs

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "standing": list(self.standing), "as_planned": self.as_planned}


def kernels(log: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels in the messages of one build; none if it wasn't talkative."""
    block = next((message for message in log if message.startswith("Layers:")), "")
    found = []
    for line in block.splitlines():
        match = _LAYER.match(line)
        if match is None:
            continue
        found.append(
            Kernel(
                match["name"],
                match["kind"],
                _formats(match["inputs"]),
                _formats(match["constants"], scalars=False),
                _formats(match["outputs"]),
                tuple(_ONNX_NODE.findall(match["metadata"])),
            )
        )
    return tuple(found)


def _formats(text: str, scalars: bool = True) -> tuple[str, ...]:
    tensors = [(dims, kind) for dims, kind in _TENSOR.findall(text) if scalars or dims != "1"]
    return tuple(_FORMATS.get(kind, kind.lower()) for _, kind in tensors)


def linear_runs(model: ir.Model, built: Sequence[Kernel]) -> tuple[LinearRun, ...]:
    """Every linear with coded weights: what was planned beside what runs."""
    by_node: dict[str, list[Kernel]] = {}
    for kernel in built:
        for node in kernel.nodes:
            by_node.setdefault(node, []).append(kernel)
    return tuple(
        LinearRun(site_of(node), planned, _run_of(node, planned, by_node), _standing(node, by_node))
        for node in model.graph.all_nodes()
        for planned in [_plan_of(node)]
        if planned
    )


def _plan_of(node: ir.Node) -> str:
    """The format of a linear's weight codes; empty for what has none."""
    if node.op_type not in _PRODUCTS:
        return ""
    source, weight = (_producer(node, index) for index in (0, 1))
    if weight is not None and weight.op_type == "Transpose":
        weight = _producer(weight, 0)
    if weight is None or not _decodes(weight) or weight.inputs[0] is None:
        return ""
    found = _CODES.get(weight.inputs[0].dtype, "")  # type: ignore[arg-type]
    while source is not None and source.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        source = _producer(source, 0)
    coded = source is not None and _decodes(source)
    return found if coded or not found else f"{found} weights"


def _decodes(node: ir.Node) -> bool:
    return node.op_type.endswith(_DECODES)


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return value.producer() if value is not None else None


def _run_of(node: ir.Node, planned: str, by_node: dict[str, list[Kernel]]) -> str:
    """What the kernel that multiplies runs in."""
    mine = by_node.get(str(node.name), [])
    low = planned.removesuffix(" weights")
    for kernel in mine:
        if low in kernel.weights and low in kernel.inputs:
            return low
    for kernel in mine:
        if low in kernel.weights:
            return f"{low} weights"
    products = [k for k in mine if k.kind in ("gemm", "runtime_fusion") and k.inputs]
    return products[0].inputs[0] if products else "no kernel of its own"


def _standing(node: ir.Node, by_node: dict[str, list[Kernel]]) -> tuple[str, ...]:
    """Conversions around a linear that nothing took in."""
    found = []
    decode = _producer(node, 0)
    encode = _producer(decode, 0) if decode is not None else None
    for conversion in (encode, decode):
        if conversion is None or not conversion.op_type.endswith(_ENCODES + _DECODES):
            continue
        alone = [
            kernel
            for kernel in by_node.get(str(conversion.name), [])
            if all("quantize" in name.lower() for name in kernel.nodes)
        ]
        if alone:
            found.append(f"{conversion.op_type} is a kernel of its own: {_why(conversion)}")
    return tuple(found)


def _why(conversion: ir.Node) -> str:
    maker = _producer(conversion, 0)
    if maker is None:
        return "it reads an input of the model, and no kernel before it could take it in"
    others = len(list(maker.outputs[0].uses())) - 1
    shared = f", whose result {others} others read too" if others else ""
    return f"{site_of(maker)} ({maker.op_type}){shared} didn't take it in"


def mismatches(runs: Sequence[LinearRun]) -> tuple[str, ...]:
    """Sentences on linears that don't run as planned."""
    return tuple(
        f"{run.site} was planned in {run.planned} and runs in {run.runs}"
        for run in runs
        if not run.as_planned
    )
