from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import ONE_ROUNDING, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

T, D = 4, 6
X = torch.randn(5, T, D)


class Convolved(nn.Module):
    """``body(x, convolution, mix)``, summed."""

    def __init__(
        self, body: Callable[..., Tensor], convolution: nn.Module | None = None, rows: int = T
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1) if convolution is None else convolution
        self.mix = nn.Parameter(torch.randn(2, rows))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x, self.convolution, self.mix)).flatten(1).sum(1)


class Products(nn.Module):
    """The same as two products; ``mixed`` are the rows that are made of x."""

    def __init__(self, before: Convolved, *, mixed: bool) -> None:
        super().__init__()
        kernel = before.convolution.weight.detach().double()[0, 0]
        high, wide = kernel.shape
        mix = before.mix.detach().double() if mixed else torch.eye(T, dtype=torch.float64)
        shifts = torch.zeros(T, high, T, dtype=torch.float64)
        bands = torch.zeros(high, D, D, dtype=torch.float64)
        for i in range(high):
            shifts[:, i] = _shift(T, i - high // 2)
            for j in range(wide):
                bands[i] += kernel[i, j] * _shift(D, j - wide // 2).T
        rows = torch.einsum("ot,tik->oik", mix, shifts)
        self.rows = nn.Parameter(rows.flatten(0, 1).float())
        self.columns = nn.Parameter(bands.flatten(0, 1).T.float().contiguous())
        bias = before.convolution.bias
        self.offset = None
        if bias is not None:
            offset = bias.detach().double()
            column = offset * mix.sum(1, keepdim=True) if mixed else offset.reshape(1, 1)
            self.offset = nn.Parameter(column.float())
        self.outputs, self.high, self.mixed = len(mix), high, mixed

    def forward(self, x: Tensor) -> Tensor:
        moved = self.rows @ x.unsqueeze(1).squeeze(1)
        made = F.linear(moved.reshape(-1, self.outputs, self.high * D), self.columns)
        made = made if self.offset is None else made + self.offset
        if not self.mixed:
            made = made.unsqueeze(1).squeeze(1)
        return torch.relu(made).flatten(1).sum(1)


def _shift(size: int, step: int) -> Tensor:
    """``[size, size]``: row t holds what stands ``step`` after t."""
    return torch.diag(torch.ones(size - abs(step), dtype=torch.float64), step)


def _alone(x: Tensor, convolution: nn.Module, mix: Tensor) -> Tensor:
    made: Tensor = convolution(x.unsqueeze(1)).squeeze(1)
    return made


def _mixed(x: Tensor, convolution: nn.Module, mix: Tensor) -> Tensor:
    return mix @ _alone(x, convolution, mix)


def lowered(module: Convolved, passes: str = "lower-convolution") -> Ran:
    return run_passes(canonical(module, X), passes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("body", "mixed"), [(_alone, False), (_mixed, True)])
def test_before_and_expected(body: Callable[..., Tensor], mixed: bool, bias: bool) -> None:
    torch.manual_seed(1)
    before = Convolved(body, nn.Conv2d(1, 1, (3, 5), padding=(1, 2), bias=bias))
    ran = lowered(before)
    expected = Products(before, mixed=mixed)
    assert_same_graph(ran.program, expected, (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("lower-convolution") == ["computed 1 convolutions by matrix products"]


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv2d(1, 1, (2, 3)), nn.Conv2d(1, 1, 2, padding=(2, 1), dilation=(2, 1))],
    ids=["no padding", "dilated"],
)
def test_other_sizes(convolution: nn.Module) -> None:
    """The pipeline compares scores; the products here have fewer or more rows than the input."""
    assert lowered(Convolved(_alone, convolution)).outcomes == [Outcome.CHANGED]


_CHANNELS = "the convolution has several channels"
_STRIDES = "the convolution is transposed or takes strides"


@pytest.mark.parametrize(
    ("module", "passes", "reasons"),
    [
        (Convolved(_alone, nn.Conv2d(1, 3, 3, padding=1)), "", [_CHANNELS]),
        (Convolved(_alone, nn.Conv2d(1, 1, 3, stride=2)), "", [_STRIDES]),
        (Convolved(_alone, nn.ConvTranspose2d(1, 1, 2)), "", [_STRIDES]),
        (
            Convolved(_alone),
            "{max_ratio=0.01}",
            ["as products it would take more multiplications"],
        ),
        (Convolved(lambda x, c, m: c(x), nn.Conv1d(T, T, 1)), "", []),
    ],
    ids=["channels", "strides", "transposed", "more work", "another dimension"],
)
def test_near_misses(module: Convolved, passes: str, reasons: list[str]) -> None:
    ran = lowered(module, f"lower-convolution{passes}")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("lower-convolution") == reasons


def test_a_result_that_is_read_elsewhere_is_not_mixed_ahead() -> None:
    def body(x: Tensor, convolution: nn.Module, mix: Tensor) -> Tensor:
        made = _alone(x, convolution, mix)
        return torch.cat([mix @ made, made], 1)

    program = canonical(Convolved(body), X)
    ran = run_passes(program, "lower-convolution")
    rows = [n.meta["val"].shape[1] for n in ran.program.graph.nodes if "linear" in str(n.target)]
    assert rows == [T]


def test_is_left_alone_on_gpus() -> None:
    ran = run_passes(canonical(Convolved(_alone), X), "lower-convolution", target="h100-fp8")
    assert ran.outcomes == [Outcome.SKIPPED]
    reason = "only CPU kernels for convolutions are known to fill channels up"
    assert ran.missed("lower-convolution") == [reason]
