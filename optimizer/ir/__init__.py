"""The graph: `Program`, its contract, its dialect, and how it may be changed."""

from . import ops  # registers the dialect
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
from .verify import verify

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
