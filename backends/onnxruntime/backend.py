"""ONNX Runtime on the CPU: the backend that is always there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir
import onnxruntime

from ...optimizer.runtime import Runner
from ..native import library
from ..native.fusions import fuse_natively
from ..onnx.base import OnnxBackend
from ..onnx.rowwise_linear import outline_rowwise
from .carry import fuse_carry
from .fusions import fuse_for_onnxruntime
from .runtime import OrtRunner, OrtRuntime


class OnnxRuntime(OrtRuntime, OnnxBackend):
    """Builds ONNX with ONNX Runtime's own fused operators, and serves it in process."""

    times: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's, and which native operators are used."""
        return {
            "onnxruntime": onnxruntime.__version__,
            "native operators": library().fingerprint,
        }

    def rewrite(self, model: ir.Model) -> Mapping[str, int]:
        """Fuses what ONNX Runtime, or the native library, has one operator for."""
        rowwise = {"rowwise-linear": outline_rowwise(model)}
        return fuse_for_onnxruntime(model) | fuse_natively(model) | rowwise | fuse_carry(model)

    def run_part(self, model: bytes) -> Runner:
        """Opens a part of a model on one thread."""
        return OrtRunner(model, 1, native=True)

    def notes(self) -> tuple[str, ...]:
        """Why native operators aren't used, where they aren't."""
        found = library()
        if found.path is not None:
            return ()
        return (f"native operators are not used here, which costs speed alone: {found.reason}",)
