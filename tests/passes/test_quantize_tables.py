from __future__ import annotations

import pytest
import torch
from rankc.optimizer.ir import Precision, Program, set_precision
from rankc.optimizer.ir.ops import ROWWISE_EMBEDDING, ROWWISE_EMBEDDING4
from rankc.optimizer.precision.codes import quantize_rows, round_trip_rows
from rankc.optimizer.quality.verdict import Status, Verdict
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    EAGER_INT8,
    Ran,
    assert_same_graph,
    canonical,
    capture_ragged,
    lookups,
    run_passes,
    verdict,
)
from torch import Tensor, nn

IDS = torch.tensor([0, 3, 1, 2, 3])
OPS = {"int8": (8, ROWWISE_EMBEDDING), "int4": (4, ROWWISE_EMBEDDING4)}


def always_pass(program: Program) -> Verdict:
    return verdict(Status.PASS, 0.0)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(40, 8)
        self.second = nn.Embedding(40, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.first(ids) * self.second(ids)).sum(1)


def quantized(module: nn.Module, number_format: str | None, *inputs: Tensor) -> Ran:
    """The module with the format placed on every table, and realised."""
    program = canonical(module, *inputs)
    for node in lookups(program):
        set_precision(node, Precision(number_format) if number_format else None)
    return run_passes(program, "quantize-tables", target=EAGER_INT8, judge=always_pass)


def halves_kept(expected: nn.Module) -> Program:
    """The module in canonical form; `capture` would compute its halves in float32."""
    return run_passes(capture_ragged(expected, ids=IDS), "canonicalize").program


@pytest.mark.parametrize("number_format", OPS)
def test_replaces_placed_tables_by_codes(number_format: str) -> None:
    bits, op = OPS[number_format]

    class Expected(nn.Module):
        def __init__(self, before: Two) -> None:
            super().__init__()
            for name, table in (("first", before.first), ("second", before.second)):
                codes, scale, bias = quantize_rows(table.weight.detach(), bits)
                self.register_buffer(f"{name}_codes", codes)
                self.register_buffer(f"{name}_scale", scale)
                self.register_buffer(f"{name}_bias", bias)

        def forward(self, ids: Tensor) -> Tensor:
            first = op.op(self.first_codes, self.first_scale, self.first_bias, ids)
            second = op.op(self.second_codes, self.second_scale, self.second_bias, ids)
            return (first * second).sum(1)

    before = Two()
    ran = quantized(before, number_format, IDS)
    assert_same_graph(ran.program, halves_kept(Expected(before)), (IDS,), tolerance=BIT_EQUAL)
    assert ran.applied("quantize-tables") == [f"stored 2 tables in {number_format}"]
    beside = 2 * 4 if bits == 8 else 2 * 2
    assert ran.program.nbytes == 2 * 40 * (8 * bits // 8 + beside), "codes, a scale and a bias"


def test_fp16_tables_are_looked_up_as_they_are_and_widened() -> None:
    class Expected(nn.Module):
        def __init__(self, before: Two) -> None:
            super().__init__()
            self.register_buffer("first", before.first.weight.detach().half())
            self.register_buffer("second", before.second.weight.detach().half())

        def forward(self, ids: Tensor) -> Tensor:
            lookup = nn.functional.embedding
            return (lookup(ids, self.first).float() * lookup(ids, self.second).float()).sum(1)

    before = Two()
    ran = quantized(before, "fp16", IDS)
    assert_same_graph(ran.program, halves_kept(Expected(before)), (IDS,), tolerance=BIT_EQUAL)


def test_misses_tables_without_a_format() -> None:
    ran = quantized(Two(), None, IDS)
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_a_table_read_twice_is_coded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(40, 8)

        def forward(self, clicked: Tensor, shown: Tensor) -> Tensor:
            return (self.items(clicked) * self.items(shown)).sum(1)

    ran = quantized(Twice(), "int8", IDS, IDS.flip(0))
    one, other = lookups(ran.program)
    assert ran.program.tensor(one.args[0].target) is ran.program.tensor(other.args[0].target)
    assert ran.program.nbytes == 40 * (8 + 2 * 4)


def decoded(weight: Tensor, bits: int = 8) -> Tensor:
    op = ROWWISE_EMBEDDING if bits == 8 else ROWWISE_EMBEDDING4
    return op.op(*quantize_rows(weight, bits, chunk=3), torch.arange(len(weight)))


def test_rows_decode_within_half_a_step() -> None:
    weight = torch.randn(10, 16) * torch.logspace(-6, 6, 10)[:, None]
    span = weight.amax(1) - weight.amin(1)
    # half a step, and the rounding of the fp32 arithmetic around it
    allowed = span / 255 * 0.5001 + weight.abs().amax(1) * torch.finfo(torch.float32).eps
    assert bool(((decoded(weight) - weight).abs().amax(1) <= allowed).all())


def test_four_bits_clip_where_that_leaves_less_error() -> None:
    """Against the whole range of each row, which the search may always take."""
    weight = torch.randn(50, 64) ** 3
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    plain = ((weight - low) / ((high - low) / 15)).round() * ((high - low) / 15) + low
    searched, unsearched = (decoded(weight, 4) - weight).norm(), (plain - weight).norm()
    assert searched < 0.95 * unsearched


@pytest.mark.parametrize("bits", [8, 4])
def test_the_probe_sees_what_is_stored(bits: int) -> None:
    weight = torch.randn(10, 16)
    assert torch.equal(round_trip_rows(weight, bits), decoded(weight, bits))
    some = torch.tensor([[3, 3], [1, 2]])
    assert torch.equal(round_trip_rows(weight[some], bits), decoded(weight, bits)[some])


def test_padding_and_constant_rows_are_exact() -> None:
    weight = torch.randn(6, 4)
    weight[0] = 0.0
    weight[3] = 0.37
    weight[5] = -2.5e-30
    assert torch.equal(decoded(weight)[[0, 3, 5]], weight[[0, 3, 5]])
    assert torch.equal(decoded(weight, 4)[0], weight[0])


def test_a_row_of_denormal_range_is_a_constant_row() -> None:
    """Its step would be zero to hardware that flushes denormals, and zero divides to NaN."""
    weight = torch.tensor([[0.0, 1e-44, 3e-43, 2e-40]])
    assert float((decoded(weight) - weight).abs().max()) < 1e-37


def test_a_table_of_one_row() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Embedding(1, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.bias(ids).sum(1)

    ids = torch.zeros(5, dtype=torch.int64)
    ran = quantized(One(), "int8", ids)
    assert lookups(ran.program)[0].target is ROWWISE_EMBEDDING.op
    assert ran.program(ids).shape == (5,)
