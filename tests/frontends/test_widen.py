"""Models in half precision: captured in float32, within the rounding of their own format."""

from __future__ import annotations

import pytest
import rankc
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import CaptureError
from torch import Tensor, nn

IDS = torch.arange(12) * 7 % 20
DENSE = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
KINDS = [torch.bfloat16, torch.float16]


class Mixed(nn.Module):
    """A table in float32, a tower in another format, scores in float32 or not."""

    def __init__(self, dtype: torch.dtype, last: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(20, 8)
        self.tower = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1))
        self.tower.to(dtype)
        self.dtype, self.last = dtype, last or dtype

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        x = torch.cat([self.items(ids), dense.to(self.items.weight.dtype)], 1)
        return self.tower(x.to(self.dtype)).to(self.last).squeeze(1)  # type: ignore[no-any-return]


class Autocast(Mixed):
    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(ids, dense).float()


def closeness(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest score."""
    return float((got.float() - want.float()).abs().max() / want.float().abs().max())


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("whole", [True, False])
def test_scores_agree_within_the_rounding_of_the_format(dtype: torch.dtype, whole: bool) -> None:
    model = Mixed(dtype, None if whole else torch.float32).eval()
    if whole:
        model.to(dtype)
    weights = {name: weight.dtype for name, weight in model.state_dict().items()}
    dense = DENSE.to(dtype) if whole else DENSE
    program = capture(model, (IDS, dense))
    assert all(
        node.meta["val"].dtype.itemsize != 2
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    )
    assert f"{str(dtype).removeprefix('torch.')} at" in program.notes[0]
    assert "'tower.0'" in program.notes[0]
    assert {name: weight.dtype for name, weight in model.state_dict().items()} == weights
    for rows in (1, 3, 12):
        with torch.no_grad():
            want = model(IDS[:rows], dense[:rows])
        # Rows in the model's own format are taken as they are.
        assert closeness(program(IDS[:rows], dense[:rows]), want) < 8 * torch.finfo(dtype).eps


def test_an_artifact_of_a_bfloat16_model() -> None:
    model = Mixed(torch.bfloat16).to(torch.bfloat16).eval()
    artifact = rankc.optimize(model, "cpu-fp32", inputs=(IDS, DENSE.bfloat16()))
    scores = artifact(IDS[:3], DENSE[:3].bfloat16())
    with torch.no_grad():
        assert closeness(scores, model(IDS[:3], DENSE[:3].bfloat16())) < 0.03


def test_autocast() -> None:
    model = Autocast(torch.float32).eval()
    with torch.no_grad():
        assert closeness(capture(model, (IDS, DENSE))(IDS, DENSE), model(IDS, DENSE)) < 0.03


class Hangs(nn.Module):
    """A bucket that hangs on what bfloat16 rounds away."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.tower.weight, 1.0)
        self.tower.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        sums = self.tower(x.to(self.tower.weight.dtype)).float().squeeze(1)
        return (sums * 512).floor().remainder(2.0)  # type: ignore[no-any-return]


def test_a_decision_that_hangs_on_the_rounding_is_refused_and_its_remedy_works() -> None:
    model = Hangs().eval()
    with pytest.raises(CaptureError, match=r"bfloat16 at 'tower'.*Call .float\(\) on these layers"):
        capture(model, (DENSE,))
    model.tower.float()
    with torch.no_grad():
        assert torch.equal(capture(model, (DENSE,))(DENSE), model(DENSE))
