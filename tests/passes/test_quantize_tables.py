from __future__ import annotations

import torch
from rankc.optimizer.formats import quantize_rows
from rankc.optimizer.ir import Program
from rankc.optimizer.ir.ops import ROWWISE_EMBEDDING
from rankc.optimizer.report import Outcome
from rankc.optimizer.verdict import Status, Verdict
from support import (
    BIT_EQUAL,
    EAGER_INT8,
    assert_same_graph,
    canonical,
    lookups,
    permissive_judge,
    run_passes,
    verdict,
)
from torch import Tensor, nn

IDS = torch.tensor([0, 3, 1, 2, 3])


def always_pass(program: Program) -> Verdict:
    return verdict(Status.PASS, 0.0)


class Two(nn.Module):
    """Rows of nearly one value, and rows that vary: their INT8 error is the larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Embedding(40, 8)
        self.varied = nn.Embedding(40, 8)
        with torch.no_grad():
            self.even.weight.mul_(0.1).add_(1.0)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.even(ids) * self.varied(ids)).sum(1)


def is_coded(program: Program) -> dict[str, bool]:
    """Per table, whether it is read as codes."""
    return {
        str(node.args[0].target).split(".")[0].split("_")[0]: node.target is ROWWISE_EMBEDDING.op
        for node in lookups(program)
    }


def test_replaces_tables_by_codes() -> None:
    class Expected(nn.Module):
        def __init__(self, before: Two) -> None:
            super().__init__()
            for name, table in (("even", before.even), ("varied", before.varied)):
                codes, scale, bias = quantize_rows(table.weight.detach())
                self.register_buffer(f"{name}_codes", codes)
                self.register_buffer(f"{name}_scale", scale)
                self.register_buffer(f"{name}_bias", bias)

        def forward(self, ids: Tensor) -> Tensor:
            even = ROWWISE_EMBEDDING.op(self.even_codes, self.even_scale, self.even_bias, ids)
            varied = ROWWISE_EMBEDDING.op(
                self.varied_codes, self.varied_scale, self.varied_bias, ids
            )
            return (even * varied).sum(1)

    before = Two()
    program = canonical(before, IDS)
    judge = permissive_judge(program)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=judge)
    assert_same_graph(ran.program, Expected(before), (IDS,), tolerance=BIT_EQUAL)
    assert ran.applied("quantize-tables") == ["quantized 2 tables to INT8 rows"]
    assert ran.chosen() == {"even": "int8", "varied": "int8"}
    assert ran.program.nbytes == 2 * 40 * (8 + 2 * 4), "8 codes a row, its scale and its bias"


def test_skips_a_target_without_a_table_format() -> None:
    program = canonical(Two(), IDS)
    ran = run_passes(program, "quantize-tables", target="cpu-fp32", judge=always_pass)
    assert ran.outcomes == [Outcome.SKIPPED]
    assert ran.missed("quantize-tables") == ["cpu-fp32 has no table format below fp32"]


def test_skips_without_data() -> None:
    ran = run_passes(canonical(Two(), IDS), "quantize-tables", target=EAGER_INT8)
    assert ran.outcomes == [Outcome.SKIPPED]
    assert ran.missed("quantize-tables") == ["there is no data to judge quantized tables on"]


def test_the_worst_table_goes_back_while_over_budget() -> None:
    def only_even(program: Program) -> Verdict:
        over = is_coded(program)["varied"]
        return verdict(Status.FAIL, 1.0, "too much") if over else verdict(Status.PASS, 0.0)

    program = canonical(Two(), IDS)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=only_even)
    assert is_coded(ran.program) == {"even": True, "varied": False}
    assert ran.missed("quantize-tables") == ["its INT8 rows put the model over budget"]
    assert ran.reasons() == {
        "even": "row-wise INT8 is within budget",
        "varied": "INT8 rows put the model over budget",
    }


def test_all_tables_go_back_if_none_is_within_budget() -> None:
    def never(program: Program) -> Verdict:
        return verdict(Status.INCONCLUSIVE, 1.0, "too few rows")

    program = canonical(Two(), IDS)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=never)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.chosen() == {"even": "fp32", "varied": "fp32"}


def test_misses_a_table_that_something_else_reads_too() -> None:
    class Tied(nn.Module):
        """Scores against all items with the item table itself."""

        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(40, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.linear(self.items(ids), self.items.weight).sum(1)

    program = canonical(Tied(), IDS)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=always_pass)
    assert ran.missed("quantize-tables") == ["is read by something else than lookups"]
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_leaves_tables_that_are_too_small_to_gain() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Embedding(1000, 8), nn.Embedding(5, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return (self.large(ids) * self.small(ids)).sum(1)

    program = canonical(Uneven(), IDS)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=always_pass)
    assert is_coded(ran.program) == {"large": True, "small": True}, "by default all are worth it"

    most = "quantize-tables{small_share=0.01}"
    ran = run_passes(program, most, target=EAGER_INT8, judge=always_pass)
    assert is_coded(ran.program) == {"large": True, "small": False}
    assert ran.reasons()["small"] == "only 160 B: nothing to gain"


def test_a_table_read_twice_is_coded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(40, 8)

        def forward(self, clicked: Tensor, shown: Tensor) -> Tensor:
            return (self.items(clicked) * self.items(shown)).sum(1)

    program = canonical(Twice(), IDS, IDS.flip(0))
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=always_pass)
    one, other = lookups(ran.program)
    assert ran.program.tensor(one.args[0].target) is ran.program.tensor(other.args[0].target)
    assert ran.program.nbytes == 40 * (8 + 2 * 4)


def test_other_dtypes_are_left_alone() -> None:
    program = canonical(Two().double(), IDS)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=always_pass)
    assert ran.outcomes == [Outcome.UNCHANGED]


def decoded(weight: Tensor) -> Tensor:
    return ROWWISE_EMBEDDING.op(*quantize_rows(weight, chunk=3), torch.arange(len(weight)))


def test_rows_decode_within_half_a_step() -> None:
    weight = torch.randn(10, 16) * torch.logspace(-6, 6, 10)[:, None]
    span = weight.amax(1) - weight.amin(1)
    # half a step, and the rounding of the fp32 arithmetic around it
    allowed = span / 255 * 0.5001 + weight.abs().amax(1) * torch.finfo(torch.float32).eps
    assert bool(((decoded(weight) - weight).abs().amax(1) <= allowed).all())


def test_padding_and_constant_rows_are_exact() -> None:
    weight = torch.randn(6, 4)
    weight[0] = 0.0
    weight[3] = 0.37
    weight[5] = -2.5e-30
    assert torch.equal(decoded(weight)[[0, 3, 5]], weight[[0, 3, 5]])


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
    program = canonical(One(), ids)
    ran = run_passes(program, "quantize-tables", target=EAGER_INT8, judge=always_pass)
    assert is_coded(ran.program) == {"bias": True}
    assert ran.program(ids).shape == (5,)
