"""Tidies a captured graph: no writes of state, and each node knows where it came from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from traceback import FrameSummary

import torch
from torch import fx

from ..optimizer.ir import Facts, set_facts
from ..optimizer.ir.operators import traits_of
from .failures import is_library

#: Where the model is called from while it is captured.
_WRAPPER = str(Path(__file__).with_name("flat.py"))


def drop_effects(module: fx.GraphModule) -> None:
    """Removes what only has an effect: writes into buffers, and checks of dtypes and sizes.

    A program keeps no state, and nobody reads what it would write; its dtypes are its own, and
    which sizes it takes is found by running it. What only the checks looked at goes with them.
    """
    for node in reversed(module.graph.nodes):
        if _has_effect(node) and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _has_effect(node: fx.Node) -> bool:
    """Whether a node writes into a tensor, or only checks."""
    if node.op != "call_function":
        return False
    return node.target is torch.ops.aten.copy_.default or traits_of(node.target).asserts


def users_frames(stack: Iterable[FrameSummary]) -> list[FrameSummary]:
    """The frames inside of the model that are the user's: its forwards, and what they call."""
    frames = list(stack)
    starts = [i + 1 for i, frame in enumerate(frames) if frame.filename == _WRAPPER]
    if not starts:  # made while the graph was rewritten: the frames are those of our caller
        return []
    return [f for f in frames[starts[-1] :] if not is_library(f.filename)]


def record_origins(module: fx.GraphModule) -> None:
    """Writes each node's module path and the user's source line into its facts."""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(entry[0]) for entry in stack.values() if isinstance(entry, tuple)]
        path = next((p for p in reversed(paths) if not p.startswith("_empty")), "")
        # Traced modules are one level deeper, in a wrapper of their own.
        path = path.replace("L['self'].", "").removeprefix("wrapper.")
        path = path.removeprefix("model").removeprefix(".")
        set_facts(node, Facts(origin=(path,) if path else (), source=_source(node)))


def _source(node: fx.Node) -> str:
    """``file:line`` of the innermost frame that is the user's."""
    found = ""
    for line in (node.meta.get("stack_trace") or "").splitlines():
        parts = line.strip().split('"')
        if line.strip().startswith("File ") and len(parts) >= 3 and not is_library(parts[1]):
            found = f"{parts[1]}:{parts[2].split('line ', 1)[-1].split(',', 1)[0]}"
    return found
