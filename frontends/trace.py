"""Capture by torch.fx symbolic tracing, for modules torch.export rejects."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from ..optimizer.ir.program import flatten_exported
from ..optimizer.ir.torchapi import core_decompositions, silenced


def trace(wrapper: nn.Module, leaves: Mapping[str, Tensor]) -> fx.GraphModule:
    """The flat graph of ``wrapper``, by tracing its Python first and exporting the trace.

    Tracing runs ``forward`` with symbolic stand-ins, so a branch on a tensor's values fails here
    too; what it passes are constructs that only torch.export objects to.

    Args:
        wrapper: A module of flat tensors in and out.
        leaves: Example inputs by name.
    """
    names = tuple(leaves)
    flat = _with_named_arguments(wrapper, names)
    batch = torch.export.Dim("batch", min=0)
    dynamic = {name: {0: batch} if leaf.dim() else {} for name, leaf in leaves.items()}
    traced = fx.symbolic_trace(flat)
    with torch.no_grad(), silenced():
        exported = torch.export.export(
            traced, tuple(leaves.values()), dynamic_shapes=dynamic, strict=False
        ).run_decompositions(core_decompositions())
    return flatten_exported(exported, names, prefix="wrapper.model.")


def _with_named_arguments(wrapper: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A module whose forward names its arguments, since tracing can't count ``*leaves``."""
    source = f"def forward(self, {', '.join(names)}):\n    return self.wrapper({', '.join(names)})"
    scope: dict[str, object] = {}
    exec(compile(source, "<rankc trace>", "exec"), scope)
    named = type("Named", (nn.Module,), {"forward": scope["forward"]})()
    named.wrapper = wrapper
    assert isinstance(named, nn.Module)
    return named
