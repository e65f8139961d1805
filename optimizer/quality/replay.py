"""Running many programs that differ in a few nodes on the same rows: the rest is computed once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.program import Program, content_hash

#: Values of this many bytes are remembered; those longest unused go first.
_LIMIT = 512 * 2**20


class Replay:
    """Runs programs on one set of rows and remembers each node's value by how it was made.

    Two nodes of two programs have one value when their operators, arguments and parameters are the
    same, down to the inputs. A program with one site changed costs what follows that site.

    Args:
        features: The rows, by feature name.
        limit: How many bytes of values are remembered.
    """

    def __init__(self, features: Mapping[str, Tensor], limit: int = _LIMIT) -> None:
        self._features = features
        self._limit = limit
        self._held = 0
        self._values: OrderedDict[bytes, Any] = OrderedDict()

    def run(self, program: Program) -> dict[str, Tensor]:
        """The program's output tensors by name, without gradients."""
        runner = _Runner(program, self)
        with torch.no_grad():
            results = runner.run(*program.ordered(self._features))
        return dict(zip(program.signature.outputs, results, strict=True))

    def recall(self, key: bytes) -> Any:
        """The value made that way, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def remember(self, key: bytes, value: Any) -> None:
        """Keeps a value, and drops old ones if there is no room."""
        self._values[key] = value
        self._held += _nbytes(value)
        while self._held > self._limit and self._values:
            _, dropped = self._values.popitem(last=False)
            self._held -= _nbytes(dropped)


class _Runner(fx.Interpreter):
    def __init__(self, program: Program, replay: Replay) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self._program = program
        self._replay = replay
        self._keys: dict[fx.Node, bytes] = {}

    def run_node(self, n: fx.Node) -> Any:
        key = self._keys[n] = self._key(n)
        if n.op != "call_function":
            return super().run_node(n)
        known = self._replay.recall(key)
        if known is None:
            known = super().run_node(n)
            self._replay.remember(key, known)
        return known

    def _key(self, node: fx.Node) -> bytes:
        if node.op == "get_attr":
            return content_hash(self._program.tensor(str(node.target)))
        named = fx.map_arg((node.args, node.kwargs), lambda n: _Made(self._keys[n]))  # type: ignore[arg-type,return-value]
        text = f"{node.op} {node.target} {named}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


class _Made:
    """How an argument was made, as text."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return self._key.hex()


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(map(_nbytes, value))
    return 8
