"""Standard ONNX, for a runtime that isn't here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import onnxruntime

from ...optimizer.backend import Built, Here
from ...optimizer.ir import Program
from ...optimizer.runtime import Runner
from ...optimizer.target import Target
from .base import OnnxBackend
from .emulation import write_emulated
from .files import emulated_of
from .rowwise_linear import inline_rowwise
from .runtime import EmulatedRuntime, emulated


class PlainOnnx(EmulatedRuntime, OnnxBackend):
    """Builds standard ONNX with explicit Q/DQ, for a runtime that isn't here.

    It is verified by ONNX Runtime's CPU kernels, which compute each Q and DQ as written.
    """

    times: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def here(self, target: Target) -> Here:
        """Always the file; run by emulation."""
        return Here("ONNX", "by emulation")

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's, which verifies it; native operators are never used."""
        return {"onnxruntime": onnxruntime.__version__, "native operators": "none"}

    def rewrite(self, model: ir.Model) -> Mapping[str, int]:
        """Standard operators alone."""
        inline_rowwise(model)
        return {}

    def finish(self, built: Built, program: Program, path: Path) -> Built:
        """Writes ``emulated.onnx`` where the CPU's kernels need other words."""
        if not write_emulated(path, emulated_of(path)):
            return built
        return replace(built, files=(*built.files, emulated_of(path).name))

    def run_part(self, model: bytes) -> Runner:
        """Opens a part of a model on one thread, by emulation."""
        return emulated(model, 1)

    def notes(self) -> tuple[str, ...]:
        """That it is verified by emulation."""
        return (
            "verified by emulation: ONNX Runtime's CPU kernels compute each quantize and "
            "dequantize as written; its speed on the target was not measured",
        )
