"""What a model keeps from call to call: buffers it writes, attributes it sets in ``forward``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


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
