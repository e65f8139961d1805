from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.analysis.sites import linear_sites
from rankc.optimizer.errors import DataError
from rankc.optimizer.formats import TABLE_FORMATS
from rankc.optimizer.ir import Precision, Program, Rewriter, facts_of, site_of, sweep
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import run_pass
from rankc.optimizer.precision.candidates import candidates
from rankc.optimizer.precision.kernel_times import KernelTimes
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.precision.probe import TOGETHER, Probe
from rankc.optimizer.precision.table_formats import table_format
from rankc.optimizer.quality.verdict import Status, Verdict
from rankc.optimizer.report.records import Outcome, SiteRecord
from rankc.optimizer.target import DeviceSpec, Target
from rankc.passes.place_precision import PlacePrecision
from support import (
    BIT_EQUAL,
    EAGER_INT8,
    Ran,
    RuleJudge,
    assert_same_graph,
    canonical,
    made_up,
    permissive_judge,
    quantized_linears,
    run_passes,
    verdict,
)
from torch import Tensor, nn

X = torch.randn(5, 8)
ROUNDINGS = frozenset(table_format(name).imitate for name in TABLE_FORMATS)
Judge = Callable[[Program], Verdict]


class Net(nn.Module):
    """Three linears, alike but for their names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x))))).sum(1)


def place(
    module: nn.Module | Program,
    judge: Judge | RuleJudge | None,
    *inputs: Tensor,
    target: Target = EAGER_INT8,
    options: str = "",
) -> Ran:
    program = module if isinstance(module, Program) else canonical(module, *inputs)
    calibration = [made_up(program, 64, seed=7), made_up(program, 64, seed=8)]
    return run_passes(
        program, f"place-precision{options}", target=target, judge=judge, calibration=calibration
    )


def placed(program: Program) -> dict[str, Precision]:
    """The formats placed, by site."""
    return {
        site_of(node): precision
        for node in program.graph.nodes
        if (precision := facts_of(node).precision) is not None
    }


def always_pass(program: Program) -> Verdict:
    return verdict(Status.PASS, 0.0)


def judge_of(rule: Callable[[set[str]], Verdict]) -> Judge:
    """A judge that sees only which linears are quantized."""
    return lambda program: rule({site_of(node) for node in quantized_linears(program)})


def test_writes_facts_and_touches_nothing_else() -> None:
    program = canonical(Net(), X)
    ran = place(program, permissive_judge(program))
    assert set(placed(ran.program)) == {"a", "b", "c"}
    assert_same_graph(ran.program, program, (X,), tolerance=BIT_EQUAL)
    assert ran.applied("place-precision") == ["placed int8 on 3 of 3 linears"]
    assert ran.chosen() == {"a": "int8", "b": "int8", "c": "int8"}


def test_skips_a_target_without_formats() -> None:
    ran = place(Net(), always_pass, X, target=Target.of("cpu-fp32"))
    assert ran.outcomes == [Outcome.SKIPPED]
    assert ran.missed("place-precision") == ["cpu-fp32 has no format below fp32"]


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ("judge", "no part of the budget is left for lower formats"),
        ("calibration", "there is no data to choose formats on"),
    ],
)
def test_skips_without_data(lacking: str, told: str) -> None:
    program = canonical(Net(), X)
    ran = run_passes(
        program,
        "place-precision",
        target=EAGER_INT8,
        judge=None if lacking == "judge" else always_pass,
        calibration=() if lacking == "calibration" else [made_up(program, 64, seed=7)],
    )
    assert ran.outcomes == [Outcome.SKIPPED]
    assert ran.missed("place-precision") == [told]


@pytest.mark.parametrize(
    ("activations", "low_format", "input_dtype"),
    [("uint8", "int8", "uint8"), ("int8", "int8", "int8"), ("int8", "fp8", "float8_e4m3fn")],
)
def test_takes_the_targets_formats(activations: str, low_format: str, input_dtype: str) -> None:
    device = dataclasses.replace(EAGER_INT8.device, peaks=(("fp32", 1e-3), (low_format, 1.0)))
    target = dataclasses.replace(
        EAGER_INT8, device=device, formats=(low_format,), int8_activations=activations
    )
    ran = place(Net(), always_pass, X, target=target)
    for precision in placed(ran.program).values():
        assert precision.format == low_format
        assert precision.input_dtype == input_dtype
        assert precision.input_scale > 0.0
        assert activations == "uint8" or precision.input_zero_point == 0
    behind_relu = placed(ran.program)["b"]
    assert behind_relu.input_zero_point == 0, "a relu's output has no negative codes to waste"


def test_misses_linears_under_the_targets_least_size() -> None:
    target = dataclasses.replace(EAGER_INT8, min_linear=9)
    ran = place(Net(), always_pass, X, target=target)
    reason = "fewer than 9 inputs or outputs: nothing to gain"
    assert ran.missed("place-precision") == [reason] * 3
    assert ran.reasons() == {"a": reason, "b": reason, "c": reason}
    assert placed(ran.program) == {}
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_misses_linears_of_another_dtype() -> None:
    program = canonical(Net().double(), X.double())
    ran = place(program, always_pass)
    assert ran.missed("place-precision") == ["its weight is float64, not float32"] * 3


def test_a_weight_vector_is_no_site() -> None:
    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.vector)

    assert place(Dot(), always_pass, X).outcomes == [Outcome.UNCHANGED]


def test_refuses_a_linear_that_calibration_never_feeds() -> None:
    class Dead(nn.Module):
        """The relu's output is zero for every row."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(torch.relu(-x.abs())).sum(1)

    ran = place(Dead(), always_pass, X)
    assert ran.reasons() == {"a": "calibration never feeds it"}
    assert placed(ran.program) == {}


def test_refuses_what_the_estimate_says_does_not_pay() -> None:
    device = DeviceSpec("slow", "cpu", bandwidth=1.0, peaks=(("fp32", 1e-6), ("int8", 1e-6)))
    ran = place(Net(), always_pass, X, target=dataclasses.replace(EAGER_INT8, device=device))
    reason = "estimated to cost more than fp32, time and bytes together"
    assert set(ran.reasons().values()) == {reason}


def test_a_device_without_numbers_refuses_all_and_fails_none() -> None:
    target = dataclasses.replace(EAGER_INT8, device=DeviceSpec("unknown", "cpu"))
    ran = place(Net(), always_pass, X, target=target)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert set(ran.chosen().values()) == {"fp32"}


def test_quantizing_a_sequence_costs_all_its_positions() -> None:
    """Bound by traffic, a linear of 40 inputs and 8 outputs doesn't pay: it quantizes 5 bytes an
    input to save 3. A single row and a sequence must agree on that."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(40, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum(-1)

    class Sequence(Wide):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum((-1, -2))

    device = DeviceSpec("traffic", "cpu", bandwidth=1.0, peaks=(("fp32", 1e3), ("int8", 1e3)))
    target = dataclasses.replace(EAGER_INT8, device=device)
    for module, x in ((Wide(), torch.randn(5, 40)), (Sequence(), torch.randn(5, 30, 40))):
        ran = place(module, always_pass, x, target=target)
        assert "estimated to cost more" in ran.reasons()["a"]


def test_refuses_a_linear_whose_own_output_would_be_far_off() -> None:
    ran = place(Net(), always_pass, X, options="{max_relative_error=0.0001}")
    assert all(reason.startswith("its output would be off by") for reason in ran.reasons().values())
    assert placed(ran.program) == {}


def test_refuses_a_linear_that_damages_too_much_alone() -> None:
    def rule(sites: set[str]) -> Verdict:
        return verdict(Status.PASS, 0.01 if "b" in sites else 1e-5)

    ran = place(Net(), RuleJudge(judge_of(rule), {"score": 1e-3}), X)
    assert set(placed(ran.program)) == {"a", "c"}
    assert ran.reasons()["b"] == (
        "alone it costs 'score' 1.0000 % NE, and 0.1000 % is what the rows at hand can prove "
        "within the budget"
    )
    assert ran.applied("place-precision") == ["placed int8 on 2 of 3 linears"]


def test_the_most_damaging_goes_back_while_they_fail_together() -> None:
    """Each passes alone; only two together do. ``b`` costs most for what it saves."""
    damage = {"a": 1e-5, "b": 3e-4, "c": 2e-4}
    asked: list[set[str]] = []

    def rule(sites: set[str]) -> Verdict:
        if len(sites) > 1 and sites not in asked:
            asked.append(sites)
        worst = max(damage[site] for site in sites)
        return verdict(Status.PASS if len(sites) <= 2 else Status.INCONCLUSIVE, worst)

    ran = place(Net(), judge_of(rule), X)
    assert asked == [{"a", "b", "c"}, {"a", "c"}]
    assert set(placed(ran.program)) == {"a", "c"}
    reason = "over budget together with the others, and the dearest of them"
    assert ran.missed("place-precision") == [reason]
    assert ran.reasons()["b"] == reason
    assert ran.reasons()["c"].startswith("alone ΔNE +0.0200 % on soft labels, ")


def test_too_few_rows_to_tell_of_one_alone_is_no_refusal() -> None:
    def rule(sites: set[str]) -> Verdict:
        return verdict(Status.PASS if len(sites) == 3 else Status.INCONCLUSIVE, 1e-5)

    assert set(placed(place(Net(), judge_of(rule), X).program)) == {"a", "b", "c"}


def test_places_nothing_when_no_set_passes_together() -> None:
    passed: set[str] = set()

    def once(sites: set[str]) -> Verdict:
        """Each passes the first time it is asked about, and never again."""
        first = len(sites) == 1 and not sites <= passed
        passed.update(sites)
        return verdict(Status.PASS if first else Status.FAIL, 1e-5)

    ran = place(Net(), judge_of(once), X)
    assert placed(ran.program) == {}
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert len(ran.missed("place-precision")) == 3


def test_a_lucky_gain_counts_as_damage() -> None:
    """Moving NE by −1 % isn't harmless: that site goes back before one that moves it +0.02 %."""

    def rule(sites: set[str]) -> Verdict:
        status = Status.FAIL if {"a", "b"} <= sites else Status.PASS
        return verdict(status, -1e-2 if sites == {"a"} else 2e-4)

    ran = place(Net(), judge_of(rule), X)
    assert set(placed(ran.program)) == {"b", "c"}


def test_sites_that_share_a_weight_are_decided_apart() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.a(x) * self.a(torch.relu(y) * 9.0)).sum(1)

    program = canonical(Tied(), X, X)
    ran = place(program, always_pass)
    precisions = [facts_of(node).precision for node in ran.program.graph.nodes]
    scales = [precision.input_scale for precision in precisions if precision is not None]
    assert len(scales) == 2
    assert scales[1] > scales[0]


def test_clips_an_outlier_when_that_hurts_less() -> None:
    """One row of 2,048 has a value of 60; ranges are chosen on every fourth row, without it."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum(1)

    program = canonical(One(), X)
    rows = {"x": torch.randn(2048, 8)}
    rows["x"][1, 0] = 60.0
    ran = run_passes(
        program, "place-precision", target=EAGER_INT8, judge=always_pass, calibration=[rows]
    )
    full = float(rows["x"].max() - rows["x"].min()) / 255
    assert placed(ran.program)["a"].input_scale < full / 2


class Amounts(nn.Module):
    """Raw amounts, a thousand times the other columns, beside them in one linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 32)
        with torch.no_grad():
            self.a.weight[:, :2] /= 1000.0

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))).sum(1)


def outlier_rows(count: int, seed: int) -> dict[str, Tensor]:
    rows = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))
    rows[:, :2] *= 1000.0
    return {"x": rows}


def test_columns_of_long_tails_cost_a_linear_neither_its_format_nor_its_quality() -> None:
    """The plain range leaves 62 columns a few codes; scaling them, or keeping two, does not."""
    program = canonical(Amounts(), torch.randn(5, 64))
    ran = run_passes(
        program,
        "place-precision",
        target=EAGER_INT8,
        judge=always_pass,
        calibration=[outlier_rows(1024, 1)],
        rows=outlier_rows(64, 2),
    )
    (first,) = [site for site in ran.report.sites if site.site == "a"]
    errors = {str(c["format"]): float(c["errors"].get("relative", 0.0)) for c in first.candidates}
    assert first.chosen in errors
    assert first.chosen != "int8"
    assert errors["int8"] > 10 * errors[first.chosen]


def test_realises_scaled_and_kept_columns_as_it_predicted() -> None:
    program = canonical(Amounts(), torch.randn(5, 64))
    rows = outlier_rows(1024, 3)["x"]
    weight = program.tensor("a.weight")
    for precision, errors in candidates(rows, weight, ("int8", "int8-rows", "bf16"), "uint8"):
        copy = program.clone()
        (site, *_) = linear_sites(copy)
        realise(Rewriter(copy, "test"), site, precision, rows)
        sweep(copy)
        exact, low = program.run({"x": rows}), copy.run({"x": rows})
        (name,) = exact
        assert torch.isfinite(low[name]).all(), precision.recipe
        seen = float((low[name] - exact[name]).norm() / exact[name].norm())
        assert seen < 3 * errors["relative"] + 1e-3, precision.recipe


class Tables(nn.Module):
    """Rows of nearly one value, and rows that vary: their INT8 error is the larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Embedding(40, 8)
        self.varied = nn.Embedding(40, 8)
        with torch.no_grad():
            self.even.weight.mul_(0.1).add_(1.0)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.even(ids) * self.varied(ids)).sum(1)


IDS = torch.tensor([0, 3, 1, 2, 3])


def imitated(program: Program) -> set[str]:
    """The tables whose rows a trial rounds."""
    rounding = [n for n in program.graph.nodes if n.op == "call_function" and n.target in ROUNDINGS]
    return {site_of(node) for node in rounding}


def test_places_table_formats_by_rows_and_bytes() -> None:
    program = canonical(Tables(), IDS)
    ran = place(program, permissive_judge(program))
    assert ran.chosen() == {"even": "int8", "varied": "int8"}
    assert ran.applied("place-precision") == ["placed int8 on 2 of 2 tables"]
    assert_same_graph(ran.program, program, (IDS,), tolerance=BIT_EQUAL)
    assert ran.report.table_bytes == (2 * 40 * 8 * 4, 2 * 40 * (8 + 8))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (lambda x: x[:, 0].clamp(3, 3), "calibration only ever looks up its row 3"),
        (lambda x: x[:, :0], "calibration never looks it up"),
    ],
    ids=["one row", "no row"],
)
def test_a_table_that_calibration_hardly_reads_stays(
    ids: Callable[[Tensor], Tensor], reason: str
) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(ids(x)).flatten(1).sum(1)

    program = canonical(Lookup(), torch.arange(10).reshape(5, 2))
    ran = place(program, permissive_judge(program))
    assert ran.chosen() == {"table": "fp32"}
    assert ran.reasons() == {"table": reason}
    assert ran.missed("place-precision") == [reason]


def test_a_table_of_one_row_is_read_whole() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1, 8)

        def forward(self, ids: Tensor, x: Tensor) -> Tensor:
            return self.table(ids).sum(1) + x

    # Rows that are all alike would be one row, which proves nothing.
    program = canonical(One(), torch.zeros(4, dtype=torch.int64), torch.arange(4.0))
    assert place(program, permissive_judge(program)).missed("place-precision") == []


def test_a_format_that_gives_nan_is_refused_and_named() -> None:
    net = Net()
    with torch.no_grad():
        net.b.weight[0, 0] = 1e5  # over the largest number of fp16
    target = dataclasses.replace(EAGER_INT8, formats=("fp16", "int8"))
    ran = place(net, always_pass, X, target=target)
    (site,) = [s for s in ran.report.sites if s.site == "b"]
    refused = {c["format"]: c["refused"] for c in site.candidates}
    assert refused["fp16"] == "its output would be NaN or Inf"
    assert refused["int8"] == ""
    json.loads(json.dumps(ran.report.to_json(), allow_nan=False))
    (site,) = [s for s in ran.report.sites if s.site == "a"]
    assert not [c for c in site.candidates if "NaN" in c["refused"]]


def test_a_format_whose_scores_are_nan_is_refused() -> None:
    class Spoilt(RuleJudge):
        def damages(self, program: Program) -> dict[str, float]:
            if "a" in {site_of(node) for node in quantized_linears(program)}:
                raise DataError("output 'score' is NaN or Inf in 3 of 64 rows, first in row 5.")
            return super().damages(program)

    ran = place(Net(), Spoilt(always_pass), X)
    assert ran.reasons()["a"].startswith("alone it spoils the scores: output 'score' is NaN or Inf")
    assert {"b", "c"} <= set(placed(ran.program))


def test_the_table_that_damages_most_goes_back_while_over_budget() -> None:
    def only_even(program: Program) -> Verdict:
        worst = 3e-4 if "varied" in imitated(program) else 1e-5
        both = imitated(program) == {"even", "varied"}
        return verdict(Status.FAIL if both else Status.PASS, worst)

    ran = place(canonical(Tables(), IDS), only_even)
    assert ran.chosen() == {"even": "int8", "varied": "fp32"}
    assert ran.missed("place-precision") == [TOGETHER]


def test_memory_decides_where_lookups_are_slower() -> None:
    """At four times the time, a table's bytes must be worth it."""
    target = dataclasses.replace(EAGER_INT8, formats=())
    program = canonical(Tables(), IDS)
    calibration = [made_up(program, 64, seed=7)]

    def chosen(weight: float) -> set[str]:
        context = PassContext(
            target=dataclasses.replace(target, memory_weight=weight),
            judge=permissive_judge(program),
            calibration=calibration,
        )
        rates = {"fp32": 1e-9, "int8": 4e-9}
        KernelTimes.of(context).lookup_seconds = lambda elements, name: rates[name] * elements  # type: ignore[method-assign]
        run_pass(PlacePrecision(), program.clone(), context)
        return {site.chosen for site in context.report.sites}

    assert chosen(0.0) == {"fp32"}
    assert chosen(10.0) == {"int8"}


def test_misses_a_table_that_something_else_reads_too() -> None:
    class Tied(nn.Module):
        """Scores against all items with the item table itself."""

        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(40, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.linear(self.items(ids), self.items.weight).sum(1)

    target = dataclasses.replace(EAGER_INT8, formats=())
    ran = place(canonical(Tied(), IDS), always_pass, target=target)
    assert ran.missed("place-precision") == ["is read by something else than lookups"]
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_tables_of_other_dtypes_are_left_alone() -> None:
    ran = place(canonical(Tables().double(), IDS), always_pass)
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_a_row_of_its_own_range_stands_what_a_static_range_does_not() -> None:
    """One row in eight is a hundred times the others; each row has its own range."""
    target = dataclasses.replace(EAGER_INT8, formats=("int8", "int8-rows"), table_formats=())
    program = canonical(Net(), X)
    rows = {"x": torch.randn(1024, 8)}
    rows["x"][::8] *= 100.0
    ran = run_passes(
        program, "place-precision", target=target, judge=always_pass, calibration=[rows], rows=rows
    )
    (first,) = [site for site in ran.report.sites if site.site == "a"]
    errors = {c["format"]: c["errors"].get("relative") for c in first.candidates}
    assert errors["int8-rows"] < 0.02
    plain, scaled = ran.report.probe.sites[0].candidates[1:3]
    assert {plain.precision.format, scaled.precision.format} == {"int8", "int8-rows"}


def test_the_probe_can_be_read_back_and_solved_again() -> None:
    program = canonical(Net(), X)
    ran = place(program, permissive_judge(program))
    probe = ran.report.probe
    saved = json.loads(json.dumps(ran.report.to_json()))
    again = Probe.from_records(map(SiteRecord.from_json, saved["sites"]), **saved["placement"])
    assert [c.recipe for c in again.solve({})] == [c.recipe for c in probe.solve({})]
    nothing = again.solve({"score": 0.0})
    assert [c.recipe for c in nothing] == ["fp32"] * 3
