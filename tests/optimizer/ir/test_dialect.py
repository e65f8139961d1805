"""The dialect's operators: each is what its reference says, and what ONNX says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rankc.optimizer.ir.dialect import define_op, dialect
from rankc.optimizer.ir.ops import DEQUANTIZE, QUANTIZE, ROWWISE_EMBEDDING, ROWWISE_LINEAR
from rankc.optimizer.ir.traits import Flops, OnRows
from torch import Tensor

X = torch.tensor([[-3.0, -0.26, 0.0, 0.26], [0.5, 1.5, 2.5, 900.0]])
SCALE = torch.tensor(0.5)
ROWS = torch.tensor([0.5, 2.0])
FP8 = (torch.float8_e4m3fn,)


def zero(dtype: torch.dtype, channels: int | None = None) -> Tensor:
    return torch.zeros([] if channels is None else [channels], dtype=dtype)


SAMPLES: dict[str, list[tuple[Any, ...]]] = {
    "quantize": [
        (X, SCALE, zero(torch.int8), 0, torch.int8),
        (X, SCALE, zero(torch.uint8) + 128, 0, torch.uint8),
        (X, ROWS, zero(torch.int8, 2), 0, torch.int8),
        (X.T.contiguous(), ROWS, zero(torch.int8, 2), 1, torch.int8),
        (X, SCALE, zero(torch.float8_e4m3fn), 0, torch.float8_e4m3fn),
    ],
    "dequantize": [
        (torch.tensor([[0, 255], [117, 3]], dtype=torch.uint8), SCALE, zero(torch.uint8) + 117, 0),
        (torch.tensor([[-128, 127], [1, 0]], dtype=torch.int8), ROWS, zero(torch.int8, 2), 1),
        (X.to(torch.float8_e4m3fn), SCALE, zero(torch.float8_e4m3fn), 0),
    ],
    "rowwise_embedding": [
        (
            torch.arange(12, dtype=torch.uint8).reshape(4, 3),
            torch.tensor([[0.1], [0.0], [1.0], [0.5]]),
            torch.tensor([[-1.0], [2.0], [0.0], [0.5]]),
            torch.tensor([[0, 3], [1, 1]]),
        )
    ],
    "rowwise_embedding4": [
        (
            torch.arange(12, dtype=torch.uint8).reshape(4, 3) * 21,
            torch.tensor([[0.1], [0.0], [1.0], [0.5]], dtype=torch.float16),
            torch.tensor([[-1.0], [2.0], [0.0], [0.5]], dtype=torch.float16),
            torch.tensor([[0, 3], [1, 1]]),
        )
    ],
    "rowwise_linear": [
        (X, torch.tensor([[1, -2, 127, 0], [3, 4, -5, 6]], dtype=torch.int8), ROWS, *[None] * 4),
        (
            torch.stack([X, X + 1.0]),
            torch.tensor([[1, -2, 0, 7]], dtype=torch.int8),
            torch.tensor([0.5]),
            torch.tensor([2.0]),
            torch.tensor([1.0, 2.0, 0.0, 0.5]),
            torch.tensor([2]),
            torch.tensor([[3.0]]),
        ),
    ],
    "request_broadcast": [(X[:1], torch.zeros(3, 1)), (X, torch.zeros(2, 1))],
    "request_matmul": [
        (torch.arange(12.0).reshape(3, 1, 4), X.T[None].contiguous()),
        (torch.arange(24.0).reshape(3, 2, 1, 4), torch.stack([X.T, X.T + 1.0])[None]),
        (torch.arange(8.0).reshape(2, 1, 4), torch.stack([X.T, X.T + 1.0])),
    ],
    "coded_linear": [
        (
            X,
            torch.tensor([[1, -2, 127, 0], [3, 4, -5, 6]], dtype=torch.int8),
            ROWS.bfloat16(),
            None,
        ),
        (
            torch.stack([X, X + 1.0]),
            torch.tensor([[1, -2, 0, 7]], dtype=torch.int8),
            torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16),
            torch.tensor([2.0]),
        ),
    ],
    "mxfp8_linear": [
        (
            X,
            torch.ones(2, 32).to(torch.float8_e4m3fn),
            torch.tensor([[127], [130]], dtype=torch.uint8),
            ROWS,
        ),
    ],
    "nvfp4_linear": [
        (
            X,
            torch.tensor([[0x12, *[0] * 7], [0xF7, *[0] * 7]], dtype=torch.uint8),
            torch.ones(2, 1).to(torch.float8_e4m3fn),
            torch.tensor(0.5),
            torch.tensor(0.01),
            ROWS,
        ),
    ],
    "half_linear": [
        (X, torch.ones(2, 4, dtype=torch.bfloat16), None),
        (X, torch.ones(2, 4, dtype=torch.float16), ROWS),
    ],
    "bounded": [
        (torch.tensor([[0, 19], [3, 2]]), [20], 0, False),
        (torch.tensor([[0, 900], [3, -2]], dtype=torch.int32), [4, 0], 1, True),
    ],
    "rising": [
        (torch.tensor([0, 2, 2]), torch.arange(5), False),
        (torch.tensor([0, 2, 5], dtype=torch.int32), torch.arange(5), True),
        (torch.tensor([0]), torch.arange(0), True),
    ],
    "wrapped": [(torch.tensor([0, -1, 4, -5]), 5)],
    "dot_interaction": [
        (
            torch.arange(24.0).reshape(2, 4, 3),
            torch.tensor([1, 2, 3]),
            torch.tensor([0, 1, 0]),
        )
    ],
}
CASES = [(name, sample) for name, samples in SAMPLES.items() for sample in samples]


def test_every_op_has_a_sample() -> None:
    assert set(SAMPLES) == set(dialect())


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_the_op_is_its_reference(name: str, sample: tuple[Any, ...]) -> None:
    op = dialect()[name]
    assert op.name == name
    assert torch.equal(op.op(*sample).float(), op.reference(*sample).float())
    # A composite op has no autograd or meta kernel of its own, so only its schema can be wrong.
    # (opcheck compares by multiplying, which torch can't do in FP8.)
    if not any(isinstance(value, Tensor) and value.dtype in FP8 for value in sample):
        torch.library.opcheck(op.op, sample, test_utils="test_schema")


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_shapes_without_data_are_those_with(name: str, sample: tuple[Any, ...]) -> None:
    op = dialect()[name].op
    meta = [value.to("meta") if isinstance(value, Tensor) else value for value in sample]
    made, real = op(*meta), op(*sample)
    assert (made.shape, made.dtype) == (real.shape, real.dtype)


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    codes = QUANTIZE.op(X, torch.tensor(1.0), zero(torch.int8), 0, torch.int8)
    assert codes.tolist() == [[-3, 0, 0, 0], [0, 2, 2, 127]]
    shifted = QUANTIZE.op(X, torch.tensor(1.0), zero(torch.uint8) + 1, 0, torch.uint8)
    assert shifted.tolist() == [[0, 1, 1, 1], [1, 3, 3, 255]]
    fp8 = QUANTIZE.op(X, SCALE, zero(torch.float8_e4m3fn), 0, torch.float8_e4m3fn)
    assert fp8.float().max() == 448.0


def test_a_grid_point_survives_the_round_trip() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = DEQUANTIZE.op(codes, torch.tensor(0.125), zero(torch.uint8) + 117, 0)
    assert values[117] == 0
    again = QUANTIZE.op(values, torch.tensor(0.125), zero(torch.uint8) + 117, 0, torch.uint8)
    assert torch.equal(again, codes)


def test_lookups_are_differentiable_in_their_scales() -> None:
    codes, scale, bias, ids = SAMPLES["rowwise_embedding"][0]
    scale, bias = scale.clone().requires_grad_(), bias.clone().requires_grad_()
    ROWWISE_EMBEDDING.op(codes, scale, bias, ids).sum().backward()
    # Row 1 is looked up twice: its codes 3, 4, 5 in the scale's gradient, its width in the bias's.
    assert scale.grad is not None
    assert bias.grad is not None
    assert scale.grad.flatten().tolist() == [3.0, 24.0, 0.0, 30.0]
    assert bias.grad.flatten().tolist() == [3.0, 6.0, 0.0, 3.0]


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="an op called 'quantize' already"):
        define_op("quantize(Tensor x) -> Tensor", lambda x: x, rows=OnRows.SAME, flops=Flops.FREE)


def test_an_op_cannot_be_defined_without_its_traits() -> None:
    with pytest.raises(TypeError, match="'rows' and 'flops'"):
        define_op("untold(Tensor x) -> Tensor", lambda x: x)  # type: ignore[call-arg]


def test_a_rowwise_linear_is_right_to_half_a_step_of_each_row() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 16, generator=generator) * torch.logspace(-3, 3, 20)[:, None]
    codes = torch.randint(-127, 128, (3, 16), generator=generator).to(torch.int8)
    scale, kept = torch.tensor([0.1, 0.01, 1.0]), torch.tensor([2, 5])
    weight = codes.float() * scale[:, None]
    got = ROWWISE_LINEAR.op(x, codes, scale, None, None, None, None)
    step = (x.amax(1) - x.amin(1)) / 255
    allowed = step[:, None] / 2 * weight.abs().sum(1) * 1.001 + 1e-6
    assert bool(((got - x @ weight.T).abs() <= allowed).all())

    outside = torch.ones(16)
    outside[kept] = 0.0
    low = codes.clone()
    low[:, kept] = 0
    x[:, kept] *= 1000.0
    got = ROWWISE_LINEAR.op(x, low, scale, None, outside, kept, weight[:, kept])
    inside = x * outside
    step = (inside.amax(1) - inside.amin(1)) / 255
    allowed = step[:, None] / 2 * weight.abs().sum(1) * 1.001 + 1e-5 * (x @ weight.T).abs()
    assert bool(((got - x @ weight.T).abs() <= allowed + 1e-3).all())


def test_a_constant_row_has_no_steps() -> None:
    x = torch.tensor([[2.5] * 4, [0.0] * 4])
    codes = torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    got = ROWWISE_LINEAR.op(x, codes, torch.tensor([0.5]), None, None, None, None)
    assert got.tolist() == [[12.5], [0.0]]
