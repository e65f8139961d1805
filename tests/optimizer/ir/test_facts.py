"""Facts of nodes: typed, surviving, and checked when read."""

from __future__ import annotations

from typing import Any

import pytest
from rankc.optimizer.errors import VerifyError
from rankc.optimizer.ir import Facts, Precision, facts_of, set_facts, set_precision, site_of
from rankc.optimizer.ir.facts import merged
from torch import fx

INT8 = Precision("int8", 0.02, 117, "uint8", "int8")


@pytest.fixture
def nodes() -> list[fx.Node]:
    graph = fx.Graph()
    return [graph.placeholder(name) for name in ("x", "y")]


def test_there_and_back(nodes: list[fx.Node]) -> None:
    node = nodes[0]
    assert facts_of(node) == Facts()
    assert site_of(node) == "x"
    facts = Facts(("deep.0", "deep.1"), "model.py:3", "fold-affine", INT8)
    set_facts(node, facts)
    assert facts_of(node) == facts
    assert site_of(node) == "deep.0"
    set_precision(node, None)
    assert facts_of(node) == Facts(("deep.0", "deep.1"), "model.py:3", "fold-affine")


def test_writing_leaves_other_metadata_alone(nodes: list[fx.Node]) -> None:
    shared: dict[str, Any] = {"theirs": 1}
    nodes[0].meta["custom"] = shared
    set_facts(nodes[0], Facts(("a",)))
    assert nodes[0].meta["custom"]["theirs"] == 1
    assert shared == {"theirs": 1}


def test_merging_joins_origins(nodes: list[fx.Node]) -> None:
    set_facts(nodes[0], Facts(("a", "b"), ""))
    set_facts(nodes[1], Facts(("b", "c"), "model.py:9"))
    assert merged(tuple(nodes), "fuse") == Facts(("a", "b", "c"), "model.py:9", "fuse")


@pytest.mark.parametrize(
    "stored",
    [
        {"origin": ["a"]},
        {"origin": None, "source": "", "made_by": ""},
        {"origin": [], "source": "", "made_by": "", "precision": {"input_scale": 1.0}},
        ["a"],
        "a",
    ],
)
def test_malformed_facts_are_told(nodes: list[fx.Node], stored: Any) -> None:
    nodes[0].meta["custom"] = {"rankc": stored}
    with pytest.raises(VerifyError, match="node x has malformed facts"):
        facts_of(nodes[0])
