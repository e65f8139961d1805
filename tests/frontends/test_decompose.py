"""Graphs that need no second trace get none, and mean the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rankc
import torch
from rankc.frontends import decompose
from rankc.frontends.decompose import to_core
from rankc.frontends.export import capture
from rankc.optimizer.ir.torchapi import core_decompositions
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.inner = forward
        self.linear = nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.inner(x)))  # type: ignore[no-any-return]


class Alone(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.inner = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def exported(
    forward: Forward, x: Tensor, model: Callable[[Forward], nn.Module] = Model
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=0)
    return torch.export.export(
        model(forward).eval(), (x,), dynamic_shapes=({0: batch},), strict=False
    )


_LOCAL: list[tuple[Forward, Tensor]] = [
    (lambda x: x.to(torch.float32), torch.randint(0, 9, (5, 6))),
    (lambda x: x.to(torch.float32) + 1, torch.rand(5, 6)),
    (lambda x: x.squeeze(1), torch.rand(5, 1, 6)),
    (lambda x: x.flatten(1), torch.rand(5, 2, 3)),
    (lambda x: x.detach().relu(), torch.rand(5, 6)),
]


@pytest.mark.parametrize(("forward", "x"), _LOCAL)
def test_single_operators_are_rewritten_in_place(
    forward: Forward, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(program: torch.export.ExportedProgram) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(decompose, "_traced_again", refuse)
    program = exported(forward, x)
    want = program.module()(x)
    core = to_core(program)
    assert torch.equal(core.module()(x), want)
    table = core_decompositions()
    assert not any(node.target in table for node in core.graph.nodes)


@pytest.mark.parametrize(("dim", "shape"), [(1, (5, 6)), (-2, (5, 3, 6)), (1, (5, 1, 6))])
def test_running_products_are_written_out(dim: int, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) + 0.5
    core = to_core(exported(lambda x: x.cumprod(dim), x))
    assert not any("cumprod" in str(node.target) for node in core.graph.nodes)
    # torch multiplies in float64 and rounds at the end.
    exact = Model(lambda x: x.double().cumprod(dim).float()).eval()
    exact.load_state_dict(core.state_dict)
    torch.testing.assert_close(core.module()(x), exact(x), rtol=1e-6, atol=1e-6)


#: Long tails, infinities, ties and NaN, along which running sums of exponentials go wrong.
_TAILS = torch.tensor(
    [
        [0.0, 90.0, -120.0, 500.0, 500.0, 3.0, -1e30],
        [-200.0, -201.0, -199.5, -300.0, -1.0, -1.0, 0.5],
        [-torch.inf, -torch.inf, 2.0, torch.inf, 1.0, -torch.inf, torch.inf],
        [1.0, torch.nan, 2.0, 3.0, -torch.inf, 5.0, 6.0],
        [7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0],
    ]
)
_RUNNING: list[Forward] = [
    lambda x: x.logcumsumexp(1),
    lambda x: x.cummax(1).values,
    lambda x: x.cummin(-1).values,
    lambda x: (x.nan_to_num(0.0).clamp(-9, 9) * 3).long().cummax(1).values,
    lambda x: x.unsqueeze(2).expand(-1, -1, 2).logcumsumexp(-2),
    lambda x: x[:, :1].logcumsumexp(1),
]


@pytest.mark.parametrize("forward", _RUNNING)
def test_running_extremes_and_exponentials_are_combined_in_steps(forward: Forward) -> None:
    core = to_core(exported(forward, _TAILS, Alone))
    assert not any("cum" in str(node.target) for node in core.graph.nodes)
    torch.testing.assert_close(
        core.module()(_TAILS), forward(_TAILS), rtol=1e-6, atol=0, equal_nan=True
    )


def test_places_of_running_extremes_are_left_alone() -> None:
    core = to_core(exported(lambda x: x.cummax(1).indices, _TAILS, Alone))
    assert any("cummax" in str(node.target) for node in core.graph.nodes)


def writes(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 1.0
    return y


@pytest.mark.parametrize("forward", [writes, lambda x: nn.functional.normalize(x)])
def test_writes_and_other_composites_are_traced_again(forward: Forward) -> None:
    x = torch.rand(5, 6)
    model = Model(forward).eval()
    program = capture(model, x)
    assert torch.allclose(program(x), model(x))
    assert torch.allclose(program(x[:2]), model(x[:2]))
    assert not any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for node in program.graph.nodes
    )


def masked_first(x: Tensor) -> Tensor:
    mask = x > 0.5
    mask[:, 0] = False
    return torch.where(torch.where(x.sum(1, keepdim=True) > 3, ~mask, mask), x, 0.0)


def test_writes_of_one_value_and_choices_between_truths_run_in_onnxruntime() -> None:
    x = torch.rand(5, 6)
    model = Model(masked_first).eval()
    artifact = rankc.optimize(model, "cpu-fp32", inputs=(x,))
    for rows in (x, x[:1]):
        assert torch.allclose(artifact(rows), model(rows), rtol=0.0, atol=1e-6)
