"""What users hand in: batches of rows, and the calls they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from ..ir.signature import Signature
from ..ir.structure import Structure, bind_arguments
from .arrays import is_tensor


@dataclass(frozen=True)
class Batch:
    """Rows of traffic.

    Attributes:
        inputs: What the model takes: a tuple of arguments, a dict, or one tensor; the first
            dimension of every tensor is the row.
        labels: A tensor ``[B]`` in [0, 1], or one per task; None without labels. NaN is a missing
            label, as of a conversion where nobody clicked: the row isn't judged for that task.
        group: ``[B]`` integers, the user or request a row belongs to: rows of one group aren't
            independent, and top-k is taken within it.
        cohorts: ``{name: [B]}`` integers or strings, slices that are judged apart.
        time: ``[B]`` numbers, dates or text that sorts by time: when each row came. Rows are put in
            its order, and judged on the latest; without it the order they are given in counts.
        weights: ``[B]`` numbers that aren't negative, how many rows of traffic a row stands for:
            10 for a negative of which one in ten was kept. Losses, NE, AUC, calibration, intervals
            and what is finetuned on count rows by them; recall and shifts of scores don't.
    """

    inputs: Any
    labels: Any = None
    group: Any = None
    cohorts: Mapping[str, Any] | None = None
    time: Any = None
    weights: Any = None


class Contract(Protocol):
    """What a call is held against: a `Program`, or the manifest of an artifact."""

    @property
    def signature(self) -> Signature:
        """The features and tasks."""

    @property
    def inputs(self) -> Structure:
        """How a call's arguments map to features."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments."""


def call_of(arguments: tuple[str, ...], inputs: Any) -> dict[str, Any]:
    """The model's arguments by name, from a batch's ``inputs``.

    A tuple or list is the positional arguments, a dict is keyword arguments if its keys are
    argument names and else the model's one argument, anything else is the one argument.

    Raises:
        SignatureError: Too many arguments.
    """
    if isinstance(inputs, Mapping):
        named = set(inputs) & set(arguments)
        if set(inputs) == named or (named and len(arguments) > 1):
            return bind_arguments(arguments, (), inputs)
        return bind_arguments(arguments, (inputs,), {})
    plain = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
    return bind_arguments(arguments, tuple(inputs) if plain else (inputs,), {})


def as_batch(item: Any, arguments: tuple[str, ...]) -> Batch:
    """What an iterable of data yields, as a `Batch`.

    Accepted: a `Batch`; ``(inputs, labels)``; what a DataLoader over a TensorDataset yields, the
    model's arguments with the labels last; and a dict of arguments with the labels among them.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, (tuple, list)):
        if len(item) == 2 and (len(arguments) == 1 or not _is_leaf(item[0])):
            return Batch(item[0], item[1])
        if len(item) == len(arguments) + 1:
            return Batch(tuple(item[:-1]), item[-1])
    if isinstance(item, Mapping) and len(arguments) > 1 and set(arguments) < set(item):
        labels = {name: value for name, value in item.items() if name not in arguments}
        return Batch({name: item[name] for name in arguments}, labels)
    return Batch(item)


def first_inputs(data: Any, arguments: tuple[str, ...]) -> tuple[Any, Iterable[Any]]:
    """The first batch's inputs, and the data with that batch still in it.

    Raises:
        DataError: No batch at all.
    """
    iterator = iter(data)
    try:
        first = next(iterator)
    except StopIteration:
        raise DataError("data is empty: it yields no batch.") from None

    def again() -> Iterator[Any]:
        yield first
        yield from iterator

    return as_batch(first, arguments).inputs, (data if data is not iterator else again())


def _is_leaf(value: Any) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)
