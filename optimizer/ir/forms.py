"""What a program may contain, as data that the verifier checks."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import fx

from . import torchapi

_aten = torch.ops.aten


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


#: Operators that say nothing in an inference graph: canonicalize removes them.
NOISE = frozenset(
    {
        _aten.detach.default,
        _aten.alias.default,
        _aten.lift_fresh_copy.default,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.dropout.default,
        _aten._assert_tensor_metadata.default,
        _aten._assert_scalar.default,
        _aten._assert_async.msg,
        _aten.sym_constrain_range_for_size.default,
    }
)


def violation(node: fx.Node, form: Form) -> str | None:
    """Why ``node`` isn't allowed in ``form``, or None."""
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    if node.op != "call_function":
        return f"{node.op} nodes aren't allowed; only call_function is"
    if form is Form.CAPTURED:
        return None
    if node.target in NOISE:
        return f"{node.target} is noise that canonicalize removes"
    if isinstance(node.target, torchapi.OpOverload) and _writes(node.target):
        return f"{node.target} writes into its input"
    return None


def _writes(target: torchapi.OpOverload) -> bool:
    arguments = target._schema.arguments
    return any(a.alias_info is not None and a.alias_info.is_write for a in arguments)
