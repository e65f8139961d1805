"""Capture: from an ``nn.Module`` to a `Program`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from ..optimizer.data import call_of
from ..optimizer.errors import CaptureError, DataError, SignatureError
from ..optimizer.ir import Form, Program, Signature
from ..optimizer.ir.infer import infer_signature
from ..optimizer.ir.program import flatten_exported
from ..optimizer.ir.structure import Structure
from ..optimizer.ir.torchapi import silenced, stacks_of
from ..optimizer.ragged import Ragged, row_count
from .agreement import DiffersError, check_agreement
from .allrows import all_rows
from .constants import constant_weights, numbers_of
from .contract import with_contract
from .decompose import to_core
from .doctor import FIXED_BATCH, diagnose, remedy_for, user_line
from .dropout import without_dropout
from .example import (
    arguments_by_place,
    as_rows,
    delimited,
    example_of,
    example_tensors,
    forward_arguments,
    short_names,
    unwrapped,
)
from .jagged import first_dims, named_ragged, with_delimiters
from .keyed import plain_torchrec
from .origins import drop_effects, record_origins, users_frames
from .rowwise import keep_rows
from .sizes import symbolic_sizes
from .state import changed_state
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
    structure = Structure.of(given, "input", _is_leaf)
    structure, leaves = short_names(structure, example_tensors(structure.flatten(given)))
    _check_parameters(model)
    notes = _of_training(model)
    with _as_found(model), without_dropout(notes):
        program = _capture(model, arguments, structure, leaves, notes)
    program.notes = tuple(notes)
    return with_contract(program, signature, outputs)


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


@contextlib.contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode; afterwards each module's mode and each buffer is as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(b, b._version, b.clone()) for b in model.buffers() if not is_lazy(b)]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, version, before in buffers:
            if buffer._version != version:
                buffer.copy_(before)


def _capture(
    model: nn.Module,
    arguments: tuple[str, ...],
    structure: Structure,
    given: dict[str, Tensor],
    notes: list[str],
) -> Program:
    wrapper = _Flat(model, structure, arguments_by_place(model, arguments))
    ragged, leaves, expected = _start(wrapper, given, notes)
    wrapper.outputs = outputs = _apart(wrapper.outputs, structure.names)
    failure: CaptureError | None = None
    for route in Route:
        try:
            module = _flat_graph(wrapper, leaves, route, ragged)
            drop_effects(module)
            keep_rows(module.graph)
            module.recompile()
            record_origins(module)
            inferred = with_delimiters(infer_signature(module.graph, outputs.names), ragged)
        except Exception as error:
            failure = failure or diagnose(error, model)
            continue
        program = Program(module, inferred, structure, outputs, arguments, Form.CAPTURED)
        module.meta["route"] = route.value
        try:
            check_agreement(program, leaves, expected, lambda rows: _score(wrapper, rows))
        except CaptureError as error:
            # Where rows were kept that the model drops, another route's message says more.
            if not isinstance(error, DiffersError) and route is not Route.ALL_ROWS:
                raise
            failure = failure or error
            continue
        except RuntimeError as error:  # a guard of torch.export's own that the example breaks
            failure = failure or diagnose(error, model)
            continue
        return program
    assert failure is not None
    if isinstance(failure, DiffersError):
        kept = changed_state(model, lambda: _score(wrapper, leaves))
        if kept:
            raise DiffersError(f"{failure} Forward changes {', '.join(map(repr, kept))}.")
    raise failure


def _start(
    wrapper: _Flat, given: Mapping[str, Tensor], notes: list[str]
) -> tuple[tuple[Ragged, ...], dict[str, Tensor], tuple[Tensor, ...]]:
    """What is jagged, the example's rows repeated, and the model's scores of them."""
    named = named_ragged(wrapper.inputs, given)
    ragged = delimited(given, named)
    leaves = as_rows(given, ragged)
    try:
        return ragged, leaves, _run(wrapper, leaves, given, notes, row_count(leaves, ragged))
    except CaptureError:
        # One id in every row, in a jagged tensor: a model may take them for a column of ids.
        several = tuple(one for one in named if bool((given[one.delimiter] != 1).any()))
        if several == named:
            raise
        wrapper.outputs = None
        ragged = delimited(given, several)
        leaves = as_rows(given, ragged)
        return ragged, leaves, _run(wrapper, leaves, given, notes, row_count(leaves, ragged))


class Route(StrEnum):
    """How a model becomes a graph, in the order they are tried."""

    EXPORT = "export"
    ALL_ROWS = "all rows"
    STRICT = "strict"
    TRACE = "trace"


def _flat_graph(
    wrapper: _Flat, leaves: Mapping[str, Tensor], route: Route, ragged: Sequence[Ragged]
) -> fx.GraphModule:
    if route is Route.TRACE:
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
    with constant_weights(model, numbers), kept:
        yield


def _score(wrapper: _Flat, leaves: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        result: tuple[Tensor, ...] = wrapper(*leaves.values())
    return result


class _Flat(nn.Module):
    """The user's model with flat tensors in and out; remembers the outputs' nesting."""

    def __init__(self, model: nn.Module, inputs: Structure, by_place: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.by_place = by_place
        self.outputs: Structure | None = None
        self.numbers: frozenset[str] = frozenset()
        self.around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        call = self.inputs.unflatten(dict(zip(self.inputs.names, leaves, strict=True)))
        first = [call.pop(name) for name in self.by_place if name in call]
        with self.around():
            result = self.model(*first, **call)
        found = Structure.of(result, "score", _is_leaf)
        self.outputs = self.outputs or found
        scores = found.flatten(result)
        return tuple(value for name, value in scores.items() if name not in self.numbers)

    def leave_out(self, numbers: frozenset[str]) -> None:
        """From now on these outputs, each a single number, are not returned."""
        assert self.outputs is not None
        self.numbers = numbers
        kept = [name for name in self.outputs.names if name not in numbers]
        nested = kept[0] if len(kept) == 1 else {name: name for name in kept}
        self.outputs = Structure.of(nested, kept[0], lambda v: v in kept)


def _apart(outputs: Structure | None, features: tuple[str, ...]) -> Structure:
    """The outputs' nesting, with names that no feature has: ONNX has one space of names."""
    assert outputs is not None
    taken = {*outputs.names, *features}
    renamed: dict[str, str] = {}
    for name in outputs.names:
        other = name
        while name in features and other in taken:
            other += "_out"
        taken.add(other)
        renamed[name] = other
    return outputs.rename(renamed)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, fx.Proxy))


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


def _run(
    wrapper: _Flat,
    example: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    notes: list[str],
    rows: int,
) -> tuple[Tensor, ...]:
    """The model's own outputs: also creates lazy parameters, and shows a model that doesn't run.

    Args:
        wrapper: The model.
        example: The example's rows, repeated.
        given: The example as the user gave it.
        notes: What the user should know of the capture is added.
        rows: How many rows the repeated example has.
    """
    model = type(wrapper.model).__name__
    try:
        with torch.no_grad():
            results = wrapper(*example.values())
    except SignatureError as error:
        raise CaptureError(
            f"{model} returns something that holds more than tensors: {error}"
        ) from error
    except Exception as error:
        where = user_line(error)
        if _runs(wrapper, given):
            raise CaptureError(
                f"{model} can't be captured{where}: {FIXED_BATCH.construct}: it runs on the "
                f"example's {len(next(iter(given.values())))} rows, but not on {rows}. "
                f"What to change: {FIXED_BATCH.remedy}. ({error})"
            ) from error
        advice = remedy_for(error) or "Check inputs= against what its forward takes"
        raise CaptureError(
            f"{model} doesn't run on the example{where}: {type(error).__name__}: {error}. {advice}."
        ) from error
    if not results:
        raise CaptureError(f"{model} returns no tensor. Return the scores from forward.")
    assert wrapper.outputs is not None
    names = wrapper.outputs.names
    numbers = [name for name, result in zip(names, results, strict=True) if result.dim() == 0]
    if len(numbers) == len(names):
        raise CaptureError(
            f"output {numbers[0]!r} is a single number, such as a loss. Return a score per row, "
            "and losses only in training."
        )
    if numbers:
        notes.append(
            f"left out {', '.join(map(repr, numbers))}: a single number beside the scores, such as "
            "a loss, is nothing to serve"
        )
        results = tuple(result for result in results if result.dim() > 0)
        wrapper.leave_out(frozenset(numbers))
    for name, result in zip(wrapper.outputs.names, results, strict=True):
        if len(result) != rows:
            raise CaptureError(
                f"output {name!r} has {len(result)} rows for {rows} rows of input, such "
                "as a mean over the batch. Return a score per row."
            )
        if result.is_floating_point() and not bool(torch.isfinite(result).all()):
            row = int((~torch.isfinite(result.reshape(len(result), -1))).any(1).nonzero()[0])
            raise DataError(
                f"output {name!r} is NaN or Inf in row {row} of the example. "
                "Check the weights and the example for values out of range."
            )
    return tuple(results)


def _runs(wrapper: _Flat, example: Mapping[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            wrapper(*example.values())
    except Exception:  # whatever it is: the caller asks only whether these rows can be scored
        return False
    return True
