"""One function or one ONNX node, through a runtime and beside what it should give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import rankc
import torch
from onnx import TensorProto, helper
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.frontends.export import capture
from rankc.optimizer.target import Target
from torch import Tensor, nn


class Of(nn.Module):
    """A function of some features ``[B, …]``."""

    def __init__(self, function: Callable[..., Tensor], count: int) -> None:
        super().__init__()
        self.function, self.count = function, count

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.function(x) if y is None else self.function(x, y)


def on_onnxruntime(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What ONNX Runtime gives of a function, and what eager PyTorch does."""
    program = capture(Of(function, len(inputs)).eval(), inputs)
    with TemporaryDirectory() as folder:
        OnnxRuntime().build(program, Target.of("cpu-fp32"), Path(folder), {})
        runner = OnnxRuntime().open(Path(folder), 1)
        given = zip(program.signature.names, inputs, strict=True)
        (found,) = runner({name: np.ascontiguousarray(v.numpy()) for name, v in given}).values()
    return torch.as_tensor(found), function(*inputs)


def from_file(
    nodes: Sequence[Any], x: Tensor, folder: Path, weights: Sequence[Any] = ()
) -> tuple[Tensor, Tensor]:
    """What a captured ONNX file gives of ``x`` ``[N, …]``, and what ONNX Runtime gives of it."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    (found,) = rankc.capture(path).run({"x": x}).values()
    session = onnxruntime.InferenceSession(path)
    return found, torch.as_tensor(session.run(None, {"x": x.numpy()})[0])


def relu_model() -> Any:
    """The ONNX model of one relu, from ``x`` to ``y`` ``[N, 2]``."""
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
