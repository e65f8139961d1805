"""Opens TensorRT artifacts: an engine on its GPU, or the ONNX file by emulation."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from ...optimizer.runtime import Runner
from ..onnx.files import MODEL
from ..onnx.runtime import EmulatedRuntime

ENGINE = "model.engine"


class TensorRTRuntime(EmulatedRuntime):
    """Opens the engine where there are one and a GPU, and the ONNX file elsewhere.

    Engines' buffers are torch's, and torch finds the GPU; without an engine it isn't imported.
    """

    name: ClassVar[str] = "tensorrt"

    def code_in(self, files: Collection[str]) -> str:
        """An engine is machine code of a GPU; the ONNX file alone is none."""
        return f"{ENGINE} is compiled code, which TensorRT loads" if ENGINE in files else ""

    def emulates(self, files: Collection[str]) -> bool:
        """Unless there are an engine and a GPU."""
        return ENGINE not in files or _sm() is None

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens the engine where there is a GPU, and the ONNX file elsewhere."""
        sm = _sm() if (folder / ENGINE).exists() else None
        if sm is None:
            return super().open(folder, threads)
        import onnx_ir as ir

        from .engine import EngineRunner

        return EngineRunner(folder, ir.load(folder / MODEL), sm)


def _sm() -> int | None:
    """The compute capability of the GPU that is here."""
    from ..inductor.gpu_kernels import gpu_sm

    return gpu_sm()
