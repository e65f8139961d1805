"""Missing values: what a model takes is found by running it, and accepted everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rankc
import torch
from rankc.optimizer.errors import DataError
from rankc.optimizer.ir import Signature
from torch import Tensor, nn

NAN, INF = float("nan"), float("inf")
Fill = Callable[["Filled", Tensor], Tensor]


class Filled(nn.Module):
    """Fills what is missing by ``fill``."""

    def __init__(self, fill: Fill) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fill = nn.Parameter(torch.randn(4))
        self.over = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
        self.fills = fill

    def forward(self, x: Tensor) -> Tensor:
        return self.over(self.fills(self, x)).squeeze(1)


def rows(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return torch.where(torch.rand(count, 4, generator=generator) < 0.2, NAN, x)


def where(m: Filled, x: Tensor) -> Tensor:
    return torch.where(x.isnan(), m.fill, x)


FILLS: list[tuple[Fill, tuple[str, ...]]] = [
    (where, ("nan",)),
    (lambda m, x: torch.where(x != x, m.fill, x), ("nan",)),
    (lambda m, x: torch.nan_to_num(x), ("nan inf -inf",)),
    (lambda m, x: torch.nan_to_num(x, 0.0, 3.0, -3.0), ("nan inf -inf",)),
    (lambda m, x: x.masked_fill(~torch.isfinite(x), 0.0), ("nan inf -inf",)),
    (lambda m, x: (x > 0.5).float(), ("nan inf -inf",)),
    (lambda m, x: x.clamp(-2, 2), ("inf -inf",)),
    (lambda m, x: torch.sigmoid(x), ("inf -inf",)),
    (lambda m, x: torch.nanmean(x, 1, keepdim=True) + m.fill, ("nan",)),
    (lambda m, x: torch.cat([torch.where(x[:, :1].isnan(), 0.0, x[:, :1]), x[:, 1:]], 1),
     ("nan", "", "", "")),
    (lambda m, x: x, ()),
]  # fmt: skip


@pytest.mark.parametrize(("fill", "missing"), FILLS)
def test_what_a_model_takes(tmp_path: Path, fill: Fill, missing: tuple[str, ...]) -> None:
    module = Filled(fill).eval()
    x = torch.randn(8, 4)
    program = rankc.capture(module, (x,))
    (feature,) = program.signature
    assert feature.missing == missing
    assert Signature.from_json(program.signature.to_json()) == program.signature
    artifact = rankc.load(rankc.optimize(program, "cpu-fp32").save(tmp_path / "saved"))
    for word in ("nan", "inf", "-inf"):
        for column in range(4):
            x[3] = 0.5
            x[3, column] = float(word)
            taken = bool(missing) and word in missing[column if len(missing) > 1 else 0].split()
            if not taken:
                with pytest.raises(DataError, match="'x' has NaN or Inf in 1 rows, first in row 3"):
                    artifact(x)
                continue
            with torch.no_grad():
                assert torch.allclose(artifact(x), module(x), atol=1e-5)


class Packed(nn.Module):
    """An id that comes as a float, of which made-up ones are beyond the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        return self.table(place.long() * 5 - 500).sum(1) + torch.nan_to_num(x)


def test_what_is_missing_is_tried_on_rows_of_the_example() -> None:
    x, place = torch.randn(6), torch.tensor([100.0, 101, 102, 103, 104, 105])
    program = rankc.capture(Packed().eval(), (x, place))
    assert program.signature.features[0].missing == ("nan inf -inf",)
    assert program.signature.features[1].missing == ()


class Masked(nn.Module):
    """A sum over what a mask, a length or an id lets through."""

    def __init__(self, keeps: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.keeps, self.head = keeps, nn.Linear(3, 1)

    def forward(self, x: Tensor, hides: Tensor) -> Tensor:
        kept = self.keeps(x, hides).unsqueeze(-1)
        return self.head(torch.where(kept, x, 0.0).sum(1)).squeeze(1)


@pytest.mark.parametrize(
    ("keeps", "hides"),
    [
        (lambda x, m: m, torch.tensor([[True, False], [False, False]])),
        (lambda x, n: torch.arange(x.shape[1]) < n.unsqueeze(1), torch.tensor([1, 0])),
        (lambda x, i: i != 0, torch.tensor([[7, 0], [0, 0]])),
    ],
    ids=["mask", "length", "padding"],
)
def test_what_masks_hide(keeps: Callable[[Tensor, Tensor], Tensor], hides: Tensor) -> None:
    module = Masked(keeps).eval()
    x = torch.tensor([[[1.0, 2, 3], [NAN, INF, 1]], [[NAN] * 3] * 2])
    artifact = rankc.optimize(module, "cpu-fp32", inputs=(torch.randn(2, 2, 3), hides))
    with torch.no_grad():
        assert torch.allclose(artifact(x, hides), module(x, hides), atol=1e-6)


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_rows_with_missing_values_are_trained_and_judged_on(target: str) -> None:
    module = Filled(where).eval()
    batches = []
    for seed in range(12):
        x = rows(100, seed)
        with torch.no_grad():
            labels = (module(x).sigmoid() > 0.5).float()
        batches.append((x, labels))
    artifact = rankc.optimize(module, target, data=batches, budget=rankc.Budget(ne=0.05))
    assert artifact.verdict.status is rankc.Status.PASS
    with torch.no_grad():
        expected = module(rows(64, 99))
    found = artifact(rows(64, 99))
    assert bool(found.isfinite().all())
    assert float((found - expected).abs().max()) < (1e-5 if target == "cpu-fp32" else 0.1)


def test_the_remedy_that_is_offered() -> None:
    plain = rankc.optimize(Filled(lambda m, x: x).eval(), "cpu-fp32", inputs=(torch.randn(4, 4),))
    with pytest.raises(DataError, match="Fill missing values as in training") as error:
        plain(rows(20))
    assert "or in the model's forward: its own scores of them are NaN or Inf" in str(error.value)
    mended = rankc.optimize(Filled(where).eval(), "cpu-fp32", inputs=(torch.randn(4, 4),))
    assert np.isfinite(mended(rows(20)).numpy()).all()
