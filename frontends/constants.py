"""Numbers that a model's ``forward`` reads off its own weights: ``self.scale.item()``.

While a model is captured its weights have no values, and a number of theirs would be one that only
values tell. A program's weights never change, so that it is a constant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

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
_MOST = 64


def numbers_of(model: nn.Module) -> dict[str, Any]:
    """The values of small parameters and buffers, as Python numbers."""
    return {
        name: weight.tolist()
        for name, weight in _weights(model)
        if not is_lazy(weight) and weight.numel() <= _MOST
    }


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@contextlib.contextmanager
def constant_weights(model: nn.Module, numbers: Mapping[str, Any]) -> Iterator[None]:
    """Inside, numbers read off weights that forward hasn't written are these.

    Args:
        model: The model, whose weights stand for the real ones while it is captured.
        numbers: What the real ones hold.
    """
    with _Constants(model, numbers):
        yield


class _Constants(TorchFunctionMode):
    def __init__(self, model: nn.Module, numbers: Mapping[str, Any]) -> None:
        super().__init__()
        # The stand-ins are kept, so that no other tensor gets the identity of one.
        self._known = {
            id(weight): (numbers[name], weight, weight._version)
            for name, weight in _weights(model)
            if name in numbers
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        read = _READS.get(getattr(func, "__name__", ""))
        if read is not None and id(args[0]) in self._known:
            numbers, weight, version = self._known[id(args[0])]
            while func.__name__ != "tolist" and isinstance(numbers, list) and len(numbers) == 1:
                numbers = numbers[0]
            if weight._version == version and (func.__name__ == "tolist" or _is_one(numbers)):
                return read(numbers)
        return func(*args, **(kwargs or {}))


def _is_one(numbers: Any) -> bool:
    return not isinstance(numbers, list)
