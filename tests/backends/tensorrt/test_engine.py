"""Bags of ids with offsets on a GPU target: TensorRT reads the ONNX and builds an engine.

TensorRT-RTX builds engines on a machine without a GPU; skipped where it isn't installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.registry import backend
from rankc.optimizer.target import Target
from support import run_passes
from torch import Tensor, nn

TARGET = Target.of("l40s-fp8")
LENGTHS = torch.tensor([2, 0, 3, 1, 4])
IDS = torch.arange(10) * 7 % 50


class Bags(nn.Module):
    """Ids of any number beside dense features, given by lengths or by where rows begin."""

    def __init__(self, mode: str, padding: int | None, by_lengths: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(50, 8, mode=mode, padding_idx=padding)
        self.bag.include_last_offset = by_lengths
        self.score = nn.Linear(12, 1)

    def forward(self, dense: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        if self.bag.include_last_offset:
            rows = torch.cat([rows.new_zeros(1), rows.cumsum(0)])
        return self.score(torch.cat([self.bag(ids, rows), dense], 1))  # type: ignore[no-any-return]


def build(folder: Path, mode: str, padding: int | None, by_lengths: bool) -> tuple[Any, Path]:
    model = Bags(mode, padding, by_lengths).eval()
    delimiter = LENGTHS if by_lengths else LENGTHS.cumsum(0) - LENGTHS
    program = capture(model, (torch.rand(5, 4), IDS, delimiter))
    ran = run_passes(program, "rounding", target=TARGET)
    built = backend("onnx").build(ran.program, TARGET, folder, {})
    return model, folder / built.files[0]


forms = pytest.mark.parametrize(
    ("mode", "padding", "by_lengths"),
    [("sum", None, True), ("mean", None, False), ("mean", 0, True), ("max", 0, False)],
)


@forms
def test_the_onnx_scores_like_the_model(
    tmp_path: Path, mode: str, padding: int | None, by_lengths: bool
) -> None:
    model, path = build(tmp_path, mode, padding, by_lengths)
    session = onnxruntime.InferenceSession(str(path))
    for lengths in (LENGTHS, torch.tensor([3]), torch.tensor([0, 0])):
        rows = lengths if by_lengths else lengths.cumsum(0) - lengths
        call = (torch.rand(len(lengths), 4), IDS[: int(lengths.sum())], rows)
        feeds = dict(zip(("dense", "ids", "rows"), (v.numpy() for v in call), strict=True))
        (got,) = session.run(None, feeds)
        assert np.allclose(got, model(*call).detach().numpy(), rtol=0.0, atol=1e-6)


@forms
def test_tensorrt_builds_an_engine(
    tmp_path: Path, mode: str, padding: int | None, by_lengths: bool
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _, path = build(tmp_path, mode, padding, by_lengths)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse_from_file(str(path))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, shapes in {
        "dense": ((1, 4), (64, 4), (512, 4)),
        "ids": ((1,), (640,), (10240,)),
        "rows": ((1,), (64,), (512,)),
    }.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
