"""What a program may contain, as data that the verifier checks."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from torch import fx

from . import torchapi
from .operators import traits_of
from .traits import Move


class Form(StrEnum):
    """The stages of a program. A later form is also an earlier one."""

    CAPTURED = "captured"
    CANONICAL = "canonical"
    LEGAL = "legal"

    @property
    def rank(self) -> int:
        """0, 1, 2: how far along the program is."""
        return list(Form).index(self)

    def includes(self, other: Form) -> bool:
        """Whether a program in this form may be given to a pass that requires ``other``."""
        return self.rank >= other.rank


def is_noise(target: Any) -> bool:
    """Whether an operator says nothing in an inference graph: canonicalize removes it."""
    traits = traits_of(target)
    return traits.asserts or traits.move is Move.COPY


def violation(node: fx.Node, form: Form) -> str | None:
    """Why ``node`` isn't allowed in ``form``, or None."""
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    if node.op != "call_function":
        return f"{node.op} nodes aren't allowed; only call_function is"
    if form is Form.CAPTURED:
        return None
    if is_noise(node.target):
        return f"{node.target} is noise that canonicalize removes"
    if isinstance(node.target, torchapi.OpOverload) and _writes(node.target):
        return f"{node.target} writes into its input"
    return None


def _writes(target: torchapi.OpOverload) -> bool:
    arguments = target._schema.arguments
    return any(a.alias_info is not None and a.alias_info.is_write for a in arguments)
