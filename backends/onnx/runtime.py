"""Opens ONNX files that are for another runtime, by emulation: in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from ...optimizer.runtime import Runner, Runtime
from ..onnxruntime.runtime import OrtRunner
from .files import MODEL, emulated_of, entry_file

#: ONNX Runtime drops a Relu in front of an FP8 QuantizeLinear, whose least value isn't zero.
_WRONG = ("ReluQuantRewrite",)


class EmulatedRuntime(Runtime):
    """Opens the file that the CPU's kernels compute: each Q and DQ as written."""

    name: ClassVar[str] = "onnx"
    refuses: ClassVar[bool] = True

    def emulates(self, files: Collection[str]) -> bool:
        """Always: another runtime is to serve it."""
        return True

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``emulated.onnx`` where there is one, else ``model.onnx``."""
        return emulated(folder / MODEL, threads)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``<entry>.emulated.onnx`` where there is one, else ``<entry>.onnx``."""
        return emulated(entry_file(folder, entry), threads)


def emulated(model: Path | bytes, threads: int | None = None) -> Runner:
    """Opens a model by emulation.

    Args:
        model: Its file, or the model itself.
        threads: How many to use; None leaves it to ONNX Runtime.

    Raises:
        ArtifactError: It can't be opened.
    """
    if isinstance(model, Path) and emulated_of(model).exists():
        model = emulated_of(model)
    return OrtRunner(model, threads, _WRONG)
