"""The user's model as a function of flat tensors, and its own scores of the example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from ..optimizer.errors import CaptureError, DataError, SignatureError
from ..optimizer.ir.structure import Branch, Constant, Structure
from .failures import FIXED_BATCH, remedy_for, user_line
from .state import Writes

Scores = tuple[Tensor, ...]


class Flat(nn.Module):
    """The user's model with flat tensors in and out; remembers the outputs' nesting."""

    def __init__(self, model: nn.Module, inputs: Structure, writes: Writes) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.writes = writes
        self.by_place: tuple[str, ...] = ()
        self.outputs: Structure | None = None
        self.numbers: frozenset[str] = frozenset()
        self.around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def forward(self, *leaves: Tensor) -> Scores:
        """The outputs for flat inputs."""
        call = self.inputs.unflatten(dict(zip(self.inputs.names, leaves, strict=True)))
        first = [call.pop(name) for name in self.by_place if name in call]
        with self.around():
            result = self.model(*first, **call)
        found = Structure.of(result, "score", is_leaf)
        self.outputs = self.outputs or found
        scores = found.flatten(result)
        return tuple(value for name, value in scores.items() if name not in self.numbers)

    def sizes(self) -> frozenset[int]:
        """The sizes of the model's weights, none of which the example's rows should number."""
        weights = (*self.model.parameters(), *self.model.buffers())
        return frozenset(size for w in weights if not is_lazy(w) for size in w.shape)

    def leave_out(self, numbers: frozenset[str]) -> None:
        """From now on these outputs, each a single number, are not returned."""
        assert self.outputs is not None
        self.numbers = numbers
        kept = [name for name in self.outputs.names if name not in numbers]
        nested = kept[0] if len(kept) == 1 else {name: name for name in kept}
        self.outputs = Structure.of(nested, kept[0], lambda v: v in kept)


def apart(outputs: Structure | None, features: tuple[str, ...]) -> Structure:
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


def is_leaf(value: Any) -> bool:
    """Whether a part of what goes into or comes out of a model is an array."""
    return isinstance(value, (Tensor, np.ndarray, fx.Proxy))


def score(wrapper: Flat, leaves: Mapping[str, Tensor]) -> Scores:
    """The model's outputs for some rows, which stay as they are if the model writes into them."""
    with torch.no_grad(), wrapper.writes:
        result: Scores = wrapper(*(leaf.clone() for leaf in leaves.values()))
    return result


def _strings(template: Any) -> set[str]:
    """What of a call is strings."""
    if isinstance(template, Constant):
        return {template.value} if isinstance(template.value, str) else set()
    if isinstance(template, Branch):
        return set().union(*map(_strings, template.items))
    return set()


def run_example(
    wrapper: Flat,
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
        results = score(wrapper, example)
    except SignatureError as error:
        raise CaptureError(
            f"{model} returns something that holds more than tensors: {error}"
        ) from error
    except Exception as error:
        where = user_line(error)
        if _runs(wrapper, given):
            strings = sorted(_strings(wrapper.inputs.template))
            if strings:
                raise CaptureError(
                    f"{model} can't be captured{where}: it reads strings of rows, {strings[0]!r} "
                    "of the example, and only tensors have rows. What to change: encode them as "
                    "integers before the model, as its training data had them numbered, and give "
                    "it those."
                ) from error
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


def _runs(wrapper: Flat, example: Mapping[str, Tensor]) -> bool:
    try:
        score(wrapper, example)
    except Exception:  # whatever it is: the caller asks only whether these rows can be scored
        return False
    return True
