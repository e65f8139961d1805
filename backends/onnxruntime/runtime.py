"""Opens ONNX files in ONNX Runtime, on the CPU; imports nothing that builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from ...optimizer.errors import ArtifactError
from ...optimizer.runtime import Arrays, Runner, Runtime
from ..native import library
from ..onnx.files import MODEL, entry_file


class OrtRuntime(Runtime):
    """Opens ``model.onnx``, whose native operators the library computes where it is here."""

    name: ClassVar[str] = "onnxruntime"
    refuses: ClassVar[bool] = True

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``model.onnx``; its data file is mapped into memory, not read."""
        return OrtRunner(folder / MODEL, threads, native=True)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> Runner:
        """Opens ``<entry>.onnx``."""
        return OrtRunner(entry_file(folder, entry), threads, native=True)


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
