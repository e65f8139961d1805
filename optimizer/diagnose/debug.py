"""`debug`: why an optimized model scores differently, site by site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact.artifact import Artifact
from ..capture import captured
from ..compare.lockstep import Diagnosis, compare, shifts
from ..compare.ordinary import ordinary
from ..data.checks import check_features
from ..data.parquet import Parquet
from ..data.rows import Rows, collect
from ..errors import ArtifactError, DataError
from ..ir.program import Program, with_defaults
from ..registry import backend, frontend

_ROWS = 512


def debug(
    model: nn.Module | Program | str | Path,
    against: Program | Artifact | str | Path,
    data: Iterable[Any] | Parquet | str | Path | None = None,
    *,
    inputs: Any = None,
    rows: int = _ROWS,
    trust_code: bool = False,
) -> Diagnosis:
    """Runs a model and what became of it in lock-step, and tells where their scores part.

    Args:
        model: The original, as `optimize` takes it.
        against: What became of it: an artifact, its folder, or a program.
        data: Rows, as `optimize` takes them; labels aren't needed. Made up when None.
        inputs: One example, as the model takes it, where it needs one.
        rows: How many rows are run, at most.
        trust_code: Whether a ``.pt2`` file, or an artifact that holds code, may be opened: it can
            do whatever this process can.

    Raises:
        CaptureError: The model, or the artifact's graph, can't be captured.
        DataError: Rows that don't fit both models, or two models without an output in common.
        ArtifactError: The folder is no artifact, or its backend kept no graph that can be read.
    """
    original, data = captured(model, data, inputs, None, None, trust_code)
    if isinstance(against, (str, Path)):
        against = Artifact.load(against, trust_code=trust_code)
    artifact = against
    program = artifact if isinstance(artifact, Program) else program_of(artifact)
    shared = set(original.signature.outputs) & set(program.signature.outputs)
    if not shared:
        raise DataError(
            f"the two models have no output in common: {list(original.signature.outputs)} and "
            f"{list(program.signature.outputs)}. Is the second made from the first?"
        )
    features = _some(original, data, rows).features
    _check_fits(program, features)
    found = compare(original, program, features)
    if isinstance(artifact, Program):
        return found
    served = {name: torch.as_tensor(value) for name, value in artifact.run(features).items()}
    notes: tuple[str, ...] = ()
    if artifact.manifest.fingerprints["captured"] != original.fingerprint():
        notes = (
            "the artifact was made from another program: are these the weights it was made of?",
        )
    return replace(found, runtime=shifts(program.run(features), served), notes=notes)


def program_of(artifact: Artifact) -> Program:
    """The program in an artifact's files.

    Raises:
        ArtifactError: Its backend wrote no graph that can be read back.
    """
    exported, onnx = (artifact.folder / f"model.{suffix}" for suffix in ("pt2", "onnx"))
    # A .pt2 is only opened where opening the artifact did: other backends' folders may be foreign.
    files = tuple(artifact.manifest.files)
    if exported.is_file() and backend(artifact.manifest.backend).code_in(files):
        return Program.load(exported, trust_code=True)
    if onnx.is_file():
        program: Program = frontend(".onnx").load(onnx, checked=False)
        return program
    raise ArtifactError(
        f"the {artifact.manifest.backend} backend writes no graph that can be read back; debug the "
        "program before lowering (rankc.Pipeline), or another backend's artifact."
    )


def _check_fits(program: Program, features: Mapping[str, Tensor]) -> None:
    """Raises unless rows of the original are rows of the other model too.

    Raises:
        DataError: Which feature doesn't fit, and what would.
    """
    why = _unfit(program, with_defaults(program.signature, features))
    if why:
        raise DataError(
            f"rows of the first model don't fit the second: {why} Where it was made from the "
            "first, data= may give rows that both take."
        )


def _unfit(program: Program, features: Mapping[str, Tensor]) -> str:
    """Why features are no rows of a program; empty where they are."""
    lacking = [name for name in program.signature.names if name not in features]
    if lacking:
        return f"it takes {lacking}, which the first doesn't have."
    try:
        check_features(program.signature, features)
    except DataError as error:
        return str(error)
    return ""


def _some(program: Program, data: Any, count: int) -> Rows:
    if data is None:
        return ordinary(program, count)
    if isinstance(data, (str, Path)):
        data = Parquet(data)
    if isinstance(data, Parquet):
        data = data.batches(program)
    return collect(data, program, count).part(0, count)
