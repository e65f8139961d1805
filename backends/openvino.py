"""OpenVINO on the CPU: competes with ONNX Runtime, and has linears in bf16."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir
import torch
from torch import fx

from ..optimizer.backend import Built, Here
from ..optimizer.errors import ArtifactError, TargetError, UnsupportedError
from ..optimizer.formats import BF16, FP32
from ..optimizer.ir import Program
from ..optimizer.ir.ops import HALF_LINEAR
from ..optimizer.runtime import Runner
from ..optimizer.target import Target
from . import openvino_limits
from .onnx.base import OnnxBackend
from .onnx.files import MODEL
from .onnx.rowwise_linear import inline_rowwise
from .openvino_runtime import FACTS, OpenVinoRunner, OpenVinoRuntime, opened, openvino_package

_PIP = "pip install openvino"


class OpenVino(OpenVinoRuntime, OnnxBackend):
    """Builds standard ONNX, which OpenVINO compiles when the artifact is opened.

    Q/DQ run in INT8. All the rest runs in one precision: bf16 if every linear that is not in INT8
    was placed in bf16, and fp32 otherwise.
    """

    times: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def missing(self) -> str:
        """The pip line, where it isn't installed."""
        return "" if importlib.util.find_spec("openvino") is not None else _PIP

    def here(self, target: Target) -> Here:
        """ONNX, run in process."""
        return Here("", "") if self.missing() else Here("ONNX", "yes")

    def versions(self) -> dict[str, str]:
        """OpenVINO's."""
        return {"openvino": openvino_package().__version__}

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
        return super().build(program, target, folder, metadata)

    def finish(self, built: Built, program: Program, path: Path) -> Built:
        """Writes ``openvino.json`` beside ``model.onnx``, whose precision others have; compiles it.

        Raises:
            UnsupportedError: OpenVINO doesn't take the model.
        """
        if path.name == MODEL:
            precision = _precision(program)
            path.with_name(FACTS).write_text(json.dumps({"precision": precision}) + "\n")
            notes = (f"openvino computes in {precision} what isn't INT8",)
            built = replace(built, files=(*built.files, FACTS), notes=notes)
        try:
            opened(path, 1)
        except ArtifactError as error:
            raise UnsupportedError(str(error)) from error
        return built

    def written_by(self) -> dict[str, str]:
        """OpenVINO's version as well."""
        return {**super().written_by(), **self.versions()}

    def rewrite(self, model: ir.Model) -> Mapping[str, int]:
        """Products in bf16 become products in fp32, whose precision OpenVINO sets."""
        inline_rowwise(model)
        return {BF16.word: _without_casts(model.graph)}

    def run_part(self, model: bytes) -> Runner:
        """Compiles a part of a model for one thread."""
        half = ir.from_proto(onnx.ModelProto.FromString(model)).graph
        precision = BF16.word if any("rankc.half" in n.metadata_props for n in half) else FP32.word
        return OpenVinoRunner(model, precision, 1)


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
