"""What a task's score is made by."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import fx

from .operators import gives, moves
from .pattern import argument, is_op, shape_of
from .traits import Move, Values

_aten = torch.ops.aten
JOINS = (_aten.cat.default, _aten.stack.default)


def words_of(name: str) -> set[str]:
    """The words of a name, in lower case and in the singular: ``histItemIds`` is hist, item, id."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    return {word.removesuffix("s") if len(word) > 2 else word for word in words}


def columns_of(output: fx.Node) -> list[fx.Node]:
    """The node that gives each column of an output ``[B, …]``; the output itself where none is."""
    sizes = [size for size in shape_of(output)[1:] if isinstance(size, int)]
    count = math.prod(sizes)
    node = output
    for step in elementwise(output):
        node = step.args[0]  # type: ignore[assignment]
    if not is_op(node, *JOINS) or argument(node, 1, "dim", 0) not in (1, -1):
        return [output] * count
    parts: Any = node.args[0]
    stacked = is_op(node, _aten.stack.default)
    widths = [1 if stacked else shape_of(part)[-1] for part in parts]
    found = [part for part, width in zip(parts, widths, strict=True) for _ in range(int(width))]
    return found if len(found) == count else [output] * count


def elementwise(output: fx.Node) -> list[fx.Node]:
    """The activations and idle views behind an output, the last one first."""
    found: list[fx.Node] = []
    node: Any = output
    while _stands_between(node) and len(node.all_input_nodes) == 1:
        source = node.args[0]
        if [str(s) for s in shape_of(source)] != [str(s) for s in shape_of(node)]:
            break
        found.append(node)
        node = source
    return found


def _stands_between(node: Any) -> bool:
    """Whether a node may stand between a head and an output, each column computed by itself."""
    activates = gives(node, Values.RISING, Values.RECTIFIED, Values.CLAMPED)
    return activates or moves(node, Move.RESHAPE) or is_op(node, _aten.logit.default)
