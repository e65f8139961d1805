"""Eager PyTorch: the oracle every other backend is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx

from ..optimizer.backend import Backend, Built
from ..optimizer.ir import Program
from ..optimizer.runtime import Arrays
from ..optimizer.target import Target

MODEL = "model"


class Eager(Backend):
    """Saves the program as an exported program, and runs it in PyTorch."""

    name: ClassVar[str] = "eager"
    refuses: ClassVar[bool] = True

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None: it takes everything."""
        return None

    def code_in(self, files: Collection[str]) -> str:
        """A ``.pt2`` is unpickled."""
        return "PyTorch unpickles model.pt2"

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.pt2``."""
        return self.build_beside(MODEL, program, target, folder, metadata)

    def build_beside(
        self,
        entry: str,
        program: Program,
        target: Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> Built:
        """Writes ``<entry>.pt2``."""
        name = f"{entry}.pt2"
        program.save(folder / name)
        return Built((name,), {"torch": torch.__version__})

    def open(self, folder: Path, threads: int | None = None) -> EagerRunner:
        """Loads ``model.pt2``."""
        return self.open_beside(MODEL, folder)

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> EagerRunner:
        """Loads ``<entry>.pt2``."""
        return EagerRunner(Program.load(folder / f"{entry}.pt2", trust_code=True))


class EagerRunner:
    """A program that takes and returns numpy arrays by name."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        tensors = {name: torch.from_numpy(value) for name, value in features.items()}
        return {name: value.numpy() for name, value in self._program.run(tensors).items()}
