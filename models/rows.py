"""Rows of ranking data as arrays, and batches of them as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Inputs = tuple[Tensor, ...]
Labels = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of one data set; every array has N entries along its first axis.

    Attributes:
        dense: `[N, n_dense]` float32, standardised on the training rows; missing values are 0.
        ids: `[N, n_tables]` int64. Id 0 means missing, or never seen in training.
        labels: `{task: [N] float32}`, each 0 or 1.
        group: `[N]` int64, the user, request or plane a row belongs to, by which rows depend on
            one another; None if the data has no such key.
        cohorts: `{name: [N] str}`, the populations whose quality is judged apart.
        timestamp: `[N]` int64, seconds since 1970 UTC; None if the data has no time.
    """

    dense: Floats
    ids: Ints
    labels: Mapping[str, Floats]
    group: Ints | None = None
    cohorts: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    timestamp: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: slice | npt.NDArray[Any]) -> Rows:
        """Gives the rows at `index`: a slice, positions, or a mask `[N]` of booleans."""
        return Rows(
            dense=self.dense[index],
            ids=self.ids[index],
            labels={name: values[index] for name, values in self.labels.items()},
            group=None if self.group is None else self.group[index],
            cohorts={name: values[index] for name, values in self.cohorts.items()},
            timestamp=None if self.timestamp is None else self.timestamp[index],
        )


@dataclass(frozen=True, eq=False)
class RankingData:
    """A data set, split into training and test rows.

    Attributes:
        name: what to call it in a report; generated data says that it is.
        licence: the terms of the rows, with whose they are.
        train: rows to train and calibrate on.
        test: rows to judge on; later than every training row where the data has time.
        dense_names: one per column of `Rows.dense`.
        id_names: one per column of `Rows.ids`.
        cardinalities: rows that each table needs, the unknown id's included.
    """

    name: str
    licence: str
    train: Rows
    test: Rows
    dense_names: tuple[str, ...]
    id_names: tuple[str, ...]
    cardinalities: tuple[int, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.train.labels)


def batches(rows: Rows, batch_size: int) -> Iterator[tuple[Inputs, Labels]]:
    """Yields the rows in order as `((dense, ids), {task: label})` tensors.

    Each batch has `batch_size` rows, the last one what is left.
    """
    inputs, labels = to_tensors(rows)
    for start in range(0, len(rows), batch_size):
        yield batch_at(inputs, labels, slice(start, start + batch_size))


def to_tensors(rows: Rows) -> tuple[Inputs, Labels]:
    """Gives all rows as `((dense, ids), {task: label})`, sharing memory with the arrays."""
    labels = {name: torch.from_numpy(values) for name, values in rows.labels.items()}
    return (torch.from_numpy(rows.dense), torch.from_numpy(rows.ids)), labels


def batch_at(inputs: Inputs, labels: Labels, index: slice | Tensor) -> tuple[Inputs, Labels]:
    """Picks the rows at `index` out of what `to_tensors` gave."""
    picked = {name: values[index] for name, values in labels.items()}
    return tuple(tensor[index] for tensor in inputs), picked
