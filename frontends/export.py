"""Capture: from an ``nn.Module`` to a `Program`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from ..optimizer.data.batch import call_of
from ..optimizer.data.delimiters import Ragged
from ..optimizer.errors import CaptureError, DataError
from ..optimizer.ir import Form, Program, Signature
from ..optimizer.ir.infer import infer_signature, judged_in_part
from ..optimizer.ir.program import flatten_exported
from ..optimizer.ir.structure import Structure
from ..optimizer.ir.torchapi import plain_transformers, silenced, stacks_of
from .check_scores import DiffersError, check_agreement
from .composites import Recordable
from .constants import constant_weights, numbers_of
from .contract import with_contract
from .decompose import to_core
from .dropout import without_dropout
from .example import (
    arguments_by_place,
    example_of,
    example_tensors,
    forward_arguments,
    short_names,
    unwrapped,
)
from .failures import (
    Clarity,
    DiagnosedError,
    diagnose,
    number_read,
)
from .failures import user_line as user_line  # doctor asks the frontend for it
from .flat import Flat, apart, is_leaf, score
from .jagged import first_dims, with_delimiters
from .keep_rows import keep_rows
from .keyed import plain_torchrec
from .masked_rows import all_rows
from .origins import drop_effects, record_origins, users_frames
from .reading import start
from .sizes import symbolic_sizes
from .state import as_found, changed_state
from .trace import trace


def capture(
    model: nn.Module,
    inputs: Any = None,
    *,
    signature: Signature | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Program:
    """Captures a model into a program with a dynamic batch.

    Args:
        model: A trained model. It is captured in eval mode; its mode is put back.
        inputs: One example: a tuple of arguments, a dict, or a tensor. Not needed when the model
            has ``example_inputs()``.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.

    Raises:
        CaptureError: What can't be captured, where in the user's code, and what to change.
        SignatureError: The example doesn't fit the model.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a model is a torch.nn.Module, got {type(model).__name__}. "
            "Wrap a function in a module whose forward calls it."
        )
    model = unwrapped(model)
    example = example_of(model, inputs)
    arguments = forward_arguments(model, example)
    given = call_of(arguments, example)
    structure = Structure.of(given, "input", is_leaf)
    structure, leaves = short_names(structure, example_tensors(structure.flatten(given)))
    _check_parameters(model)
    notes = _of_training(model)
    calls = arguments_by_place(model, arguments, example)
    with as_found(model, notes) as writes, without_dropout(notes):
        wrapper = Flat(model, structure, writes)
        program = _capture(wrapper, arguments, calls, leaves, notes)
    program.notes = tuple(notes)
    return with_contract(program, signature, outputs, leaves)


def _of_training(model: nn.Module) -> list[str]:
    """Says that a model in training mode is captured as it scores in eval mode."""
    modules = model.named_modules() if model.training else ()
    changed = [
        name or type(module).__name__
        for name, module in modules
        if module.training and isinstance(module, (_DropoutNd, _NormBase))
    ]
    if not changed:
        return []
    listed = ", ".join(changed[:3]) + (" and others" if len(changed) > 3 else "")
    return [
        "the model is in training mode; captured in eval mode, in which dropout is off and "
        f"batch norm uses what it saw in training ({listed})"
    ]


def _capture(
    wrapper: Flat,
    arguments: tuple[str, ...],
    calls: Sequence[tuple[str, ...]],
    given: dict[str, Tensor],
    notes: list[str],
) -> Program:
    model, structure = wrapper.model, wrapper.inputs
    ragged, leaves, expected = start(wrapper, given, calls, notes)
    wrapper.outputs = outputs = apart(wrapper.outputs, structure.names)
    failures: list[tuple[Route, CaptureError]] = []
    for route in Route:
        try:
            module = _flat_graph(wrapper, leaves, route, ragged)
            drop_effects(module)
            keep_rows(module.graph)
            module.recompile()
            record_origins(module)
            inferred = with_delimiters(infer_signature(module.graph, outputs.names), ragged)
        except Exception as error:
            failures.append((route, diagnose(error, model)))
            continue
        if told := number_read(module.graph):
            raise CaptureError(f"{type(model).__name__} can't be captured: {told}")
        program = Program(module, inferred, structure, outputs, arguments, Form.CAPTURED)
        module.meta["route"] = route.value
        try:
            said = check_agreement(program, leaves, expected, lambda rows: score(wrapper, rows))
        except CaptureError as error:
            # Where rows were kept that the model drops, another route's message says more.
            if not isinstance(error, DiffersError) and route is not Route.ALL_ROWS:
                raise
            failures.append((route, error))
            continue
        except RuntimeError as error:  # a guard of torch.export's own that the example breaks
            failures.append((route, diagnose(error, model)))
            continue
        notes += [*said, *judged_in_part(module.graph, inferred)]
        return program
    raise _clearest(failures, changed_state(model, lambda: score(wrapper, leaves)))


def _clearest(
    failures: Sequence[tuple[Route, CaptureError]], changed: tuple[str, ...]
) -> CaptureError:
    """The failure that says most of what to change, with what every route said.

    Args:
        failures: What each route failed with.
        changed: What forward changes of the model.
    """
    _, clearest = min(failures, key=lambda failure: _vagueness(*failure))
    if isinstance(clearest, DiffersError) and changed:
        clearest = DiffersError(f"{clearest} Forward changes {', '.join(map(repr, changed))}.")
    if isinstance(clearest, DiagnosedError):  # how clear it is matters here alone
        clearest = CaptureError(str(clearest)).with_traceback(clearest.__traceback__)
    clearest.routes = tuple(f"{route.value}: {error}" for route, error in failures)
    return clearest


def _vagueness(route: Route, error: CaptureError) -> int:
    """How little a failure tells; where rows were kept, a difference may come of that alone."""
    if isinstance(error, DiffersError):
        return Clarity.UNKNOWN if route is Route.ALL_ROWS else Clarity.CONSTRUCT
    return error.clarity if isinstance(error, DiagnosedError) else Clarity.CONSTRUCT


class Route(StrEnum):
    """How a model becomes a graph, in the order they are tried."""

    EXPORT = "export"
    ALL_ROWS = "all rows"
    STRICT = "strict"
    TRACE = "trace"


def _flat_graph(
    wrapper: Flat, leaves: Mapping[str, Tensor], route: Route, ragged: Sequence[Ragged]
) -> fx.GraphModule:
    if route is Route.TRACE:
        with wrapper.writes:
            return trace(wrapper, leaves)
    # A model that drops rows asks whether any is left: that fewer work too is checked afterwards.
    all_kept = route is Route.ALL_ROWS
    batch: Any = torch.export.Dim.AUTO if all_kept else torch.export.Dim("batch", min=0)
    wrapper.around = contextlib.nullcontext
    if route is not Route.STRICT:
        wrapper.around = partial(_as_traced, wrapper.model, numbers_of(wrapper.model), all_kept)
    sizes = symbolic_sizes if route is not Route.STRICT else contextlib.nullcontext
    with (
        torch.no_grad(),
        silenced(),
        stacks_of(users_frames),
        plain_torchrec(),
        plain_transformers(),
        sizes(wrapper.model),
    ):
        exported = torch.export.export(
            wrapper,
            tuple(leaves.values()),
            dynamic_shapes=(tuple({0: d} for d in first_dims(leaves, ragged, batch)),),
            strict=route is Route.STRICT,
        )
        exported = to_core(exported)
    wrapper.around = contextlib.nullcontext
    return flatten_exported(exported, tuple(leaves), prefix="model.")


@contextlib.contextmanager
def _as_traced(model: nn.Module, numbers: Mapping[str, Any], all_kept: bool) -> Iterator[None]:
    """What holds around a call of the model that is recorded."""
    kept = all_rows() if all_kept else contextlib.nullcontext()
    with constant_weights(model, numbers), Recordable(), kept:
        yield


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            continue
        if tensor.device.type != "cpu":
            raise CaptureError(
                f"weight {name!r} is on {tensor.device}; models are captured on the CPU. "
                "Load the weights and call model.cpu() first."
            )
        if tensor.is_inference():
            raise CaptureError(
                f"weight {name!r} was made under torch.inference_mode(), which torch.export can't "
                "capture. Build or load the model outside of it; torch.no_grad() is fine."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise DataError(
                    f"weight {name!r} has {bad:,} NaN or Inf values; the model is broken or was "
                    "not trained to the end. Load a good checkpoint."
                )
