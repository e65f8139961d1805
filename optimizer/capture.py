"""Models from wherever they come: a module, a factory's name, a file, a program."""

from __future__ import annotations

import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from .data.batch import call_of, first_inputs
from .data.checks import check_features
from .data.parquet import Parquet
from .data.rows import Split, collect, features_of, split
from .errors import CaptureError, DataError, RankcError
from .ir.program import Program
from .ir.signature import Signature
from .ir.structure import Structure
from .registry import frontend
from .requests.request import check_shared


def capture(
    model: nn.Module | Program | str | Path,
    inputs: Any = None,
    *,
    signature: Signature | None = None,
    outputs: Sequence[str] | None = None,
    trust_code: bool = False,
) -> Program:
    """Captures a model into a program with a dynamic batch.

    Args:
        model: A trained ``nn.Module``, ``"pkg.module:factory"``, a ``.pt2`` or ``.onnx`` file, or
            a program, of which a copy is returned. A module is captured in eval mode; its mode is
            put back.
        inputs: One example: a tuple of arguments, a dict, or a tensor. Not needed for a file, or
            when the model has ``example_inputs()``.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.
        trust_code: Whether a ``.pt2`` file may be opened: it is unpickled, and can do whatever this
            process can.

    Raises:
        CaptureError: What can't be captured, where in the user's code, and what to change.
        SignatureError: The example doesn't fit the model.
    """
    kept = tuple(outputs) if outputs is not None else None
    if _is_file(model):
        return load_program(Path(model), signature, kept, trust_code=trust_code)
    if isinstance(model, Program):
        return frontend().with_contract(model.clone(), signature, kept)  # type: ignore[no-any-return]
    module = resolve(model) if isinstance(model, str) else model
    program: Program = frontend().capture(module, inputs, signature=signature, outputs=kept)
    return program


def _is_file(model: Any) -> TypeGuard[str | Path]:
    """Whether a model is a path: text with a colon names a factory, unless it is a file's."""
    if isinstance(model, Path):
        return True
    return isinstance(model, str) and (
        ":" not in model or (model.endswith((".pt2", ".onnx")) and Path(model).is_file())
    )


def _blame_inputs(model: nn.Module, inputs: Any) -> None:
    """Raises if a capture failed for what the example holds, rather than for the model.

    A model that can be captured on its own example, or on zeros, has a signature to hold the
    inputs against.

    Raises:
        SignatureError: Which feature has a wrong name, dtype, shape or ids.
        DataError: Which feature is NaN or Inf.
    """
    if inputs is None:
        return
    capture = frontend()
    own = getattr(model, "example_inputs", None)
    try:
        example = own() if callable(own) else _zeros(capture.forward_arguments(model), inputs)
        program: Program = capture.capture(model, example)
    except Exception:  # the model is to blame, and the first error says how
        return
    check_features(program.signature, features_of(program, inputs))


def _zeros(arguments: tuple[str, ...], inputs: Any) -> Any:
    """The same inputs with every number zero, which is a valid id of any table."""
    call = call_of(arguments, inputs)
    structure = Structure.of(call, "input", lambda v: isinstance(v, (Tensor, np.ndarray)))
    leaves = {name: torch.as_tensor(v) for name, v in structure.flatten(call).items()}
    return structure.unflatten({name: torch.zeros_like(v) for name, v in leaves.items()})


def resolve(place: str) -> nn.Module:
    """The model that ``pkg.module:factory`` names: a module, or what a function returns.

    Raises:
        CaptureError: It can't be imported, or gives no module.
    """
    module_name, _, attribute = place.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise CaptureError(f"{place!r} can't be imported: {error}") from error
    if callable(found) and not isinstance(found, nn.Module):
        missing = _required(found)
        if missing:
            raise CaptureError(
                f"{place!r} needs arguments ({', '.join(missing)}), and is called without any. "
                "Name a function that takes none and calls it with what it needs."
            )
        found = found()
    if isinstance(found, nn.Module):
        return found
    hint = " Return the class's instance." if isinstance(found, type) else ""
    if isinstance(found, tuple) and any(isinstance(part, nn.Module) for part in found):
        hint = " Return the model alone; its example_inputs() method gives an example."
    raise CaptureError(f"{place!r} gives a {type(found).__name__}, not a torch.nn.Module.{hint}")


def _required(factory: Callable[..., Any]) -> list[str]:
    """The arguments a factory can't be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # of a class in C, which may take none
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in several]


def load_program(
    path: Path,
    signature: Signature | None = None,
    outputs: tuple[str, ...] | None = None,
    *,
    trust_code: bool = False,
) -> Program:
    """The program in a ``.pt2`` or ``.onnx`` file.

    Args:
        path: The file.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.
        trust_code: Whether a ``.pt2`` file may be opened: it is unpickled, and can do whatever this
            process can.

    Raises:
        CaptureError: The file is missing, holds no program, or one that can't be captured; or it
            may hold code and isn't trusted.
    """
    if not path.is_file():
        raise CaptureError(
            f"{path} is not a file; a model is a module, pkg.module:factory, .pt2 or .onnx"
        )
    suffix = path.suffix.lower()
    if suffix not in (".pt2", ".onnx"):
        raise CaptureError(
            f"{path} is no .pt2 file, nor .onnx; save the program with Program.save or "
            "torch.export.save, or the model with torch.onnx.export."
        )
    if suffix == ".pt2" and not zipfile.is_zipfile(path):
        raise CaptureError(
            f"{path} is damaged, or no file of Program.save or torch.export.save: it is no archive."
        )
    if suffix == ".pt2" and not trust_code:
        raise CaptureError(
            f"{path} may hold code: PyTorch unpickles a .pt2, which runs whatever its author put "
            "in. If you made it or trust who did, give trust_code=True (--trust-code on the "
            "command line); an .onnx file holds no code."
        )
    try:
        program: Program = frontend(suffix).load(path, signature=signature, outputs=outputs)
    except RankcError:
        raise
    except Exception as error:  # files come from anywhere, and libraries trust them
        first = (str(error).strip() or repr(error)).split("\n", 1)[0][:300]
        raise CaptureError(
            f"{path} can't be captured, it may be damaged: {type(error).__name__}: {first}"
        ) from error
    return program


def given_rows(program: Program, model: Any, inputs: Any) -> dict[str, Tensor] | None:
    """The features of the user's example, by name; None where there is none.

    Args:
        program: What was captured.
        model: What it was captured from; it may make an example itself.
        inputs: The example.

    Raises:
        SignatureError: It doesn't fit the program.
    """
    make = getattr(model, "example_inputs", None) if isinstance(model, nn.Module) else None
    if inputs is None and make is not None:
        inputs = make() if callable(make) else make
    return features_of(program, inputs) if inputs is not None else None


def captured(
    model: nn.Module | Program | str | Path,
    data: Any,
    inputs: Any,
    signature: Signature | None,
    outputs: Sequence[str] | None,
    trust_code: bool = False,
) -> tuple[Program, Any]:
    """The captured program, and the data with whatever batch was looked at still in it."""
    kept = tuple(outputs) if outputs is not None else None
    if _is_file(model):
        return load_program(Path(model), signature, kept, trust_code=trust_code), data
    if isinstance(model, Program):
        return capture(model, signature=signature, outputs=outputs), data
    module = resolve(model) if isinstance(model, str) else model
    if not isinstance(module, nn.Module):
        raise CaptureError(
            f"a model is a torch.nn.Module, got {type(module).__name__}. "
            "Wrap a function in a module whose forward calls it."
        )
    frontend_of_modules = frontend()
    if inputs is None and data is not None and not isinstance(data, (str, Path, Parquet)):
        inputs, data = first_inputs(data, frontend_of_modules.forward_arguments(module))
    try:
        program: Program = frontend_of_modules.capture(
            module, inputs, signature=signature, outputs=kept
        )
    except (CaptureError, DataError):
        _blame_inputs(module, inputs)
        raise
    return program, data


def rows_of(
    program: Program,
    data: Any,
    calibration: Iterable[Any] | None,
    shared: Sequence[str],
) -> Split | None:
    """The rows that calibrate, choose and prove; None without data.

    Args:
        program: What they are for.
        data: As `optimize` takes it.
        calibration: Rows to calibrate on, if they are given apart.
        shared: Features that the candidates of a request have in common.

    Raises:
        DataError: Rows that can't be used; which, and where first.
    """
    if data is None:
        if calibration is not None:
            raise DataError("calibration rows alone prove nothing; give data= as well.")
        return None
    if isinstance(data, (str, Path)):
        data = Parquet(data)
    if isinstance(data, Parquet):
        data = data.batches(program)
    apart = collect(calibration, program) if calibration is not None else None
    rows = collect(data, program)
    check_shared(rows, shared)
    return split(rows, apart)
