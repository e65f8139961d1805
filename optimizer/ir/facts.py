"""Typed metadata of a node.

Facts live under ``node.meta["custom"]["rankc"]``, the only key of a node's metadata that survives
decomposition, re-export and saving. Everything else in ``node.meta`` is scratch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from ..errors import VerifyError

_KEY = "rankc"


@dataclass(frozen=True)
class Precision:
    """The number format decided for a site; a site without this fact stays as it is.

    Attributes:
        format: ``"int8"`` or ``"fp8"`` (one static range for the input), ``"int8-rows"`` (each
            input row has its own range), ``"int8-weights"`` or ``"int4-weights"`` (the input
            isn't coded), ``"mxfp8"`` or ``"nvfp4"`` (blocks of inputs have scales), ``"bf16"`` or
            ``"fp16"``; of a table, ``"int8"``, ``"int4"`` or ``"fp16"``.
        input_scale: Step of the input's codes, where it is static.
        input_zero_point: The input's code for 0.0; 0 for symmetric formats.
        input_dtype: The torch dtype's name of the input's codes.
        weight_dtype: The torch dtype's name of the weight's codes (symmetric, per output channel).
        column_scale: What each input column is multiplied by before it is quantized, and its
            weights divided by; empty for none.
        kept: Input columns that stay fp32, in a linear of their own whose result is added.
    """

    format: str
    input_scale: float = 0.0
    input_zero_point: int = 0
    input_dtype: str = ""
    weight_dtype: str = ""
    column_scale: tuple[float, ...] = ()
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Read back from JSON, tuples are lists.
        object.__setattr__(self, "column_scale", tuple(self.column_scale))
        object.__setattr__(self, "kept", tuple(self.kept))

    @property
    def recipe(self) -> str:
        """What a report calls it: ``int8-rows``, ``int8 scaled`` or ``int8 but 4 columns``."""
        scaled = " scaled" if self.column_scale else ""
        kept = f" but {len(self.kept)} columns" if self.kept else ""
        return f"{self.format}{scaled}{kept}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(vars(self))


@dataclass(frozen=True)
class Facts:
    """What is known of a node beyond its operator.

    Attributes:
        origin: Paths of the user's modules it stems from, such as ``"over.0"``.
        source: ``file:line`` in the user's code.
        made_by: The pass that made or last changed it; empty for captured nodes.
        precision: The number format placed on it.
    """

    origin: tuple[str, ...] = ()
    source: str = ""
    made_by: str = ""
    precision: Precision | None = None

    @property
    def site(self) -> str:
        """The name a user knows it by."""
        return self.origin[0] if self.origin else ""


def facts_of(node: fx.Node) -> Facts:
    """The node's facts; empty ones where none were written.

    Raises:
        VerifyError: The metadata isn't what `set_facts` writes.
    """
    stored = (node.meta.get("custom") or {}).get(_KEY)
    if not stored:
        return Facts()
    try:
        precision = stored.get("precision")
        return Facts(
            origin=tuple(stored["origin"]),
            source=stored["source"],
            made_by=stored["made_by"],
            precision=Precision(**precision) if precision else None,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise VerifyError(f"node {node.name} has malformed facts: {stored!r}") from error


def set_facts(node: fx.Node, facts: Facts) -> None:
    """Writes the node's facts."""
    custom = dict(node.meta.get("custom") or {})
    custom[_KEY] = {
        "origin": list(facts.origin),
        "source": facts.source,
        "made_by": facts.made_by,
        "precision": facts.precision.to_json() if facts.precision else None,
    }
    node.meta["custom"] = custom


def set_precision(node: fx.Node, precision: Precision | None) -> None:
    """Places a number format on a node, or takes it away."""
    set_facts(node, replace(facts_of(node), precision=precision))


def merged(nodes: tuple[fx.Node, ...], made_by: str) -> Facts:
    """The facts of a node that replaces ``nodes``: their origins together."""
    origins: dict[str, None] = {}
    source = ""
    for node in nodes:
        facts = facts_of(node)
        origins.update(dict.fromkeys(facts.origin))
        source = source or facts.source
    return Facts(origin=tuple(origins), source=source, made_by=made_by)


def site_of(node: fx.Node) -> str:
    """The name a user knows the node by: its module's path, or the node's own name."""
    return facts_of(node).site or node.name
