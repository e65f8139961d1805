"""Holding a captured program against the file it was read from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..optimizer.errors import CaptureError
from ..optimizer.ir import Program

#: The batches a program is held against its file at, before anything else happens.
BATCHES = (1, 3, 64)
#: How far a score may be off, as a share of the largest.
TOLERANCE = 1e-4


def compare(where: str, name: str, got: Tensor, want: Tensor, size: int) -> None:
    """Raises unless scores agree.

    Raises:
        CaptureError: Which output differs at which batch, and by how much.
    """
    wide, other = got.double(), want.double()
    known = other[other.isfinite()]
    scale = max(float(known.abs().max()), 1e-6) if known.numel() else 1e-6
    same = wide.shape == other.shape and torch.allclose(
        wide, other, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True
    )
    if not same:
        raise CaptureError(
            f"the captured program scores differently from {where} at batch {size}: output "
            f"{name!r} {list(got.shape)} is {got.flatten()[:3].tolist()}, the file gives "
            f"{list(want.shape)} {want.flatten()[:3].tolist()}. This is a fault of rankc's; "
            "capture the torch model itself."
        )


def check_rows(program: Program, feeds: Mapping[str, Tensor]) -> None:
    """Raises if a row's score depends on the other rows.

    Raises:
        CaptureError: Which output does.
    """
    placeholders = program.graph.find_nodes(op="placeholder")
    if len({str(node.meta["val"].shape[0]) for node in placeholders}) > 1:
        return  # ids and lengths: rows can't be cut out
    whole, few = program.run(feeds), program.run({name: v[:3] for name, v in feeds.items()})
    for name, score in few.items():
        scale = max(float(whole[name].double().abs().nan_to_num().max()), 1e-6)
        near = score.shape == whole[name][:3].shape and torch.allclose(
            score.double(), whole[name][:3].double(), rtol=0, atol=TOLERANCE * scale, equal_nan=True
        )
        if not near:
            raise CaptureError(
                f"output {name!r} of a row depends on the other rows of the batch. A score must "
                "depend on its own row alone; take means over the batch out of the model."
            )
