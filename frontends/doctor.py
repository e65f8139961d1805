"""Why a capture failed: the line in the user's code, the construct, and what to change."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..optimizer.errors import CaptureError

_OWN = Path(__file__).parents[1]
_PACKAGES = Path(torch.__file__).parents[1]
#: Where frames that aren't the user's come from; ``<`` is generated code.
_LIBRARIES = (
    "<",
    *(f"{_OWN / name}/" for name in ("frontends", "optimizer")),
    *(f"{_PACKAGES / name}/" for name in ("torch", "networkx", "sympy", "numpy")),
)


@dataclass(frozen=True)
class Ailment:
    """A construct that can't be captured.

    Attributes:
        sign: A regular expression found in the error.
        construct: What it is.
        remedy: A change that would work.
    """

    sign: str
    construct: str
    remedy: str


FIXED_BATCH = Ailment(
    r"is not a constant|constant.*batch|specialized|marked batch as dynamic|"
    r"Constraints violated",
    "an operation that fixes the batch size",
    "use x.shape[0] instead of a number, and -1 in view and reshape",
)

AILMENTS = (
    Ailment(
        r"GuardOnDataDependentSymNode|data-dependent|"
        r"symbolically traced variables cannot be used as inputs to control flow",
        "control flow that depends on a tensor's values",
        "compute both sides and choose per row with torch.where, or decide by a Python constant",
    ),
    FIXED_BATCH,
    Ailment(
        r"\.numpy\(\)|numpy",
        "numpy inside forward",
        "use the torch function of the same name; precompute constants in __init__ as buffers",
    ),
    Ailment(
        r"\.item\(\)|_local_scalar_dense|Cannot convert symbols? to int",
        "a tensor turned into a Python number",
        "keep it a tensor, or compute it in __init__",
    ),
    Ailment(
        r"nested",
        "a NestedTensor",
        "pass values and lengths, or values and offsets, as two tensors",
    ),
    Ailment(
        r"pack_padded_sequence|_pack_padded",
        "packed sequences",
        "run the recurrent layer on the padded sequence and mask its output",
    ),
)


def diagnose(error: BaseException, model: nn.Module) -> CaptureError:
    """A capture failure as a message a user can act on."""
    text = f"{type(error).__name__}: {error}"
    where = user_line(error)
    ailment = next((a for a in AILMENTS if re.search(a.sign, text, re.IGNORECASE)), None)
    name = type(model).__name__
    first = str(error).strip().split("\n", 1)[0]
    if ailment is None:
        message = f"{name} can't be captured{where}: {type(error).__name__}: {first}"
    else:
        message = (
            f"{name} can't be captured{where}: {ailment.construct}. "
            f"What to change: {ailment.remedy}. ({first})"
        )
    return CaptureError(message)


def user_line(error: BaseException) -> str:
    """`` at file:line`` and the source of the innermost frame outside torch and rankc."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not is_library(frame.filename):
            source = f" `{frame.line}`" if frame.line else ""
            return f" at {frame.filename}:{frame.lineno}{source}"
    for found in reversed(re.findall(r'File "([^"]+)", line (\d+)', str(error))):
        if not is_library(found[0]):
            return f" at {found[0]}:{found[1]}"
    return ""


def is_library(filename: str) -> bool:
    """Whether a frame is torch's or rankc's own, not the user's."""
    return filename.startswith(_LIBRARIES)
