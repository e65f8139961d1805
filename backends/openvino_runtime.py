"""Opens ONNX files in OpenVINO, on the CPU; imports nothing that builds them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..optimizer.errors import ArtifactError
from ..optimizer.formats import BF16, FP32
from ..optimizer.runtime import Arrays, Runtime
from .onnx.files import MODEL, entry_file

FACTS = "openvino.json"
#: OpenVINO's own names of the precision that everything is computed in that has no codes.
_PRECISIONS = {FP32.word: "f32", BF16.word: "bf16"}


class OpenVinoRuntime(Runtime):
    """Compiles ``model.onnx`` as it opens it, in the precision that ``openvino.json`` says."""

    name: ClassVar[str] = "openvino"
    refuses: ClassVar[bool] = True

    def open(self, folder: Path, threads: int | None = None) -> OpenVinoRunner:
        """Compiles ``model.onnx``."""
        return opened(folder / MODEL, threads)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> OpenVinoRunner:
        """Compiles ``<entry>.onnx``."""
        return opened(entry_file(folder, entry), threads)


def opened(path: Path, threads: int | None) -> OpenVinoRunner:
    """Compiles a model's file.

    Raises:
        ArtifactError: OpenVINO doesn't take it, or what lies beside it is damaged.
    """
    facts = path.with_name(FACTS)
    try:
        precision = json.loads(facts.read_text())["precision"]
    except (OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"{facts} is damaged or foreign: {error!r}") from error
    return OpenVinoRunner(path, precision, threads)


class OpenVinoRunner:
    """A compiled model that takes and returns numpy arrays by name."""

    def __init__(self, model: Path | bytes, precision: str, threads: int | None = None) -> None:
        openvino = openvino_package()
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


def openvino_package() -> Any:
    """The package; its telemetry is not asked for anything."""
    return importlib.import_module("openvino")


def _output_names(model: Path | bytes) -> list[str]:
    """What the file calls its outputs; OpenVINO knows them by other names as well."""
    import onnx  # slow to import, and only this runtime needs it

    if isinstance(model, bytes):
        proto = onnx.ModelProto.FromString(model)
    else:
        proto = onnx.load(model, load_external_data=False)
    return [value.name for value in proto.graph.output]
