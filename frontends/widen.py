"""Half-precision models: captured in float32, which every target has; formats are chosen later.

A layer in bfloat16 or float16 rounds what float32 keeps, so that the scores agree within the
rounding of the model's own format. Which sites are worth a lower format, and whether the scores can
bear it, is decided per target and on data, as for any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..optimizer.errors import CaptureError
from ..optimizer.ir import Program, facts_of
from ..optimizer.ir.torchapi import FakeTensorMode, fake_call, fake_mode_of, fake_of
from .failures import located
from .rounding import largest_difference

_aten = torch.ops.aten
_HALVES = (torch.bfloat16, torch.float16)
#: Steps of the format, relative to the largest score, that its own rounding may move a score by.
_STEPS = 32
_NAMED = 3


def widen(program: Program, leaves: Mapping[str, Tensor]) -> str:
    """Gives a program float32 in place of half precision.

    Args:
        program: What was captured, which scores like the model; changed in place.
        leaves: The example's rows.

    Returns:
        What the user should know; empty if nothing was in half precision.

    Raises:
        CaptureError: The scores differ by more than the format's rounding.
    """
    halves = [n for n in program.graph.nodes if _is_half(n.meta.get("val"))]
    if not halves:
        return ""
    step = coarsest(program)
    kinds = sorted({str(n.meta["val"].dtype).removeprefix("torch.") for n in halves})
    before = program.run(leaves)
    _widen_graph(program.module)
    for feature in program.signature:
        if feature.dtype in ("bfloat16", "float16"):
            program.signature = program.signature.with_feature(feature.name, dtype="float32")
    after = program.run(leaves)
    where = f"{' and '.join(kinds)} at {_places(halves)}"
    for name, wide in after.items():
        moved = largest_difference(wide, before[name])
        if not moved <= _STEPS * step:
            raise CaptureError(
                f"output {name!r} moves by {moved:.3g} of its largest value when {where} is "
                "computed in float32: a decision in forward hangs on the rounding. Call .float() "
                "on these layers, check the model's quality, and capture that."
            )
    return (
        f"{where} is computed in float32, which differs by the rounding of "
        f"{'these formats' if len(kinds) > 1 else 'that format'}; formats are chosen per target"
    )


def coarsest(program: Program) -> float:
    """The relative step of the coarsest half precision in a program; 0.0 if it has none."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    return max((torch.finfo(v.dtype).eps for v in values if _is_half(v)), default=0.0)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _HALVES


def _places(halves: list[fx.Node]) -> str:
    """The modules that compute in half precision, the first of them."""
    owners = [str(n.target).rpartition(".")[0] for n in halves if n.op == "get_attr"]
    owners += [facts_of(n).site for n in halves if n.op == "call_function"]
    names = [repr(name) for name in dict.fromkeys(owners) if name]
    if not names:
        names = [
            located(node) if node.op == "call_function" else repr(node.target) for node in halves
        ]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _widen_graph(module: fx.GraphModule) -> None:
    graph = module.graph
    mode = fake_mode_of(graph)
    changed: set[fx.Node] = set()
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "placeholder" and _is_half(value):
            with mode:
                node.meta["val"] = value.to(torch.float32)
            changed.add(node)
        elif node.op == "get_attr" and _is_half(value):
            node.meta["val"] = _widened(module, str(node.target), mode)
            changed.add(node)
        elif node.op == "call_function":
            arguments = _in_float32(node.args), _in_float32(node.kwargs)
            same = (node.args, node.kwargs) == arguments
            if same and changed.isdisjoint(node.all_input_nodes):
                continue
            node.args, node.kwargs = arguments
            if _says_nothing(node):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
                continue
            node.meta["val"] = fake_call(node.target, node.args, node.kwargs, mode)
            changed.add(node)
    module.recompile()


def _widened(module: fx.GraphModule, name: str, mode: FakeTensorMode) -> Tensor:
    """Puts a float32 tensor in the place of a weight, once; the model keeps its own."""
    *path, last = name.split(".")
    holder: Any = module
    for part in path:
        holder = getattr(holder, part)
    weight = getattr(holder, last)
    if weight.dtype in _HALVES:
        kept = isinstance(weight, torch.nn.Parameter)
        wide = weight.detach().float()
        setattr(holder, last, torch.nn.Parameter(wide, requires_grad=False) if kept else wide)
    return fake_of(getattr(holder, last), mode)


def _in_float32(value: Any) -> Any:
    """Arguments in which every dtype of half precision is float32."""
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALVES else value
    if isinstance(value, (list, tuple)):
        return type(value)(_in_float32(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _in_float32(item) for key, item in value.items()}
    return value


def _says_nothing(node: fx.Node) -> bool:
    """Whether a node converts to the dtype that its input has."""
    if node.target is not _aten._to_copy.default or set(node.kwargs) != {"dtype"}:
        return False
    source: Any = node.args[0]
    return bool(source.meta["val"].dtype is node.kwargs["dtype"])
