"""``len`` and ``int`` of sizes, which stay sizes of the graph while a model is captured.

Python makes plain numbers of both, so that ``x.reshape(len(x))`` fixes the batch to the example's.
In the modules that a model's classes are written in they are replaced for as long as it runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

_len = len


class _IsInt(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, int)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """The integer; sizes of the graph stay symbols."""
        if args and isinstance(args[0], (torch.SymInt, torch.SymFloat)):
            return torch.sym_int(args[0])  # type: ignore[no-untyped-call]
        return int(*args, **kwargs)


class _Int(metaclass=_IsInt):
    """Stands for ``int``."""

    from_bytes = int.from_bytes


def _length(value: Any, /) -> Any:
    """The length; that of a tensor's rows stays a symbol."""
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else _len(value)


@contextlib.contextmanager
def symbolic_sizes(model: nn.Module) -> Iterator[None]:
    """Inside, ``len`` of a tensor and ``int`` of a size don't fix the number of rows."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    names = {kind.__module__ for kind in kinds} - {"builtins", __name__}
    with contextlib.ExitStack() as stack:
        for name in sorted(names):
            module = sys.modules.get(name)
            if module is None or name == "torch" or name.startswith(("torch.", "rankc.frontends")):
                continue
            for builtin, instead in (("len", _length), ("int", _Int)):
                if builtin not in vars(module):  # else the module has its own
                    stack.enter_context(mock.patch.object(module, builtin, instead, create=True))
        yield
