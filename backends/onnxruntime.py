"""ONNX Runtime on the CPU: the backend that is always there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import fx

from ..optimizer.errors import ArtifactError
from ..optimizer.ir import Program
from ..optimizer.target import Target
from .base import Arrays, Backend, Built, Here, Runner
from .onnx import save_onnx, to_onnx
from .ort_fusions import fuse_for_onnxruntime

MODEL = "model.onnx"
_aten = torch.ops.aten
#: Operators that would become ONNX Loops or Sequences, or have no ONNX form at all.
_REFUSED: dict[Any, str] = {
    _aten.embedding_bag.padding_idx: "a bag that lower-embedding-bag has no form for",
    _aten.embedding_bag.default: "a bag that lower-embedding-bag has no form for",
    _aten.segment_reduce.default: "ONNX has no segment_reduce",
}


class OnnxRuntime(Backend):
    """Builds ONNX with ONNX Runtime's own fused operators, and serves it in process."""

    name: ClassVar[str] = "onnxruntime"

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None, or why the node has no form."""
        return _REFUSED.get(node.target)

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.onnx``."""
        self.require(program, target)
        model = to_onnx(program)
        fused = self._fuse(model)
        files = save_onnx(model, folder / MODEL, metadata)
        return Built(files, _versions(), self._notes(), fused)

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``model.onnx``; its data file is mapped into memory, not read."""
        return OrtRunner(folder / MODEL, threads, self._broken())

    def _broken(self) -> tuple[str, ...]:
        return ()

    def _fuse(self, model: ir.Model) -> Mapping[str, int]:
        return fuse_for_onnxruntime(model)

    def _notes(self) -> tuple[str, ...]:
        return ()


class PlainOnnx(OnnxRuntime):
    """Builds standard ONNX with explicit Q/DQ, for a runtime that isn't here.

    It is verified by ONNX Runtime's CPU kernels, which compute each Q and DQ as written.
    """

    name: ClassVar[str] = "onnx"

    def here(self, target: Target) -> Here:
        """Always the file; run by emulation."""
        return Here("ONNX", "by emulation")

    def _fuse(self, model: ir.Model) -> Mapping[str, int]:
        return {}

    def _broken(self) -> tuple[str, ...]:
        # It drops a Relu in front of an FP8 QuantizeLinear, whose least value isn't zero.
        return ("ReluQuantRewrite",)

    def _notes(self) -> tuple[str, ...]:
        return (
            "verified by emulation: ONNX Runtime's CPU kernels compute each quantize and "
            "dequantize as written; its speed on the target was not measured",
        )


class OrtRunner:
    """A session that takes and returns numpy arrays by name."""

    def __init__(
        self, path: Path, threads: int | None = None, without: tuple[str, ...] = ()
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # What Q/DQ should become was decided when the model was built. ONNX Runtime's own rewrite
        # rounds biases, and is wrong for a DequantizeLinear whose scales are gathered.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(without),
            )
        except Exception as error:
            raise ArtifactError(f"{path} can't be opened: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {value.name for value in self._session.get_inputs()}

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        feeds = {name: value for name, value in features.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))


def _versions() -> dict[str, str]:
    import onnx
    import onnxscript

    return {
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
