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


def exported(forward: Forward, x: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=0)
    return torch.export.export(
        Model(forward).eval(), (x,), dynamic_shapes=({0: batch},), strict=False
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
