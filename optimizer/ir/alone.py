"""One operator of a program as a program of its own."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from .forms import Form
from .infer import infer_signature
from .program import Program
from .structure import Branch, Leaf, Structure
from .torchapi import flat_graph_module


def alone(node: fx.Node) -> Program | None:
    """A program that computes what a node computes, of inputs of the same shapes and dtypes.

    Returns:
        The program; None where the node takes or makes what no program can: sizes, lists.
    """
    sources = node.all_input_nodes
    made = node.meta.get("val")
    listed = isinstance(made, (tuple, list))
    first = made[0] if isinstance(made, (tuple, list)) and made else made
    if not isinstance(first, Tensor) or not sources:
        return None
    if not all(isinstance(source.meta.get("val"), Tensor) for source in sources):
        return None
    graph = fx.Graph()
    inputs: dict[fx.Node, fx.Node] = {}
    for place, source in enumerate(sources):
        inputs[source] = graph.placeholder(f"given_{place}")
        inputs[source].meta = {"val": source.meta["val"]}
    copied = graph.node_copy(node, lambda source: inputs[source])
    result = copied
    if listed:
        result = graph.call_function(operator.getitem, (copied, 0))
        result.meta = {"val": first}
    graph.output((result,))
    module: Any = flat_graph_module(graph, {})
    names = tuple(value.name for value in inputs.values())
    signature = infer_signature(graph, ("made",))
    features = Structure(Branch("dict", names, tuple(map(Leaf, names))))
    outputs = Structure(Branch("dict", ("made",), (Leaf("made"),)))
    return Program(module, signature, features, outputs, names, Form.CAPTURED)
