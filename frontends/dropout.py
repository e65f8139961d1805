"""Dropout that a model forgot to switch off: left out, and said so."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor
from torch.nn import functional

from .failures import is_library

_NAMES = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
)


@contextlib.contextmanager
def without_dropout(notes: list[str]) -> Iterator[None]:
    """Functional dropout gives its input back while a model in eval mode is captured.

    ``F.dropout(x, p)`` without ``training=self.training`` drops in eval mode too, and no two calls
    score alike. Nobody serves that, so it is captured as it was meant.

    Args:
        notes: One sentence is added for each line of the model that would have dropped.
    """
    said: set[str] = set()

    def instead(name: str) -> Callable[..., Tensor]:
        real = getattr(functional, name)

        def keep(
            input: Tensor,
            p: float = 0.5,
            training: bool = name.startswith("dropout"),
            inplace: bool = False,
        ) -> Tensor:
            if not training or p == 0.0:
                return real(input, p, training, inplace)  # type: ignore[no-any-return]
            place = _caller()
            if place not in said:
                said.add(place)
                notes.append(
                    f"F.{name} at {place} drops in eval mode too, and was left out; pass "
                    "training=self.training, or use nn.Dropout"
                )
            return input

        return keep

    with contextlib.ExitStack() as stack:
        for name in _NAMES:
            stack.enter_context(mock.patch.object(functional, name, instead(name)))
        yield


def _caller() -> str:
    """The innermost line of the user's."""
    frames: list[Any] = traceback.extract_stack()[:-2]
    for frame in reversed(frames):
        if not is_library(frame.filename):
            return f"{frame.filename}:{frame.lineno} `{frame.line}`"
    return "an unknown place"
