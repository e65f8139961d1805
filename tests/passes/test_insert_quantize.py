from __future__ import annotations

import pytest
import torch
from rankc.optimizer.ir import Precision, Program, set_precision
from rankc.optimizer.ir.ops import DEQUANTIZE, QUANTIZE
from rankc.optimizer.precision.codes import quantize_weight
from rankc.optimizer.quality.verdict import Status, Verdict
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    assert_same_graph,
    canonical,
    operators,
    quantized_linears,
    run_passes,
    verdict,
)
from torch import Tensor, nn

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
FORMATS = {
    "uint8": Precision("int8", 0.03125, 120, "uint8", "int8"),
    "int8": Precision("int8", 0.03125, 0, "int8", "int8"),
    "fp8": Precision("fp8", 0.0078125, 0, "float8_e4m3fn", "float8_e4m3fn"),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x))).squeeze(-1)


def placed(module: nn.Module, precision: Precision, *inputs: Tensor) -> Program:
    """The canonical program with the format placed on its first linear."""
    program = canonical(module, *inputs)
    linear = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    set_precision(linear, precision)
    return program


def always_pass(program: Program) -> Verdict:
    return verdict(Status.PASS, 0.0)


@pytest.mark.parametrize("name", FORMATS)
def test_puts_codes_around_a_placed_linear(name: str) -> None:
    precision = FORMATS[name]
    codes_dtype = getattr(torch, precision.input_dtype)
    weight_dtype = getattr(torch, precision.weight_dtype)

    class Expected(nn.Module):
        def __init__(self, before: Net) -> None:
            super().__init__()
            coded = quantize_weight(before.first.weight.detach(), weight_dtype)
            zero = torch.tensor(precision.input_zero_point).to(codes_dtype)
            for key, value in {**vars(coded), "input_zero": zero}.items():
                # Captured in fp32, and cast back: capture takes no FP8 parameters.
                wide = value.dtype.is_floating_point and value.element_size() == 1
                self.register_buffer(key, value.float() if wide else value)
            self.register_buffer("input_scale", torch.tensor(precision.input_scale))
            self.first, self.last = before.first, before.last

        def forward(self, x: Tensor) -> Tensor:
            input_zero, given = self.input_zero.to(codes_dtype), x
            codes, zero = self.codes.to(weight_dtype), self.zero_point.to(weight_dtype)
            x = QUANTIZE.op(x, self.input_scale, input_zero, -1, codes_dtype)
            x = DEQUANTIZE.op(x, self.input_scale, input_zero, -1)
            weight = DEQUANTIZE.op(codes, self.scale, zero, 0)
            hidden = nn.functional.linear(x, weight, self.first.bias)
            # Codes have no NaN: it is carried past them.
            none = (given * 0.0).sum(1, keepdim=True)
            return (self.last(torch.relu(hidden)) + none).squeeze(-1)

    before = Net()
    program = placed(before, precision, X)
    ran = run_passes(program, "insert-quantize", judge=always_pass)
    expected = run_passes(canonical(Expected(before), X), "fold-constants").program
    assert_same_graph(ran.program, expected, (X,), tolerance=BIT_EQUAL)
    assert ran.applied("insert-quantize") == ["put 1 linears into their formats"]
    moved = (ran.program(X) - program(X)).abs().max() / program(X).abs().max()
    assert 0 < float(moved) < 0.1


def test_leaves_linears_without_a_format() -> None:
    ran = run_passes(canonical(Net(), X), "insert-quantize", judge=always_pass)
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_is_rolled_back_over_budget() -> None:
    def never(program: Program) -> Verdict:
        return verdict(Status.FAIL, 1.0, "too much")

    program = placed(Net(), FORMATS["uint8"], X)
    ran = run_passes(program, "insert-quantize", judge=never)
    assert ran.outcomes == [Outcome.ROLLED_BACK]
    assert quantized_linears(ran.program) == []
    assert ran.program.fingerprint() == program.fingerprint()


def test_is_rolled_back_without_a_judge() -> None:
    ran = run_passes(placed(Net(), FORMATS["uint8"], X), "insert-quantize")
    assert ran.outcomes == [Outcome.ROLLED_BACK]
    assert ran.report.records[0].note.startswith("a lossy pass needs data")


def test_a_shared_weight_stays_fp32_for_the_linear_without_a_format() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x).sum(1), self.linear(y).sum(1)

    program = placed(Tied(), FORMATS["int8"], X, X)
    ran = run_passes(program, "insert-quantize", judge=always_pass)
    assert len(quantized_linears(ran.program)) == 1
    coded, plain = ran.program(X, X)
    assert torch.equal(plain, program(X, X)[1])
    assert not torch.equal(coded, plain)


def test_the_same_codes_for_two_linears_are_stored_once_by_eliminate() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.linear(x) * self.linear(y)).sum(1)

    program = canonical(Tied(), X, X)
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        set_precision(node, FORMATS["int8"])
    ran = run_passes(program, "insert-quantize,eliminate", judge=always_pass)
    assert len(quantized_linears(ran.program)) == 2
    assert operators(ran.program).count("rankc.dequantize.default") == 3, "one weight, two inputs"


def test_sequences_keep_their_shape() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).sum((1, 2))

    program = placed(Sequence(), FORMATS["uint8"], torch.randn(5, 3, 6))
    ran = run_passes(program, "insert-quantize", judge=always_pass)
    (linear,) = quantized_linears(ran.program)
    assert linear.meta["val"].shape[1:] == (3, 5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_dead_channels_decode_to_zero(dtype: torch.dtype) -> None:
    """Weight decay drives unused channels to zero, and to denormals on the way there."""
    weight = torch.randn(4, 8)
    weight[0] = 0.0
    weight[1] = torch.tensor([0.0, 1e-44, -1e-43, 1e-42]).repeat(2)
    coded = quantize_weight(weight, dtype)
    decoded = DEQUANTIZE.op(coded.codes, coded.scale, coded.zero_point, 0)
    assert bool(torch.isfinite(decoded).all())
    assert not decoded[:2].any()
    # half of the coarsest step: 1/127 of the peak in INT8, 1/16 of the value in FP8
    share = 0.5 / 16 if dtype.is_floating_point else 0.51 / 127
    allowed = share * weight[2:].abs().amax(1, keepdim=True) * 2
    assert bool(((decoded - weight)[2:].abs() <= allowed).all())


# --- NaN in, NaN out ------------------------------------------------------------------------------


class Ranker(nn.Module):
    """Dense features through a bottom, tables beside it, two tasks; both linears are placed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.bottom, self.top = nn.Linear(6, 6), nn.Linear(12, 6)
        self.click, self.buy = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.relu(self.bottom(dense))
        hidden = torch.relu(self.top(torch.cat([low, self.table(ids)], 1)))
        return torch.sigmoid(self.click(hidden)).squeeze(1), self.buy(hidden)


class Masked(nn.Module):
    """The model fills what is missing itself, and drops a row's NaN behind the codes."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self.first, self.last, self.late = nn.Linear(6, 6), nn.Linear(6, 1), late

    def forward(self, dense: Tensor) -> Tensor:
        if not self.late:
            dense = torch.where(dense.isnan(), torch.zeros_like(dense), dense)
        hidden = self.first(dense)
        if self.late:
            hidden = torch.where(hidden.isnan(), torch.zeros_like(hidden), hidden)
        return self.last(hidden).squeeze(1)


class Sequence(nn.Module):
    """A linear over a history, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).sum((1, 2))


class Divided(nn.Module):
    """NaN that no feature has: a mean over nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 6), nn.Linear(6, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        pooled = (self.table(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return self.linear(pooled).squeeze(1)


def in_codes(module: nn.Module, name: str, *inputs: Tensor) -> Program:
    program = canonical(module.eval(), *inputs)
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        set_precision(node, FORMATS[name])
    return run_passes(program, "insert-quantize,eliminate", judge=always_pass).program


def hostile(x: Tensor, bad: float) -> Tensor:
    """The same with one value of every other row replaced."""
    changed = x.clone().reshape(len(x), -1)
    rows = torch.arange(0, len(x), 2)
    changed[rows, rows % changed.shape[1]] = bad
    return changed.reshape(x.shape)


BAD = [float("nan"), float("inf"), float("-inf")]
IDS = torch.arange(8)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_that_is_not_finite_scores_nan(name: str, bad: float) -> None:
    x = torch.randn(8, 6)
    program = in_codes(Ranker(), name, x, IDS)
    clean, got = program(x, IDS), program(hostile(x, bad), IDS)
    for before, after in zip(clean, got, strict=True):
        assert bool(after[::2].isnan().all())
        assert torch.equal(after[1::2], before[1::2])
    sums = operators(program).count("sum")
    assert sums == 1, "the dense features, once for both tasks"


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_ids_alone_carry_nothing(name: str) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(10, 6), nn.Linear(6, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.linear(self.table(ids)).squeeze(1)

    assert "sum" not in operators(in_codes(Lookup(), name, IDS))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", FORMATS)
def test_every_position_of_a_history_counts(name: str, bad: float) -> None:
    x = torch.randn(8, 3, 6)
    program = in_codes(Sequence(), name, x)
    got = program(hostile(x, bad))
    assert bool(got[::2].isnan().all())
    assert torch.equal(got[1::2], program(x)[1::2])


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_model_fills_itself_still_scores(name: str) -> None:
    """Nothing is carried from where NaN is handled, nor past what drops it."""
    x = torch.randn(8, 6)
    for late in (False, True):
        program = in_codes(Masked(late=late), name, x)
        got = program(hostile(x, float("nan")))
        assert bool(got.isfinite().all())
        assert torch.equal(got[1::2], program(x)[1::2])


@pytest.mark.parametrize("name", FORMATS)
def test_nan_that_is_made_on_the_way_counts(name: str) -> None:
    ids, mask = torch.randint(10, (8, 3)), torch.ones(8, 3)
    program = in_codes(Divided(), name, ids, mask)
    empty = mask.clone()
    empty[::2] = 0.0
    got = program(ids, empty)
    assert bool(got[::2].isnan().all())
    assert torch.equal(got[1::2], program(ids, mask)[1::2])
