"""What stays in the process after a model was optimized and let go: none of its graphs.

torch still holds two fake modes with their shape environments for each model; they aren't counted.
"""

from __future__ import annotations

import collections
import gc
import linecache
from pathlib import Path

import pytest
import rankc
import torch
from rankc.optimizer.ir.torchapi import FakeTensorMode
from rankers import LOOSE, small, small_batches, small_inputs
from torch import fx

KINDS = {
    kind.__name__: kind
    for kind in (
        rankc.Program,
        rankc.Artifact,
        fx.GraphModule,
        fx.Graph,
        fx.Node,
        torch.nn.Parameter,
    )
}


def alive() -> dict[str, int]:
    """How many objects there are of each kind, and lines of code that were kept."""
    gc.collect()
    found: collections.Counter[str] = collections.Counter()
    for one in gc.get_objects():
        for name, kind in KINDS.items():
            found[name] += issubclass(type(one), kind)
    generated = [name for name in linecache.cache if name.startswith("<eval_with_key>")]
    return {**found, "sources": len(generated), "fake calls": len(FakeTensorMode.cache)}


@pytest.mark.parametrize("with_data", [False, True])
def test_no_graph_stays(with_data: bool, tmp_path: Path) -> None:
    def optimized() -> None:
        data = small_batches(small(), 1500) if with_data else None
        inputs = small_inputs(4, seed=0)
        rankc.optimize(small(), "cpu-fp32", inputs=inputs, data=data, budget=LOOSE, cache=tmp_path)

    optimized()
    before = alive()
    for _ in range(2):
        optimized()
    assert alive() == before
