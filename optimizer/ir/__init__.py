"""The graph: `Program`, its contract, its dialect, and how it may be changed.

Each name is imported when first used: an artifact's contract is read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops
    from .facts import Facts, Precision, facts_of, set_facts, set_precision, site_of
    from .forms import Form
    from .pattern import Miss, Rule, apply_rules
    from .program import Program
    from .rewrite import Rewriter, sweep
    from .signature import (
        BATCH,
        Feature,
        FeatureKind,
        Score,
        Side,
        Signature,
        Task,
        TaskKind,
    )
    from .structure import Structure
    from .verifier import verify

#: name -> the module here that it is found in.
_FOUND_IN = {
    **dict.fromkeys(
        ("Facts", "Precision", "facts_of", "set_facts", "set_precision", "site_of"), "facts"
    ),
    "Form": "forms",
    **dict.fromkeys(("Miss", "Rule", "apply_rules"), "pattern"),
    "Program": "program",
    **dict.fromkeys(("Rewriter", "sweep"), "rewrite"),
    **dict.fromkeys(
        ("BATCH", "Feature", "FeatureKind", "Score", "Side", "Signature", "Task", "TaskKind"),
        "signature",
    ),
    "Structure": "structure",
    "verify": "verifier",
}

__all__ = [
    "BATCH",
    "Facts",
    "Feature",
    "FeatureKind",
    "Form",
    "Miss",
    "Precision",
    "Program",
    "Rewriter",
    "Rule",
    "Score",
    "Side",
    "Signature",
    "Structure",
    "Task",
    "TaskKind",
    "apply_rules",
    "facts_of",
    "ops",
    "set_facts",
    "set_precision",
    "site_of",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_FOUND_IN[name]}"), name)
    globals()[name] = found
    return found
