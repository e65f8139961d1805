"""One model of the capture suite."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A third-party model and how to call it.

    Attributes:
        library: The package it comes from.
        name: The model, with what is special about this one in brackets.
        build: Makes a small one.
        rows: Makes arguments for so many rows.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    rows: Callable[[int], tuple[Any, ...]]


class _Absent(ModuleType):
    """A package whose names can be imported and are nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def bare_package(name: str) -> None:
    """Makes a package importable without what its own ``__init__`` imports: its trainers, mostly.

    Modules in it are imported by ``import_module``.
    """
    spec = find_spec(name)
    assert spec is not None, name
    package = _Absent(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package


def without(*names: str) -> None:
    """Stands for packages that a library imports and its ranking models don't use."""
    for name in names:
        sys.modules.setdefault(name, _Absent(name))


def ids(rows: int, *cardinalities: int) -> Tensor:
    """Columns of ids, each below its own cardinality: int64 ``[rows, columns]``."""
    return torch.stack([torch.randint(0, size, (rows,)) for size in cardinalities], dim=1)


def padded(rows: int, length: int, cardinality: int) -> tuple[Tensor, Tensor]:
    """A list of ids per row, filled up with 0, and its length: ``[rows, length]``, ``[rows]``."""
    lengths = torch.randint(1, length + 1, (rows,))
    values = torch.randint(1, cardinality, (rows, length))
    return values * (torch.arange(length) < lengths[:, None]), lengths


def as_if_trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a fresh model weights and statistics of an ordinary size.

    Several libraries start their tables at 1e-4, where an interaction is too small to be seen in
    the score and a wrong one would pass for right.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.std()) < 0.05:
                parameter.normal_(0.0, 0.2, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.normal_(0.0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()
