"""What the files of ONNX backends are called."""

from __future__ import annotations

from pathlib import Path

#: The model; what it holds of tensors is in ``model.onnx.data``.
MODEL = "model.onnx"
#: The same scores as ``model.onnx``, over the same data file.
EMULATED = "emulated.onnx"


def entry_file(folder: Path, entry: str) -> Path:
    """The file of a program beside the model."""
    return folder / f"{entry}.onnx"


def emulated_of(path: Path) -> Path:
    """What a model's CPU form is called: ``emulated.onnx``, or ``<entry>.emulated.onnx``."""
    return path.with_name(EMULATED if path.name == MODEL else f"{path.stem}.{EMULATED}")
