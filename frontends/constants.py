"""What a model's ``forward`` reads off its own weights: ``self.scale.item()``, ``x[:, self.mask]``.

While a model is captured its weights have no values, and a number of theirs, or the places at which
a mask of theirs is true, would be ones that only values tell. A program's weights never change, so
that these are constants, and so is what is computed of constants alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..optimizer.ir.torchapi import no_dispatch
from .state import held_tensors

#: How a number is read, and the Python type that comes of it.
_READS: dict[str, Callable[[Any], Any]] = {
    "item": lambda number: number,
    "tolist": lambda numbers: numbers,
    "__float__": float,
    "__int__": int,
    "__bool__": bool,
    "__index__": int,
}
#: Larger weights hold no settings.
_MOST = 4096
#: What makes a tensor of numbers alone.
_MAKES = frozenset(
    {torch.ones, torch.zeros, torch.full, torch.eye, torch.arange, torch.tensor}
    | {torch.triu_indices, torch.tril_indices}
)
#: Whose result has as many values as the values of what they get say.
_SIZED_BY_VALUES = frozenset(
    {torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.where}
    | {torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique, Tensor.__getitem__}
)


def numbers_of(model: nn.Module) -> dict[str, Tensor]:
    """The values of small parameters, buffers and tensors kept as attributes."""
    return {
        name: weight.detach().clone()
        for name, weight in held_tensors(model)
        if weight.numel() <= _MOST
    }


@contextlib.contextmanager
def constant_weights(model: nn.Module, numbers: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, what is read off weights that forward hasn't written is constant.

    Args:
        model: The model, whose weights stand for the real ones while it is captured.
        numbers: What the real ones hold.
    """
    with _Constants(model, numbers):
        yield


class _Constants(TorchFunctionMode):
    def __init__(self, model: nn.Module, numbers: Mapping[str, Tensor]) -> None:
        super().__init__()
        # The stand-ins are kept, so that no other tensor gets the identity of one.
        self._known: dict[int, tuple[Tensor, Tensor, int]] = {}
        for name, weight in held_tensors(model):
            if name in numbers:
                self._keep(weight, numbers[name])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = _READS.get(getattr(func, "__name__", ""))
        value = self._value(args[0]) if read is not None else None
        whole = getattr(func, "__name__", "") == "tolist"
        if read is not None and value is not None and (whole or value.numel() == 1):
            with no_dispatch():
                return read(value.tolist() if whole else value.item())
        if func is Tensor.__getitem__:
            args = (args[0], self._with_places(args[1]))
        real = self._computed(func, args, kwargs)
        if real is not None and func in _SIZED_BY_VALUES:
            return _each(real, self._constant)
        found = func(*args, **kwargs)
        if isinstance(found, Tensor) and isinstance(real, Tensor):
            self._keep(found, real)
        elif isinstance(found, tuple) and isinstance(real, tuple):
            for stand_in, value in zip(found, real, strict=True):
                self._keep(stand_in, value)
        return found

    def _keep(self, stand_in: Any, value: Any) -> None:
        if isinstance(value, Tensor) and value.numel() <= _MOST and isinstance(stand_in, Tensor):
            self._known[id(stand_in)] = (value, stand_in, stand_in._version)

    def _value(self, tensor: Any) -> Tensor | None:
        """What a tensor holds, if it is known and hasn't been written to."""
        value, stand_in, version = self._known.get(id(tensor), (None, None, 0))
        return value if stand_in is not None and stand_in._version == version else None

    def _constant(self, value: Tensor) -> Tensor:
        with no_dispatch():
            numbers = value.tolist()
        made = torch.tensor(numbers, dtype=value.dtype).reshape(value.shape)
        self._keep(made, value)
        return made

    def _with_places(self, index: Any) -> Any:
        """An index in which known masks are the places where they are true."""
        whole = index if isinstance(index, tuple) else (index,)
        places: list[Any] = []
        for part in whole:
            mask = self._value(part) if isinstance(part, Tensor) else None
            if mask is None or mask.dtype is not torch.bool or mask.dim() == 0:
                places.append(part)
            else:
                with no_dispatch():
                    found = mask.nonzero(as_tuple=True)
                places += [self._constant(place) for place in found]
        changed = len(places) != len(whole) or any(map(_differ, places, whole))
        return tuple(places) if changed else index

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function of known tensors alone gives; None if it isn't one."""
        given = [*args, *kwargs.values()]
        nested = [part for v in given if isinstance(v, (tuple, list)) for part in v]
        tensors = [v for v in (*given, *nested) if isinstance(v, Tensor)]
        name = getattr(func, "__name__", "_")
        if any(isinstance(v, (torch.SymInt, torch.SymFloat)) for v in (*given, *nested)):
            return None
        if not tensors and func not in _MAKES:
            return None
        if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
            return None
        values = {id(tensor): self._value(tensor) for tensor in tensors}
        if any(value is None for value in values.values()):
            return None

        def real(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(map(real, value))
            return values.get(id(value), value)

        try:
            with no_dispatch(), torch.no_grad():
                result = func(*map(real, args), **{k: real(v) for k, v in kwargs.items()})
        except Exception:  # whatever it is: recording the call shows it again
            return None
        return tuple(result) if isinstance(result, (list, tuple)) else result


def _differ(one: Any, other: Any) -> bool:
    return one is not other


def _each(value: Any, make: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(make(v) if isinstance(v, Tensor) else v for v in value)
    return make(value) if isinstance(value, Tensor) else value
