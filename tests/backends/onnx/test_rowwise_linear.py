"""Row-wise quantized linears: as standard operators, as a function, and as a native operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rankc.backends.native import library
from rankc.backends.onnx.rowwise_linear import inline_rowwise, outline_rowwise
from rankc.backends.onnx.translate import save_onnx, to_onnx
from rankc.backends.onnxruntime.runtime import OrtRunner
from rankc.optimizer.ir.ops import ROWWISE_LINEAR
from support import capture_small
from torch import Tensor, nn

SHAPES = [(16, 8), (83, 70), (64, 130), (5, 1), (33, 17)]


class Linear(nn.Module):
    """A row-wise quantized linear, with or without all that it may have."""

    def __init__(self, inputs: int, outputs: int, *, kept: bool, relu: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(inputs)
        codes = torch.randint(-127, 128, (outputs, inputs), generator=generator)
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scale", torch.rand(outputs, generator=generator) / 100 + 0.001)
        self.register_buffer("bias", torch.randn(outputs, generator=generator))
        self.register_buffer("columns", torch.rand(inputs, generator=generator) + 0.5)
        self.register_buffer("kept", torch.tensor([1, 3]))
        self.register_buffer("kept_weight", torch.randn(outputs, 2, generator=generator))
        self.columns[self.kept] = 0.0
        self.codes[:, self.kept] *= 0
        self.has_kept, self.relu = kept, relu

    def forward(self, x: Tensor) -> Tensor:
        extra = [self.bias, self.columns, self.kept, self.kept_weight]
        y = ROWWISE_LINEAR.op(x, self.codes, self.scale, *(extra if self.has_kept else [None] * 4))
        return torch.relu(y) if self.relu else y


def rows(count: int, inputs: int) -> Tensor:
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(count))
    x[count // 2] = 2.5  # a row without steps
    x[0] *= 1000.0
    return x


def runner_of(module: nn.Module, x: Tensor, folder: Path, form: str) -> Any:
    model = to_onnx(capture_small(module, x))
    changed = (inline_rowwise if form == "standard" else outline_rowwise)(model)
    assert changed == 1
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["RowwiseLinear"] or form == "standard"
    save_onnx(model, folder / "model.onnx", {})
    return OrtRunner(folder / "model.onnx", 1, native=form == "native")


@pytest.mark.parametrize("form", ["standard", "function", "native"])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_scores_like_the_reference(
    inputs: int, outputs: int, kept: bool, form: str, tmp_path: Path
) -> None:
    if form == "native" and library().path is None:
        pytest.skip(library().reason)
    module = Linear(inputs, outputs, kept=kept, relu=outputs > 16)
    run = runner_of(module, rows(4, inputs), tmp_path, form)
    for count in (1, 5, 7, 200):
        x = rows(count, inputs)
        (got,) = run({"x": x.numpy()}).values()
        expected = module(x).numpy()
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.skipif(library().path is None, reason=library().reason)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set_gives_the_same(level: int, tmp_path: Path) -> None:
    module = Linear(83, 70, kept=True, relu=True)
    try:
        library().limit(level)
        run = runner_of(module, rows(4, 83), tmp_path, "native")
    finally:
        library().limit(2)
    x = rows(50, 83)
    (got,) = run({"x": x.numpy()}).values()
    expected = module(x).numpy()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_sequence_is_rows(tmp_path: Path) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Linear(16, 8, kept=False, relu=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).sum(1)

    model = to_onnx(capture_small(Sequence(), torch.randn(4, 3, 16)))
    outline_rowwise(model)
    save_onnx(model, tmp_path / "model.onnx", {})
    x = torch.randn(6, 3, 16)
    for native in (False, True):
        run = OrtRunner(tmp_path / "model.onnx", 1, native=native)
        (got,) = run({"x": x.numpy()}).values()
        assert np.abs(got - Sequence()(x).numpy()).max() <= 1e-4


def test_no_rows_at_all(tmp_path: Path) -> None:
    run = runner_of(Linear(16, 8, kept=False, relu=True), rows(4, 16), tmp_path, "native")
    (got,) = run({"x": np.zeros((0, 16), np.float32)}).values()
    assert got.shape == (0, 8)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("form", ["standard", "function", "native"])
@pytest.mark.parametrize("relu", [False, True])
def test_a_row_of_nan_or_infinity_gives_nan(
    form: str, relu: bool, level: int, tmp_path: Path
) -> None:
    """And no other row does: wherever in the row it is."""
    if form == "native" and library().path is None:
        pytest.skip(library().reason)
    if form != "native" and level:
        pytest.skip("only native kernels have instruction sets")
    module = Linear(37, 19, kept=True, relu=relu)
    try:
        library().limit(level)
        run = runner_of(module, rows(4, 37), tmp_path, form)
    finally:
        library().limit(2)
    x = rows(150, 37)
    (clean,) = run({"x": x.numpy()}).values()
    places = torch.arange(0, 150, 2)
    for bad in (np.nan, np.inf, -np.inf):
        hostile = x.clone()
        hostile[places, places % 37] = bad
        (got,) = run({"x": hostile.numpy()}).values()
        assert np.isnan(got[::2]).all()
        assert np.array_equal(got[1::2], clean[1::2])
