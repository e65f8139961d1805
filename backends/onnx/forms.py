"""What number formats of linears are in ONNX, where one operator for another isn't enough.

A form writes standard ONNX. Where the opset has no operator for a step, such as finding the scales
of blocks while running, that is a function of the file, in `DOMAIN`, whose body is standard too.
A runtime that has words of its own for it, or lacks a kernel for the standard ones, gets those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import onnx_ir as ir

#: The domain of the functions.
DOMAIN = "rankc.codes"


class Form:
    """How operators of one number format are written; each does nothing unless it is said."""

    @property
    def translations(self) -> Mapping[Any, Callable[..., Any]]:
        """Dialect operators and their exporters' functions."""
        return {}

    def finish(self, model: ir.Model) -> None:
        """Gives an exported model what the exporter has no way to say: types, functions, opset."""

    def emulate(self, graph: ir.Graph) -> int:
        """Puts other words for what ONNX Runtime's CPU provider lacks; how often."""
        return 0

    def for_tensorrt(self, model: ir.Model) -> int:
        """Puts TensorRT's own operators where its parser needs them; how often."""
        return 0


#: Their classes, as ``module:Class``.
_FORMS = ("coded_weights:CodedWeights", "mxfp8:MxFp8")


def forms() -> tuple[Form, ...]:
    """All of them."""
    found = []
    for place in _FORMS:
        module, _, attribute = place.partition(":")
        found.append(getattr(import_module(f".{module}", __package__), attribute)())
    return tuple(found)
