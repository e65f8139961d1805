"""Ranking models in plain torch, and data to train them on; nothing here knows the compiler.

`rankc.models.DLRM`, `rankc.models.DCNv2`, `rankc.models.data` and `rankc.models.train` load when
they are first used, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from . import data, train
    from .dcn import DCNv2, DCNv2Config
    from .dlrm import DLRM, DLRMConfig

__all__ = ["DLRM", "ZOO", "DCNv2", "DCNv2Config", "DLRMConfig", "data", "train", "zoo"]

# Where each name of the zoo is built; small enough to capture in a test.
ZOO: dict[str, str] = {
    "dlrm": "rankc.models.dlrm:DLRM.small",
    "dlrm-multihot": "rankc.models.dlrm:DLRM.small_multihot",
    "dcnv2": "rankc.models.dcn:DCNv2.small",
}

_MODULES = ("data", "train")
_CLASSES = {"DLRM": "dlrm", "DLRMConfig": "dlrm", "DCNv2": "dcn", "DCNv2Config": "dcn"}


def zoo() -> dict[str, Callable[[], nn.Module]]:
    """Gives a factory of the small preset of every model.

    Each call of a factory draws new weights; every model has `example_inputs(batch_size)`.
    """
    return {name: _resolve(path) for name, path in ZOO.items()}


def _resolve(path: str) -> Callable[[], nn.Module]:
    module, attribute = path.split(":")
    factory: Callable[[], nn.Module] = attrgetter(attribute)(importlib.import_module(module))
    return factory


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _CLASSES:
        return getattr(importlib.import_module(f".{_CLASSES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
