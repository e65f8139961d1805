"""What opens what a backend built, and runs it: all of a backend that serving takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from .errors import ArtifactError

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Runner(Protocol):
    """An opened artifact: feature arrays by name in, output arrays by name out."""

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""


class Runtime(ABC):
    """Opens what a backend built.

    A backend is one itself. Where it takes torch or a compiler to build and neither to run, it has
    this part in a file of its own, so that an artifact opens without them.
    """

    name: ClassVar[str]
    #: Whether what was built refuses ids beyond their tables; else they are checked before it runs.
    refuses: ClassVar[bool] = False

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None) -> Runner:
        """Opens what `Backend.build` wrote.

        Args:
            folder: Where it is.
            threads: How many to use; None leaves it to the runtime.

        Raises:
            ArtifactError: The files can't be read.
        """

    def open_beside(self, entry: str, folder: Path, threads: int | None = None) -> Runner:
        """Opens what `Backend.build_beside` wrote.

        Raises:
            ArtifactError: The files can't be read.
        """
        raise ArtifactError(f"{self.name} has no entry {entry!r} in {folder}")

    def code_in(self, files: Collection[str]) -> str:
        """What of an artifact's files is code that `open` would run; empty where they are data.

        Args:
            files: That the artifact's manifest lists.
        """
        return ""

    def emulates(self, files: Collection[str]) -> bool:
        """Whether `open` computes them on the CPU in place of the device they are for.

        Args:
            files: That the artifact's manifest lists.
        """
        return False
