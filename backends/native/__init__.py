"""Native operators for ONNX Runtime, where this installation has them.

A library of custom operators in the domain ``rankc``, built with the package if there is a compiler
(``setup.py``). Model files name them as functions with a body of standard operators, so that ONNX
Runtime takes the kernel where the library is registered, and the body where it isn't.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .trial import MODEL

#: Of the operators, in model files.
DOMAIN = "rankc"


@dataclass(frozen=True)
class Library:
    """The library, or why there is none.

    Attributes:
        path: What ONNX Runtime loads; None if it isn't to be used.
        reason: Why it isn't to be used.
    """

    path: Path | None
    reason: str = ""

    @property
    def fingerprint(self) -> str:
        """Tells one build of the library from another."""
        if self.path is None:
            return "none"
        return hashlib.blake2b(self.path.read_bytes(), digest_size=6).hexdigest()

    def limit(self, level: int) -> int:
        """Limits the instruction set of sessions opened from now on: 0 any, 1 AVX2, 2 AVX512.

        Returns:
            The set in use, which is the best the CPU has at most.
        """
        if self.path is None:
            return 0
        return int(ctypes.CDLL(str(self.path)).rankc_limit(level))


@cache
def library() -> Library:
    """This installation's library, tried out once a process."""
    found = sorted(Path(__file__).parent.glob("operators*.so"))
    if not found:
        return Library(None, "it was not built: there was no C++ compiler when rankc was installed")
    try:
        _try_out(found[0])
    except Exception as error:
        import logging  # slow to import, and hardly ever needed

        logging.getLogger(__name__).warning("native operators are not used: %s", error)
        return Library(None, f"it fails here: {error}")
    return Library(found[0])


def _try_out(path: Path) -> None:
    """Raises unless ONNX Runtime loads the library and it computes what numpy does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(path))
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray[Any, Any]] = {
        "dense": np.array([[1, 2, 3], [-2, 0.5, 4]], np.float32),
        "ids": np.array([[0, 3, 1], [2, 2, -2]]),
        "codes": np.arange(12, dtype=np.uint8).reshape(4, 3) * 20,
        "scales": np.array([[0.5, 1], [0.25, -3], [0.125, 0], [1, -200]], np.float32),
    }
    rows = feeds["codes"] * feeds["scales"][:, :1] + feeds["scales"][:, 1:]
    dense, ids = feeds["dense"], feeds["ids"]
    bag = (rows[ids[:, 0]] + rows[ids[:, 1]]) / 2
    dots = (dense * bag).sum(1, keepdims=True)
    expected = np.concatenate([dense, dots, rows[ids[:, 2] + 1]], 1)
    rounded = np.clip(np.rint(expected / np.float32(0.25)) + 100, 0, 255)
    got = session.run(None, feeds)
    # Every number here is exact in float32, whatever the order of the sums.
    if not (np.array_equal(got[0], expected) and np.array_equal(got[1], rounded)):
        raise RuntimeError("its results differ from numpy's")
