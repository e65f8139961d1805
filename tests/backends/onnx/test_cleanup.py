"""What is written to ONNX computes what the program says, constants near nothing included."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from rankc import models
from rankc.backends.onnx.cleanup import clean_up
from rankc.backends.onnx.translate import to_onnx
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.frontends.export import capture
from rankc.optimizer.target import Target
from support import canonical, run_passes
from torch import Tensor, nn

_HOSTILE = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 1e-8, 1e-30, 3.5, -7.25, 1e8, float("inf"), -float("inf"), float("nan")]
)
X = torch.stack([_HOSTILE, _HOSTILE.flip(0), _HOSTILE.roll(5)], dim=1)


class Applies(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


_NEAR = [1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-12, 1e-30]


@pytest.mark.parametrize("small", [*_NEAR, *(-size for size in _NEAR)])
def test_a_constant_near_nothing_counts(small: float, tmp_path: Path) -> None:
    def function(x: Tensor) -> Tensor:
        one = 1.0 + small
        parts = [x + small, small + x, x - small, x * one, one * x, x / one, x * small, x / small]
        return torch.cat(parts, dim=1)

    _is_bit_equal(function, X, tmp_path)


_MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "split of an odd size": lambda x: torch.cat([x[:, :1] * 2.0, x[:, 1:]], dim=1),
    "min of max": lambda x: torch.minimum(torch.maximum(x, torch.tensor(-1.0)), torch.tensor(2.0)),
    "max of min": lambda x: torch.maximum(torch.minimum(x, torch.tensor(2.0)), torch.tensor(-1.0)),
    "clamp of clamp": lambda x: x.clamp(-5.0, 5.0).clamp(-1.0, 2.0),
    "clamp of relu": lambda x: torch.relu(x).clamp(max=6.0),
    "a cast through two formats": lambda x: x.double().float().half().float(),
    "views of views": lambda x: x.view(-1, 1, 3).reshape(-1, 3, 1).transpose(1, 2).squeeze(1),
    "transposes that cancel": lambda x: (x[:, None] * 1.0).transpose(1, 2).transpose(2, 1)[:, 0],
    "a slice of everything": lambda x: x[:, 0:3][:, :10] * 1.0,
    "a padded convolution": lambda x: torch.nn.functional.conv1d(
        torch.nn.functional.pad(x[:, None].nan_to_num(), (1, 1)), torch.ones(1, 1, 2)
    )[:, 0],
}


@pytest.mark.parametrize("name", _MOVES)
def test_is_bit_equal(name: str, tmp_path: Path) -> None:
    _is_bit_equal(_MOVES[name], X, tmp_path)


def _is_bit_equal(function: Callable[[Tensor], Tensor], x: Tensor, folder: Path) -> None:
    program = run_passes(canonical(Applies(function), torch.ones_like(x)), "exact").program
    target = Target.of("cpu-fp32")
    OnnxRuntime().build(program, target, folder, {})
    runner = OnnxRuntime().open(folder, 1)
    for rows in (x, x[:1], x[:0]):
        (expected,) = program.run({program.signature.names[0]: rows}).values()
        (found,) = runner({program.signature.names[0]: rows.numpy()}).values()
        bits = torch.from_numpy(found).view(torch.int32)
        nan = expected.isnan()
        assert torch.equal(torch.from_numpy(found).isnan(), nan)
        assert torch.equal(bits[~nan], expected.view(torch.int32)[~nan])


def test_integers_of_a_constant_are_divided_where_they_are_served() -> None:
    """onnx's own evaluator floors, ONNX's operator truncates."""
    a, b = (ir.Value(name=name) for name in "ab")
    for value, number in ((a, -7), (b, 2)):
        value.const_value = ir.tensor([number], ir.DataType.INT64, value.name)
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    node = ir.node("Div", [a, b])
    node.outputs[0].name = "score"
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[a, b], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    clean_up(model)
    assert [node.op_type for node in model.graph] == ["Div"]


@pytest.mark.parametrize("name", ["dlrm", "din", "autoint"])
def test_shapes_of_the_zoo_are_folded(name: str) -> None:
    program = run_passes(capture(models.zoo()[name]().eval()), "rounding").program
    model = to_onnx(program)
    kinds = collections.Counter(node.op_type for node in model.graph)
    assert not {"Constant", "Identity", "Cast"} & set(kinds)
    assert all(value.dtype is not None for node in model.graph for value in node.outputs)
