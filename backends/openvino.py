"""OpenVINO on the CPU: competes with ONNX Runtime, and has linears in bf16."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import fx

from ..optimizer.backend import Arrays, Built, Here
from ..optimizer.errors import ArtifactError, TargetError, UnsupportedError
from ..optimizer.formats import BF16, FP32
from ..optimizer.ir import Program
from ..optimizer.ir.ops import HALF_LINEAR
from ..optimizer.target import Target
from . import openvino_limits
from .onnx.rowwise_linear import inline_rowwise
from .onnxruntime.backend import MODEL, OnnxRuntime

FACTS = "openvino.json"
_PIP = "pip install openvino"
#: OpenVINO's own names of the precision that everything is computed in that has no codes.
_PRECISIONS = {FP32.word: "f32", BF16.word: "bf16"}


class OpenVino(OnnxRuntime):
    """Builds standard ONNX, which OpenVINO compiles when the artifact is opened.

    Q/DQ run in INT8. All the rest runs in one precision: bf16 if every linear that is not in INT8
    was placed in bf16, and fp32 otherwise.
    """

    name: ClassVar[str] = "openvino"
    _native: ClassVar[bool] = False

    def missing(self) -> str:
        """The pip line, where it isn't installed."""
        return "" if importlib.util.find_spec("openvino") is not None else _PIP

    def here(self, target: Target) -> Here:
        """ONNX, run in process."""
        return Here("", "") if self.missing() else Here("ONNX", "yes")

    def versions(self) -> dict[str, str]:
        """OpenVINO's."""
        return {"openvino": _openvino().__version__}

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None, or why OpenVINO has no form for the node, or one that computes something else."""
        return super().supports(node, target) or openvino_limits.refusal(node)

    def refusals(self, program: Program, target: Target) -> list[tuple[fx.Node, str]]:
        """The nodes it isn't given, and why; integers that may need 64 bits are among them."""
        return super().refusals(program, target) + list(openvino_limits.wide(program))

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.onnx`` and ``openvino.json``.

        Raises:
            TargetError: OpenVINO isn't installed.
            UnsupportedError: It doesn't take the model.
        """
        if self.missing():
            raise TargetError(f"openvino isn't installed: {self.missing()}")
        built = super().build(program, target, folder, metadata)
        precision = _precision(program)
        (folder / FACTS).write_text(json.dumps({"precision": precision}) + "\n")
        try:
            self.open(folder, 1)
        except ArtifactError as error:
            raise UnsupportedError(str(error)) from error
        notes = (f"openvino computes in {precision} what isn't INT8",)
        versions = {**built.versions, **self.versions()}
        return Built((*built.files, FACTS), versions, notes, built.fused)

    def build_beside(
        self,
        entry: str,
        program: Program,
        target: Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> Built:
        """Writes ``<entry>.onnx``, which is computed in the precision of ``model.onnx``.

        Raises:
            UnsupportedError: OpenVINO doesn't take it.
        """
        built = super().build_beside(entry, program, target, folder, metadata)
        try:
            self.open_beside(entry, folder, 1)
        except ArtifactError as error:
            raise UnsupportedError(str(error)) from error
        return built

    def open(self, folder: Path, threads: int | None = None) -> OpenVinoRunner:
        """Compiles ``model.onnx``."""
        return self._open(folder / MODEL, threads)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> OpenVinoRunner:
        """Compiles ``<entry>.onnx``."""
        return self._open(folder / f"{entry}.onnx", threads)

    def _open(self, path: Path, threads: int | None) -> OpenVinoRunner:
        facts = path.with_name(FACTS)
        try:
            precision = json.loads(facts.read_text())["precision"]
        except (OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{facts} is damaged or foreign: {error!r}") from error
        return OpenVinoRunner(path, precision, threads)

    def _fuse(self, model: ir.Model) -> Mapping[str, int]:
        inline_rowwise(model)
        return {BF16.word: _without_casts(model.graph)}

    def _run_part(self, model: bytes) -> Any:
        half = ir.from_proto(_proto(model)).graph
        precision = BF16.word if any("rankc.half" in n.metadata_props for n in half) else FP32.word
        return OpenVinoRunner(model, precision, 1)

    def _notes(self) -> tuple[str, ...]:
        return ()


class OpenVinoRunner:
    """A compiled model that takes and returns numpy arrays by name."""

    def __init__(self, model: Path | bytes, precision: str, threads: int | None = None) -> None:
        openvino = _openvino()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            read = (
                core.read_model(model, b"") if isinstance(model, bytes) else core.read_model(model)
            )
            compiled = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            reasons = [line for line in str(error).splitlines() if line.strip()]
            why = "; ".join(reasons[:4])
            raise ArtifactError(f"openvino can't open the model: {why}") from error
        self._request = compiled.create_infer_request()
        # A value has every name that what it is equal to had: an input that of what a no-op makes
        # of it, an output that of a second output.
        self._asked = _output_names(model)
        self._inputs = [value.get_names() for value in compiled.inputs]
        self._outputs = {name: value for value in compiled.outputs for name in value.get_names()}

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        given = [features[next(iter(names & features.keys()))] for names in self._inputs]
        found = self._request.infer(given, share_inputs=True)
        return {name: found[self._outputs[name]] for name in self._asked}


def _openvino() -> Any:
    """The package; its telemetry is not asked for anything."""
    return importlib.import_module("openvino")


def _output_names(model: Path | bytes) -> list[str]:
    """What the file calls its outputs; OpenVINO knows them by other names as well."""
    proto = (
        _proto(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    )
    return [value.name for value in proto.graph.output]


def _proto(model: bytes) -> Any:

    return onnx.ModelProto.FromString(model)


def _precision(program: Program) -> str:
    """bf16 if some linears were placed in it and none that was worth placing stayed in fp32."""
    halves = [node for node in program.graph.nodes if node.target is HALF_LINEAR.op]
    low = halves and not any(map(_stayed, program.graph.nodes))
    return BF16.word if low else FP32.word


def _stayed(node: fx.Node) -> bool:
    """Whether a linear stayed in fp32 though it is large enough for another format."""
    if node.target is not torch.ops.aten.linear.default:
        return False
    weight = node.args[1]
    plain = isinstance(weight, fx.Node) and weight.op == "get_attr"
    return plain and min(weight.meta["val"].shape) >= 16  # type: ignore[union-attr]


def _without_casts(graph: ir.Graph) -> int:
    """Makes products in bf16 products in fp32 of the same weights; which, OpenVINO decides."""
    count = 0
    for product in list(graph):
        if product.op_type != "MatMul" or product.inputs[0] is None:
            continue
        if product.inputs[0].dtype is not ir.DataType.BFLOAT16:
            continue
        count += 1
        narrowed = product.inputs[0].producer()
        assert narrowed is not None
        product.replace_input_with(0, narrowed.inputs[0])
        weight = product.inputs[1]
        assert weight is not None
        wide = ir.Node("", "Cast", [weight], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
        graph.insert_before(product, wide)
        product.replace_input_with(1, wide.outputs[0])
        made = product.outputs[0]
        made.type = ir.TensorType(ir.DataType.FLOAT)
        for use in list(made.uses()):
            # An output's name is its Cast's, which then casts nothing.
            if use.node.op_type == "Cast" and not use.node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(use.node.outputs[0], made)
                graph.remove(use.node, safe=True)
        if not narrowed.outputs[0].uses():
            graph.remove(narrowed, safe=True)
        product.metadata_props["rankc.half"] = BF16.word
    return count
