"""What each TensorRT package takes, as data, looked up before a build."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...optimizer.errors import UnsupportedError
from ...optimizer.formats import LINEAR, TABLE, LinearData, TableData
from ...optimizer.target import Target, targets_with
from ..onnx.forms import DOMAIN


@dataclass(frozen=True)
class Library:
    """One of the two packages that share TensorRT's API.

    Attributes:
        module: What is imported.
        pip: The line that installs it.
        minimum: The oldest version whose strong typing has every format here.
        sms: Compute capabilities it builds for without a GPU; empty if it needs the GPU itself.
    """

    module: str
    pip: str
    minimum: tuple[int, int]
    sms: tuple[int, ...]

    def installed(self) -> bool:
        """Whether it can be imported; importing it is left to `load`."""
        return importlib.util.find_spec(self.module) is not None

    def load(self) -> Any:
        """The module.

        Raises:
            UnsupportedError: It is too old.
        """
        module = importlib.import_module(self.module)
        version = tuple(int(part) for part in module.__version__.split(".")[:2])
        if version < self.minimum:
            wanted = ".".join(map(str, self.minimum))
            raise UnsupportedError(
                f"{self.module} {module.__version__} is older than {wanted}, the first whose "
                f"strongly typed networks have every format here: {self.pip}"
            )
        return module


#: Read off `ComputeCapability` of 1.7.1. Other versions add to it; what they refuse they say.
RTX = Library(
    "tensorrt_rtx", "pip install tensorrt-rtx-cu13==1.7.1.116", (1, 1), (75, 80, 86, 89, 120, 121)
)
FULL = Library("tensorrt", 'pip install "tensorrt>=10.13"', (10, 13), ())
LIBRARIES = (FULL, RTX)


def require_formats(target: Target) -> None:
    """Raises if the target names a format that its SM lacks.

    Raises:
        UnsupportedError: Which format, and which SM has it.
    """
    sm = target.device.sm
    if sm is None:
        raise UnsupportedError(
            f"TensorRT builds for NVIDIA GPUs, and {target.name} is {target.device.name}"
        )
    asked: list[LinearData | TableData] = [LINEAR[name] for name in target.formats]
    asked += [TABLE[name] for name in target.table_formats]
    for data in asked:
        if sm < data.since:
            raise UnsupportedError(
                f"{target.device.name} (SM{sm}) has no {data.name}; {data.holders} have it, as "
                f"{', '.join(targets_with(data.name))}. Give {target.name} another format, such "
                "as int8 or bf16, or take one of those."
            )


@dataclass(frozen=True)
class Refusal:
    """A form of an ONNX operator that neither library's parser or builder takes.

    Attributes:
        operators: Names of the operators, with their domain unless it is ONNX's own.
        when: Whether a node of that name has the form.
        reason: What is refused.
        rewrite: What would help.
    """

    operators: tuple[str, ...]
    when: Callable[[ir.Node], bool]
    reason: str
    rewrite: str


def _always(node: ir.Node) -> bool:
    return True


def _adds(node: ir.Node) -> bool:
    reduction = node.attributes.get("reduction")
    return reduction is not None and reduction.as_string() != "none"


def _dtype_of(node: ir.Node, index: int) -> Any:
    value = node.inputs[index] if len(node.inputs) > index else None
    return value.dtype if value is not None else None


def _codes_dtype(node: ir.Node) -> Any:
    """The dtype of the codes a Q or DQ makes or reads."""
    return _dtype_of(node, 2 if node.op_type == "QuantizeLinear" else 0)


def _is_affine(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    constant = zero.const_value if zero is not None else None
    return constant is not None and bool((constant.numpy().astype("float32") != 0).any())


_POOLING = (
    "pool padded ids [B, L] with a mask, or give the bag's ids that way, so that no row is added "
    "by index"
)
_SYMMETRIC = "place symmetric INT8 or E4M3, as targets with int8_activations='int8' do"
_FIXED_SIZE = "keep every row and mask what shouldn't count"

#: Seen refused by tensorrt_rtx 1.7.1; TensorRT 10.13 and 11 share its parser.
REFUSALS: tuple[Refusal, ...] = (
    Refusal(("ScatterND", "ScatterElements"), _adds, "adds or compares rows by index", _POOLING),
    Refusal(
        ("SequenceEmpty", "SequenceInsert", "ConcatFromSequence", "SequenceAt"),
        _always,
        "works on a sequence of tensors",
        _POOLING,
    ),
    Refusal(
        ("QuantizeLinear", "DequantizeLinear"),
        lambda node: _codes_dtype(node) is ir.DataType.UINT8,
        "has uint8 codes",
        _SYMMETRIC,
    ),
    Refusal(
        ("QuantizeLinear", "DequantizeLinear"),
        _is_affine,
        "has a zero point other than 0",
        _SYMMETRIC,
    ),
    Refusal(
        ("QuantizeLinear", "DequantizeLinear", "Cast"),
        lambda node: (
            node.outputs[0].dtype is ir.DataType.FLOAT8E5M2
            or _codes_dtype(node) is ir.DataType.FLOAT8E5M2
        ),
        "is E5M2",
        _SYMMETRIC,
    ),
    Refusal(
        ("DequantizeLinear",),
        lambda node: _codes_dtype(node) is ir.DataType.INT32,
        "decodes an int32 bias",
        "keep the bias in floating point",
    ),
    Refusal(
        ("DequantizeLinear",),
        lambda node: any(
            producer is not None and producer.op_type == "Gather"
            for producer in [node.inputs[0].producer() if node.inputs[0] is not None else None]
        ),
        "decodes rows after they were gathered",
        "decode the table and gather from that: both become one kernel and the table stays coded",
    ),
    Refusal(
        ("DynamicQuantizeLinear",),
        _always,
        "takes its scale from the batch",
        "a static range, which calibration rows give",
    ),
    Refusal(
        ("NonZero", "Unique"), _always, "gives rows whose number depends on the data", _FIXED_SIZE
    ),
    Refusal(
        ("Identity", "Gather", "StringNormalizer", "LabelEncoder"),
        lambda node: node.outputs[0].dtype is ir.DataType.STRING,
        "works on text",
        "look text up before the model and feed ids",
    ),
)
#: ONNX's own, and that of functions TensorRT has operators for (`Form.for_tensorrt`).
_DOMAINS = ("", "ai.onnx", DOMAIN)


def refused_by(node: ir.Node) -> Refusal | None:
    """Why no TensorRT takes the node, or None."""
    if node.domain not in _DOMAINS:
        return Refusal(
            (node.op_type,),
            _always,
            f"is of the domain {node.domain!r}",
            "write it with ONNX's own operators",
        )
    for refusal in REFUSALS:
        if node.op_type in refusal.operators and refusal.when(node):
            return refusal
    return None


def require_legal(model: ir.Model, target: Target) -> None:
    """Raises if a node has a form that no TensorRT takes.

    Raises:
        UnsupportedError: Which nodes, by the user's names, and what would help.
    """
    lines = {
        f"  {site_of(node)}: {node.op_type} {found.reason}. What would help: {found.rewrite}"
        for node in model.graph.all_nodes()
        for found in [refused_by(node)]
        if found is not None
    }
    if lines:
        raise UnsupportedError(
            f"TensorRT can't build for {target.name}:\n" + "\n".join(sorted(lines)[:8])
        )


def site_of(node: ir.Node) -> str:
    """The user's name of an ONNX node, or its own."""
    return str(node.metadata_props.get("rankc.origin") or node.name or node.op_type)
