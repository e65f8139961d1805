"""A backend for rankc that lives in a package of its own: a program as JSON, computed by NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import rankc
from torch import fx

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten.addmm.default": lambda bias, x, weight: x @ weight + bias,
    "aten.cat.default": lambda parts, dim=0: np.concatenate(parts, dim),
    "aten.embedding.default": lambda table, ids, *_: table[ids],
    "aten.linear.default": lambda x, weight, bias=0.0: x @ weight.T + bias,
    "aten.permute.default": np.transpose,
    "aten.relu.default": lambda x: np.maximum(x, 0),
    "aten.squeeze.dim": np.squeeze,
    "aten.squeeze.dims": lambda x, dims: np.squeeze(x, tuple(dims)),
    "aten.t.default": np.transpose,
}


class Numpy(rankc.Backend):
    """Few operators, no formats but fp32; what it doesn't have, it refuses."""

    name: ClassVar[str] = "example-numpy"

    def formats(self, target: rankc.Target) -> tuple[str, ...]:
        """None below fp32."""
        return ()

    def supports(self, node: fx.Node, target: rankc.Target) -> str | None:
        """Whether there is a function for it."""
        return None if str(node.target) in FUNCTIONS else f"NumPy has no {node.target} here"

    def build(
        self,
        program: rankc.Program,
        target: rankc.Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> rankc.Built:
        """Writes ``program.json`` and ``weights.npz``."""
        self.require(program, target)
        nodes = list(program.graph.nodes)
        places = {node: place for place, node in enumerate(nodes)}

        def plain(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return {"node": places[value]}
            return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

        steps = [[node.op, str(node.target), plain(node.args)] for node in nodes]
        text = json.dumps({"steps": steps, "outputs": program.signature.outputs})
        (folder / "program.json").write_text(text)
        weights = {name: value.numpy() for name, value in program.tensors()}
        np.savez(folder / "weights.npz", **weights)
        return rankc.Built(("program.json", "weights.npz"), {"numpy": np.__version__})

    def open(self, folder: Path, threads: int | None = None) -> Any:
        """Reads both files."""
        made = json.loads((folder / "program.json").read_text())
        weights = np.load(folder / "weights.npz", allow_pickle=False)

        def run(features: Mapping[str, Any]) -> dict[str, Any]:
            values: list[Any] = []

            def value(stored: Any) -> Any:
                if isinstance(stored, dict):
                    return values[stored["node"]]
                return [value(item) for item in stored] if isinstance(stored, list) else stored

            for op, target, args in made["steps"]:
                if op == "placeholder":
                    values.append(features[target])
                elif op == "get_attr":
                    values.append(weights[target])
                elif op == "output":
                    return dict(zip(made["outputs"], value(args)[0], strict=True))
                else:
                    values.append(FUNCTIONS[target](*map(value, args)))
            raise AssertionError("a program ends with its outputs")

        return run
