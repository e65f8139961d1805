"""What a model keeps from call to call, and how capture leaves it as it was.

``forward`` may write buffers, renormalize a table, count its calls, keep its last embedding. While
a model is captured it runs several times, and the trained model must come out of it unchanged.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from ..optimizer.ir.torchapi import TorchDispatchMode

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, a tensor of the model is copied before an operator first writes into it.

    Tables are too large to be copied in case.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owned: dict[int, list[tuple[str, Tensor]]] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        for name, tensor in held_tensors(model):
            self._owned.setdefault(_place(tensor), []).append((name, tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            given |= kwargs or {}
            for argument in func._schema.arguments:
                value = given.get(argument.name)
                if argument.is_write and isinstance(value, Tensor):
                    self._keep(value)
        return func(*args, **(kwargs or {}))

    def _keep(self, written: Tensor) -> None:
        for name, tensor in self._owned.get(_place(written), ()):
            if name not in self._before:
                self._before[name] = (tensor, tensor.clone())

    def undo(self) -> tuple[str, ...]:
        """Puts back what was written, and names it."""
        for tensor, before in self._before.values():
            with torch.no_grad():
                tensor.detach().copy_(before)
        return tuple(self._before)


@contextlib.contextmanager
def as_found(model: nn.Module, notes: list[str]) -> Iterator[Writes]:
    """Eval mode inside; afterwards modes, weights, attributes and hooks are as before.

    Lazy layers stay the layers that the example made of them.

    Args:
        model: The model.
        notes: One sentence is added if forward writes into tensors of the model.

    Yields:
        What has to be active while the model runs on real tensors.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(b, b._version, b.clone()) for b in model.buffers() if not is_lazy(b)]
    lazy = {m for m in model.modules() if isinstance(m, LazyModuleMixin)}
    attributes = [(m, dict(vars(m))) for m in model.modules() if m not in lazy]
    held = [
        (value, value.copy())
        for _, before in attributes
        for value in before.values()
        if type(value) in _CONTAINERS
    ]
    writes = Writes(model)
    model.eval()
    try:
        yield writes
    finally:
        for module, before in attributes:
            _restore(vars(module), before)
        for container, kept in held:
            _restore(container, kept)
        for module, mode in modes:
            module.training = mode
        written = writes.undo()
        for buffer, version, original in buffers:
            if buffer._version != version:
                buffer.copy_(original)
        if written:
            notes.append(
                f"forward writes into {', '.join(map(repr, written[:3]))}, in eval mode too; the "
                "program keeps what was there before"
            )


def _restore(container: Any, before: Any) -> None:
    """Gives a container the members it had, which are the same objects."""
    if isinstance(container, dict):
        same = container.keys() == before.keys() and all(
            container[key] is before[key] for key in before
        )
        if not same:
            container.clear()
            container.update(before)
    elif isinstance(container, list):
        container[:] = before
    else:
        container.clear()
        container.update(before)


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a model holds: parameters, buffers, and plain attributes."""
    for path, module in model.named_modules():
        for members in (module._parameters, module._buffers, vars(module)):
            for name, value in members.items():
                if isinstance(value, Tensor) and not is_lazy(value) and not value.is_inference():
                    yield (f"{path}.{name}" if path else name), value


def _place(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return int(tensor.untyped_storage()._cdata)


def changed_state(model: nn.Module, call: Callable[[], object]) -> tuple[str, ...]:
    """The buffers and attributes that one more call changes, by the user's names.

    Args:
        model: The model.
        call: Runs it once.
    """
    before = _state(model)
    call()
    after = _state(model)
    return tuple(name for name in after if name not in before or before[name] != after[name])


def _state(model: nn.Module) -> dict[str, Any]:
    """Every buffer's version, and what every attribute is: numbers by value, others by identity."""
    found: dict[str, Any] = {name: buffer._version for name, buffer in model.named_buffers()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or isinstance(value, nn.Module):
                continue
            plain = isinstance(value, (bool, int, float, str))
            mark = value if plain else (id(value), value._version if _is_tensor(value) else 0)
            found[f"{path}.{name}" if path else name] = mark
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_inference()
