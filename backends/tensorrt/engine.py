"""A TensorRT engine on the GPU it was built for: what it is, whether it fits, and running it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ...optimizer.errors import ArtifactError, SignatureError
from ...optimizer.report.report import readable_bytes
from ...optimizer.runtime import Arrays
from .rules import LIBRARIES
from .runtime import ENGINE

FACTS = "engine.json"


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built with, and what it takes.

    Attributes:
        library: The package that built it, and the only one that reads it.
        version: Of that package; another version doesn't read it.
        sm: The compute capability it was built for.
        batches: The smallest, the best and the largest batch.
        tables: Weights that are inputs of the engine, so that it doesn't hold a copy of them.
    """

    library: str
    version: str
    sm: int
    batches: tuple[int, int, int]
    tables: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Writes them beside the engine."""
        (folder / FACTS).write_text(json.dumps(vars(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> EngineFacts:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: The file is damaged.
        """
        try:
            data = json.loads((folder / FACTS).read_text())
            data["batches"], data["tables"] = tuple(data["batches"]), tuple(data["tables"])
            return cls(**data)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder / FACTS} is damaged or foreign: {error!r}") from error

    def require(self, sm: int, installed: Mapping[str, str]) -> None:
        """Raises unless this machine reads the engine.

        Args:
            sm: The GPU's compute capability times ten.
            installed: The version of each TensorRT package that is here.

        Raises:
            ArtifactError: It is for another GPU or library.
        """
        again = "Run `rankc build FOLDER` on this machine to build it anew."
        if sm != self.sm:
            raise ArtifactError(
                f"the engine was built for SM{self.sm}, and this GPU is SM{sm}. {again}"
            )
        version = installed.get(self.library)
        if version is None:
            pip = next(lib.pip for lib in LIBRARIES if lib.module == self.library)
            raise ArtifactError(
                f"the engine was built by {self.library} {self.version}, which isn't installed: "
                f"{pip}"
            )
        if version != self.version:
            raise ArtifactError(
                f"the engine was built by {self.library} {self.version}, and {version} is "
                f"installed; an engine is read by the version that built it only. {again}"
            )

    def require_batch(self, rows: int) -> None:
        """Raises if the profile doesn't have a batch of that size.

        Raises:
            SignatureError: What it has, and how to get more.
        """
        low, _, high = self.batches
        if not low <= rows <= high:
            raise SignatureError(
                f"a batch of {rows:,} rows is outside the engine's profile, {low:,} to {high:,}. "
                f"Cut it into batches of at most {high:,}, or optimize with batch_sizes=(…, {rows})"
            )


@dataclass(frozen=True)
class Memory:
    """Device memory an engine takes.

    Attributes:
        weights: Bytes of engine and tables, whatever the batch.
        activations: Bytes at the largest batch.
    """

    weights: int
    activations: int

    def require(self, free: int, largest: int) -> None:
        """Raises if it doesn't fit.

        Args:
            free: Bytes of device memory that are free.
            largest: The profile's largest batch.

        Raises:
            ArtifactError: What is needed, what is free, and what would fit.
        """
        if self.weights + self.activations <= free:
            return
        said = (
            f"out of device memory: the weights take {readable_bytes(self.weights)}, a batch of "
            f"{largest:,} another {readable_bytes(self.activations)}, and "
            f"{readable_bytes(free)} are free. "
        )
        room = free - self.weights
        fits = largest * room // max(self.activations, 1)
        if fits >= 1:
            raise ArtifactError(
                said + f"A batch of {fits:,} would fit: optimize with batch_sizes=({fits},)"
            )
        raise ArtifactError(
            said + "No batch would fit: a target with INT8 tables takes a quarter of fp32's bytes, "
            "or take a GPU with more memory."
        )


def installed_versions() -> dict[str, str]:
    """The version of each TensorRT package that is here."""
    return {lib.module: lib.load().__version__ for lib in LIBRARIES if lib.installed()}


class EngineRunner:
    """An engine that takes and returns numpy arrays by name; buffers are torch's."""

    def __init__(self, folder: Path, model: ir.Model, sm: int) -> None:
        self._facts = EngineFacts.load(folder)
        self._facts.require(sm, installed_versions())
        library = next(lib for lib in LIBRARIES if lib.module == self._facts.library).load()
        serialized = (folder / ENGINE).read_bytes()
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(serialized)
        if engine is None:
            raise ArtifactError(f"{folder / ENGINE} can't be read by {self._facts.library}")
        tables = {name: model.graph.initializers[name] for name in self._facts.tables}
        nbytes = sum(value.const_value.nbytes for value in tables.values() if value.const_value)
        activations = int(
            getattr(engine, "device_memory_size_v2", getattr(engine, "device_memory_size", 0))
        )
        free, _ = torch.cuda.mem_get_info()
        # The engine's own weights are on the device already.
        Memory(nbytes, activations).require(free, self._facts.batches[2])
        self._tables = {
            name: _on_device(value.const_value.numpy())
            for name, value in tables.items()
            if value.const_value is not None
        }
        self._outputs = [value.name for value in model.graph.outputs if value.name]
        self._dtypes = {
            name: getattr(torch, np.dtype(library.nptype(engine.get_tensor_dtype(name))).name)
            for name in self._outputs
        }
        self._kept = (runtime, engine)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ArtifactError("TensorRT made no execution context; device memory may be full")

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        self._facts.require_batch(len(next(iter(features.values()))))
        inputs = {name: _on_device(value) for name, value in features.items()} | self._tables
        for name, tensor in inputs.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        found: dict[str, Tensor] = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            found[name] = torch.empty(shape, dtype=self._dtypes[name], device="cuda")
            self._context.set_tensor_address(name, found[name].data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ArtifactError("TensorRT could not run the engine; its own message is above")
        stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}


def _on_device(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()
