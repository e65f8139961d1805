"""Offsets and lengths that don't cut a list of ids are refused, whatever runs the bags."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rankc
import torch
from rankc.backends.native import library
from rankc.backends.onnx.bags import NAME
from rankc.optimizer.errors import SignatureError
from rankers import EAGER_FP32
from torch import Tensor, nn

LENGTHS = torch.tensor([2, 0, 3, 1, 4])
IDS = torch.arange(10) * 7 % 50
DENSE = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
#: Where five rows begin in a list of ten ids: falling, from 2 on, beyond the ids, negative.
WRONG = {
    "falling": ([0, 5, 3, 6, 7], r"row 1 would begin at 5 and end at 3 of 10 values"),
    "from 2 on": ([2, 3, 4, 6, 7], r"row 0 would begin at 2 and end at 3 of 10 values"),
    "beyond": ([0, 2, 3, 6, 12], r"row 4 would begin at 12 and end at"),
    "far beyond": ([0, 2, 3, 6, 2**40], r"row 4 would begin at 1099511627776 and end at"),
    "negative": ([0, -1, 3, 6, 10], r"row 0 would begin at 0 and end at -1 of 10 values"),
    "from -1 on": ([-1, 2, 3, 6, 10], r"row 0 would begin at -1 and end at 2 of 10 values"),
    "beyond and back": ([0, 2, 3, 12, 5], r"row 3 would begin at 12 and end at 5 of 10 values"),
    "the least": ([0, -(2**63), 3, 6, 10], r"row 0 would begin at 0 and end at -9223372036854775"),
}


class Bags(nn.Module):
    """Dense features beside one bag of ids."""

    def __init__(self, mode: str, ends: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(50, 8, mode=mode, include_last_offset=ends)
        self.score = nn.Linear(12, 1)

    def forward(self, dense: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.score(torch.cat([self.bag(ids, offsets), dense], 1))  # type: ignore[no-any-return]


class ByLengths(Bags):
    def forward(self, dense: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(dense, ids, lengths.cumsum(0) - lengths)


def starts(ends: bool) -> Tensor:
    begins = LENGTHS.cumsum(0) - LENGTHS
    return torch.cat([begins, begins.new_full((1,), 10)]) if ends else begins


@cache
def built(mode: str, ends: bool, target: Any = "cpu-fp32") -> rankc.Artifact:
    example = DENSE, IDS, starts(ends)
    return rankc.optimize(Bags(mode, ends).eval(), target, inputs=example)


def sessions(path: Path) -> dict[str, onnxruntime.InferenceSession]:
    """The file in sessions of the user's own, without and with the native operators."""
    found = {}
    for name, operators in (("plain", None), ("native", library().path)):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if name == "native":
            if operators is None:
                continue
            options.register_custom_ops_library(str(operators))
        found[name] = onnxruntime.InferenceSession(str(path), options)
    return found


def refused(run: Any, *expected: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - ONNX Runtime's classes
        run()
    assert any(text in str(caught.value) for text in expected), caught.value


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(("mode", "ends"), [("sum", True), ("mean", False), ("max", True)])
def test_offsets_that_cut_nothing_are_refused(mode: str, ends: bool, name: str) -> None:
    artifact, (offsets, said) = built(mode, ends), WRONG[name]
    given = torch.tensor([*offsets, *([10] if ends else [])])
    message = f"feature 'offsets' isn't rising from 0: {said}"
    with pytest.raises(SignatureError, match=message):
        artifact(DENSE, IDS, given)
    rows = {"dense": DENSE.numpy(), "ids": IDS.numpy(), "offsets": given.numpy()}
    with pytest.raises(SignatureError, match=message):
        artifact.run(rows)
    for session in sessions(artifact.onnx_path).values():
        refused(lambda s=session: s.run(None, rows), NAME, "of a list of 10")
    with pytest.raises(IndexError):
        rankc.capture(Bags(mode, ends).eval(), (DENSE, IDS, starts(ends))).run(
            {name: torch.from_numpy(value) for name, value in rows.items()}
        )


@pytest.mark.parametrize("ends", [True, False])
def test_right_offsets_score_the_same_in_every_session(ends: bool) -> None:
    artifact, module = built("sum", ends), Bags("sum", ends).eval()
    for lengths in ([2, 0, 3, 1, 4], [0, 0, 0, 0, 10], [10, 0, 0, 0, 0], [0] * 5, [7], []):
        sizes = torch.tensor(lengths, dtype=torch.int64)
        dense, ids = torch.rand(len(sizes), 4), IDS[: int(sizes.sum())]
        begins = sizes.cumsum(0) - sizes
        offsets = torch.cat([begins, sizes.sum()[None]]) if ends else begins
        rows = {"dense": dense.numpy(), "ids": ids.numpy(), "offsets": offsets.numpy()}
        if not lengths:
            assert artifact(dense, ids, offsets).shape == (0, 1)
            continue
        want = module(dense, ids, offsets).detach().numpy()
        assert np.allclose(artifact(dense, ids, offsets).numpy(), want, rtol=0.0, atol=1e-6)
        for session in sessions(artifact.onnx_path).values():
            assert np.allclose(session.run(None, rows)[0], want, rtol=0.0, atol=1e-6)


def test_an_end_before_the_last_id_is_refused() -> None:
    artifact = built("sum", True)
    offsets = np.array([0, 2, 2, 5, 6, 9])
    rows = {"dense": DENSE.numpy(), "ids": IDS.numpy(), "offsets": offsets}
    with pytest.raises(SignatureError, match="'ids' has 10 values, and 'offsets' delimits 9"):
        artifact.run(rows)
    for session in sessions(artifact.onnx_path).values():
        refused(lambda s=session: s.run(None, rows), NAME, "of a list of 10")


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([2, -1, 4, 1, 4], r"'lengths' isn't rising from 0: row 1 would begin at 2 and end at 1"),
        ([2, 0, 3, 9, 4], "'ids' has 10 values, and 'lengths' delimits 18"),
    ],
)
def test_lengths_that_cut_nothing_are_refused(lengths: list[int], said: str) -> None:
    artifact = rankc.optimize(ByLengths("sum", False).eval(), inputs=(DENSE, IDS, LENGTHS))
    given = torch.tensor(lengths)
    with pytest.raises(SignatureError, match=said):
        artifact(DENSE, IDS, given)
    rows = {"dense": DENSE.numpy(), "ids": IDS.numpy(), "lengths": given.numpy()}
    with pytest.raises(SignatureError, match=said):
        artifact.run(rows)
    for session in sessions(artifact.onnx_path).values():
        refused(lambda s=session: s.run(None, rows), NAME, "of a list of 10")


@pytest.mark.parametrize("target", [EAGER_FP32, "mlir-cpu"], ids=["eager", "mlir"])
def test_backends_that_refuse_nothing_are_asked_after_the_check(target: Any) -> None:
    artifact = built("sum", False, target)
    for offsets, said in WRONG.values():
        rows = {"dense": DENSE.numpy(), "ids": IDS.numpy(), "offsets": np.array(offsets)}
        with pytest.raises(SignatureError, match=said):
            artifact.run(rows)
