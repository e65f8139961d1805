"""ONNX Runtime on the CPU: the backend that is always there."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.utils
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, fx

from ...optimizer.backend import Arrays, Backend, Built, Here, Runner
from ...optimizer.errors import ArtifactError, UnsupportedError
from ...optimizer.ir import Program
from ...optimizer.ir.scratch import Scratch
from ...optimizer.target import Target
from ...optimizer.timing import side_by_side
from ..native import library
from ..native.fusions import fuse_natively
from ..onnx.double import without_kernel
from ..onnx.emulation import EMULATED, write_emulated
from ..onnx.rowwise_linear import inline_rowwise, outline_rowwise
from ..onnx.translate import save_onnx, share_data, to_onnx
from .carry import fuse_carry
from .fusions import fuse_for_onnxruntime

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
    times: ClassVar[bool] = True
    refuses: ClassVar[bool] = True
    #: Whether its files have native operators, for which a session needs their library to be fast.
    _native: ClassVar[bool] = True

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's, and which native operators are used."""
        operators = library().fingerprint if self._native else "none"
        return {"onnxruntime": onnxruntime.__version__, "native operators": operators}

    def seconds_apart(
        self,
        program: Program,
        target: Target,
        features: Mapping[str, Tensor],
        rows: Mapping[str, Sequence[int]],
    ) -> dict[str, dict[int, float]]:
        """Builds once, cuts the model apart, and times each part interleaved over its rows."""
        with Scratch() as place:
            self.build(program, target, place, {})
            whole = onnx.load(place / MODEL)
        extractor = onnx.utils.Extractor(whole)
        found = {}
        for name, output in zip(program.signature.names, program.signature.outputs, strict=True):
            part = extractor.extract_model([name], [output])
            runner = self._run_part(part.SerializeToString())
            array = features[name].numpy()
            calls = {
                str(count): partial(runner, {name: np.ascontiguousarray(array[:count])})
                for count in dict.fromkeys(rows[name])
            }
            timed = side_by_side(calls, rounds=7, seconds=0.004, clock=time.process_time)
            found[name] = {int(count): timing.median for count, timing in timed.items()}
        return found

    def _run_part(self, model: bytes) -> Runner:
        return OrtRunner(model, 1, self._broken(), native=self._native)

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None, or why the node has no form."""
        return _REFUSED.get(node.target) or without_kernel(node)

    def lacks(self, program: Program) -> str:
        """Why ONNX has no form for it."""
        try:
            to_onnx(program)
        except UnsupportedError as error:
            return str(error)
        return ""

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.onnx``."""
        return self._write(program, target, folder / MODEL, metadata)

    def build_beside(
        self,
        entry: str,
        program: Program,
        target: Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> Built:
        """Writes ``<entry>.onnx``, which reads what it can from ``model.onnx.data``."""
        path = folder / f"{entry}.onnx"
        built = self._write(program, target, path, metadata)
        if not (folder / MODEL).exists():
            return built
        return replace(built, files=share_data(path, folder / MODEL))

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``model.onnx``; its data file is mapped into memory, not read."""
        return OrtRunner(folder / MODEL, threads, self._broken(), native=self._native)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``<entry>.onnx``."""
        path = folder / f"{entry}.onnx"
        return OrtRunner(path, threads, self._broken(), native=self._native)

    def _write(
        self, program: Program, target: Target, path: Path, metadata: Mapping[str, str]
    ) -> Built:
        self.require(program, target)
        model = to_onnx(program)
        fused = self._fuse(model)
        files = save_onnx(model, path, metadata)
        return Built(files, _versions(), self._notes(), fused)

    def _broken(self) -> tuple[str, ...]:
        return ()

    def _fuse(self, model: ir.Model) -> Mapping[str, int]:
        rowwise = {"rowwise-linear": outline_rowwise(model)}
        return fuse_for_onnxruntime(model) | fuse_natively(model) | rowwise | fuse_carry(model)

    def _notes(self) -> tuple[str, ...]:
        found = library()
        if found.path is not None:
            return ()
        return (f"native operators are not used here, which costs speed alone: {found.reason}",)


class PlainOnnx(OnnxRuntime):
    """Builds standard ONNX with explicit Q/DQ, for a runtime that isn't here.

    It is verified by ONNX Runtime's CPU kernels, which compute each Q and DQ as written.
    """

    name: ClassVar[str] = "onnx"
    _native: ClassVar[bool] = False

    def here(self, target: Target) -> Here:
        """Always the file; run by emulation."""
        return Here("ONNX", "by emulation")

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.onnx``, and ``emulated.onnx`` where the CPU's kernels need other words."""
        built = super().build(program, target, folder, metadata)
        return self._emulated(built, folder / MODEL, folder / EMULATED)

    def build_beside(
        self,
        entry: str,
        program: Program,
        target: Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> Built:
        """Writes ``<entry>.onnx``, and ``<entry>.emulated.onnx`` where need be."""
        built = super().build_beside(entry, program, target, folder, metadata)
        return self._emulated(built, folder / f"{entry}.onnx", folder / f"{entry}.{EMULATED}")

    def emulates(self, files: Collection[str]) -> bool:
        """Always: another runtime is to serve it."""
        return True

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens the file that the CPU's kernels compute."""
        return self._open(folder / MODEL, folder / EMULATED, threads)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> Runner:
        """Opens the entry's file that the CPU's kernels compute."""
        return self._open(folder / f"{entry}.onnx", folder / f"{entry}.{EMULATED}", threads)

    def _open(self, path: Path, emulated: Path, threads: int | None) -> Runner:
        return OrtRunner(emulated if emulated.exists() else path, threads, self._broken())

    def _emulated(self, built: Built, path: Path, emulated: Path) -> Built:
        if not write_emulated(path, emulated):
            return built
        return replace(built, files=(*built.files, emulated.name))

    def _fuse(self, model: ir.Model) -> Mapping[str, int]:
        inline_rowwise(model)
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
    """A session that takes and returns numpy arrays by name.

    Args:
        model: Its file, or the model itself.
        threads: How many to use; None leaves it to ONNX Runtime.
        without: ONNX Runtime's optimizers that are wrong for the model.
        native: Whether to compute native operators with the library, if there is one.
    """

    def __init__(
        self,
        model: Path | bytes,
        threads: int | None = None,
        without: tuple[str, ...] = (),
        *,
        native: bool = False,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        # What Q/DQ should become was decided when the model was built. ONNX Runtime's own rewrite
        # rounds biases, and is wrong for a DequantizeLinear whose scales are gathered.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        operators = library().path if native else None
        if operators is not None:
            options.register_custom_ops_library(str(operators))
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(without),
            )
        except Exception as error:
            name = "the model" if isinstance(model, bytes) else model
            raise ArtifactError(f"{name} can't be opened: {error}") from error
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
