"""Heads for fixed windows become two and a formula, with the window as a feature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rankc
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rankc.frontends.export import capture
from rankc.models.data import batches, simulated_conversions
from rankc.models.mmoe import MMoE, MMoEConfig
from rankc.models.train import train
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import SignatureError
from rankc.optimizer.heads.windows import exponential
from rankc.optimizer.ir import Program, Side
from rankc.optimizer.pipeline.registry import pass_names
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.report.records import Outcome
from support import (
    Ran,
    RuleJudge,
    made_up,
    made_up_recovery,
    operators,
    permissive_judge,
    run_passes,
    verdict,
)
from torch import Tensor, nn

DAYS = (1.0, 3.0, 7.0, 28.0)
RATE = 0.15


class Delayed(nn.Module):
    """Heads whose probabilities follow exponential delays, but for ``off`` at 7 days."""

    def __init__(self, returns: str, off: float = 0.0, days: tuple[float, ...] = DAYS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 6)
        self.first, self.last = nn.Linear(6, 1), nn.Linear(6, 1)
        self.middle = nn.ModuleList(nn.Linear(6, 1) for _ in days[1:-1])
        self.returns, self.off, self.days = returns, off, days
        shares = [float(exponential(d, RATE, days[0], days[-1])) for d in days]
        self.register_buffer("shares", torch.tensor(shares))

    def forward(self, x: Tensor) -> Any:
        hidden = self.trunk(x).tanh()
        low = self.first(hidden).sigmoid() * 0.3
        high = low + self.last(hidden).sigmoid() * 0.5
        inner = []
        for index, head in enumerate(self.middle, 1):
            p = low + self.shares[index] * (high - low) + 0.0 * head(hidden)
            inner.append(p + (self.off if self.days[index] == 7.0 else 0.0))
        found = [low, *inner, high]
        if self.returns == "columns":
            return torch.cat(found, 1)
        if self.returns == "columns of logits":
            return torch.cat([p.logit() for p in found], 1).sigmoid()
        names = [f"buy_{day:g}d" for day in self.days]
        scores = [p.squeeze(1).logit() if self.returns == "logits" else p.squeeze(1) for p in found]
        return tuple(scores) if self.returns == "tuple" else dict(zip(names, scores, strict=True))


RETURNS = ("logits", "probabilities", "tuple", "columns", "columns of logits")
X = torch.randn(9, 4)


def captured(returns: str, **options: Any) -> Program:
    program = capture(Delayed(returns, **options).eval(), (X,))
    if returns != "logits":
        for task in program.signature.tasks:
            changed = program.signature.with_task(task.name, score=rankc.Score.PROBABILITY)
            program.signature = changed
    return run_passes(program, "canonicalize").program


def spec(program: Program, days: tuple[float, ...] = DAYS, **options: Any) -> str:
    names = [task.name for task in program.signature.tasks]
    return rankc.Windows(heads=dict(zip(names, days, strict=True)), **options).spec()


def interpolated(program: Program, passes: str, judge: Any = None) -> Ran:
    judge = judge or (lambda trial: verdict(Status.PASS, 0.0))
    rows = made_up(program, 200, seed=4)
    return run_passes(program, passes, judge=RuleJudge(judge), calibration=[rows])


def probabilities(program: Program, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Task by task, and what was asked for as None."""
    outputs, found = program.run(features), {}
    for task in program.signature.tasks:
        value = outputs[task.output].reshape(len(X), -1)[:, task.column or 0].double()
        found[task.name] = value.sigmoid() if task.score is rankc.Score.LOGIT else value
    asked = outputs.get("at_window")
    if asked is None:
        found["asked"] = outputs["score"][:, -1].double()
    else:
        is_logit = program.signature.tasks[0].score is rankc.Score.LOGIT
        found["asked"] = asked.double().sigmoid() if is_logit else asked.double()
    return found


@pytest.mark.parametrize("delays", ["exponential", "empirical", "auto"])
@pytest.mark.parametrize("returns", RETURNS)
def test_any_window_between_the_heads(returns: str, delays: str) -> None:
    program = captured(returns)
    before = probabilities_of_heads(program)
    ran = interpolated(program, spec(program, delays=delays))
    low, high = before[0], before[-1]
    for day in (1.0, 2.0, 3.0, 5.0, 7.0, 20.0, 28.0):
        found = probabilities(ran.program, {"x": X, "window": torch.full((len(X),), day)})
        expected = low + exponential(day, RATE, 1.0, 28.0).item() * (high - low)
        # A distribution is known at the heads; between them a smooth curve is drawn.
        off = 1e-5 if delays != "empirical" or day in DAYS else 0.02
        assert torch.allclose(found["asked"], expected, rtol=0, atol=off), day
        for task, own in zip(program.signature.tasks, before, strict=True):
            assert torch.allclose(found[task.name], own, rtol=0, atol=1e-5)


def probabilities_of_heads(program: Program) -> list[Tensor]:
    outputs, found = program.run({"x": X}), []
    for task in program.signature.tasks:
        value = outputs[task.output].reshape(len(X), -1)[:, task.column or 0].double()
        found.append(value.sigmoid() if task.score is rankc.Score.LOGIT else value)
    return found


def test_each_row_has_a_window_of_its_own() -> None:
    program = captured("logits")
    ran = interpolated(program, spec(program))
    days = torch.linspace(1.0, 28.0, len(X))
    together = probabilities(ran.program, {"x": X, "window": days})["asked"]
    for row, day in enumerate(days):
        alone = {"x": X, "window": torch.full((len(X),), float(day))}
        assert torch.allclose(together[row], probabilities(ran.program, alone)["asked"][row])


@pytest.mark.parametrize("returns", RETURNS)
def test_dropped_heads_are_gone_and_callers_see_what_they_saw(returns: str) -> None:
    program = captured(returns)
    ran = interpolated(program, spec(program))
    assert operators(program).count("linear") == 5
    # Trunk and two heads; weights of the formula, of the segment, and of the dropped heads.
    assert ran.program.nbytes < program.nbytes
    assert {name for name, _ in ran.program.tensors() if name.startswith("middle")} == set()
    assert ran.program.signature.tasks == program.signature.tasks
    feature = ran.program.signature.feature("window")
    assert (feature.default, feature.bounds, feature.side) == (28.0, (1.0, 28.0), Side.CONTEXT)
    whole = ran.program(X)
    if returns == "logits":
        assert list(whole) == ["buy_1d", "buy_3d", "buy_7d", "buy_28d", "at_window"]
        assert torch.allclose(whole["at_window"], whole["buy_28d"], atol=1e-5)
    elif returns == "tuple":
        assert torch.allclose(whole[4], whole[3], atol=1e-6)
    elif returns != "probabilities":
        assert whole.shape == (len(X), 5)
        assert torch.allclose(whole[:, 4], whole[:, 3], atol=1e-6)


def test_a_default_of_another_window() -> None:
    program = captured("logits")
    whole = interpolated(program, spec(program, default=7.0)).program(X)
    assert torch.allclose(whole["at_window"], whole["buy_7d"], atol=1e-5)


def test_two_heads_and_a_rate_that_is_given() -> None:
    program = captured("logits", days=(1.0, 28.0))
    ran = interpolated(program, spec(program, (1.0, 28.0), rate=RATE))
    found = probabilities(ran.program, {"x": X, "window": torch.full((len(X),), 7.0)})
    expected = found["buy_1d"] + exponential(7.0, RATE, 1.0, 28.0).item() * (
        found["buy_28d"] - found["buy_1d"]
    )
    assert torch.allclose(found["asked"], expected, atol=1e-5)


def test_a_distribution_that_is_given() -> None:
    program = captured("logits")
    cdf = ((0.0, 0.0), (10.0, 0.5), (30.0, 1.0))
    ran = interpolated(program, spec(program, delays="empirical", cdf=cdf))
    found = probabilities(ran.program, {"x": X, "window": torch.full((len(X),), 20.0)})
    share = (0.75 - 0.05) / (0.95 - 0.05)
    expected = found["buy_1d"] + share * (found["buy_28d"] - found["buy_1d"])
    assert torch.allclose(found["asked"], expected, atol=1e-5)


def test_each_row_has_a_rate_of_its_own() -> None:
    """As each advertiser has (2501.14103); rows without one have the fitted rate."""
    program = captured("logits")
    options = {"delays": "exponential", "rate_feature": "delay_rate"}
    ran = interpolated(program, spec(program, **options))
    rates = torch.tensor([0.0, 1e-6, 0.01, 0.1, 0.5, 1.0, 3.0, 0.15, 0.15])
    day = torch.full((len(X),), 7.0)
    found = probabilities(ran.program, {"x": X, "window": day, "delay_rate": rates})
    shares = torch.tensor([float(exponential(7.0, r, 1.0, 28.0)) for r in rates.tolist()])
    expected = found["buy_1d"] + shares * (found["buy_28d"] - found["buy_1d"])
    assert torch.allclose(found["asked"], expected, atol=1e-5)
    fitted = probabilities(ran.program, {"x": X, "window": day})["asked"]
    assert torch.allclose(fitted[-2:], expected[-2:], atol=1e-4)


def is_off(names: tuple[str, ...]) -> Any:
    """A judge that wants these heads' own linears to stay."""

    def judge(trial: Program) -> Any:
        kept = {name.rsplit(".", 1)[0] for name, _ in trial.tensors()}
        good = kept.issuperset(names)
        return verdict(Status.PASS if good else Status.FAIL, 0.0, "" if good else "over budget")

    return judge


@pytest.mark.parametrize("returns", ["logits", "columns"])
def test_the_head_that_fits_worst_comes_back_and_splits_the_range(returns: str) -> None:
    program = captured(returns, off=0.05)
    before = probabilities_of_heads(program)
    passes = spec(program, delays="exponential", rate=RATE)
    ran = interpolated(program, passes, is_off(("middle.1",)))
    seven = program.signature.tasks[2].name
    assert ran.missed("interpolate-windows") == ["computing it by the formula is over budget"]
    chosen = {site.site: site.chosen for site in ran.report.sites}
    tasks = [task.name for task in program.signature.tasks]
    assert [chosen[task] for task in tasks] == ["head", "formula", "head", "head"]
    found = probabilities(ran.program, {"x": X, "window": torch.full((len(X),), 7.0)})
    assert torch.allclose(found["asked"], before[2], atol=1e-5)
    assert torch.allclose(found[seven], before[2], atol=1e-6)
    at = probabilities(ran.program, {"x": X, "window": torch.full((len(X),), 14.0)})["asked"]
    assert bool(((before[2] < at) & (at < before[3])).all())


def test_where_no_head_can_go_there_is_still_a_window() -> None:
    program = captured("logits", off=0.05)
    ran = interpolated(program, spec(program), is_off(("middle.0", "middle.1")))
    assert "dropped 0 of 4 heads for fixed windows" in ran.applied("interpolate-windows")[0]
    found = probabilities(ran.program, {"x": X, "window": torch.full((len(X),), 3.0)})
    assert torch.allclose(found["asked"], probabilities_of_heads(program)[1], atol=1e-5)


def test_a_head_that_something_else_needs_stays() -> None:
    class Ratio(Delayed):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return {**found, "early": found["buy_3d"] / found["buy_28d"]}

    program = run_passes(capture(Ratio("logits").eval(), (X,)), "canonicalize").program
    heads = {f"buy_{day:g}d": day for day in DAYS}
    ran = interpolated(program, rankc.Windows(heads=heads).spec())
    assert ran.missed("interpolate-windows") == ["something else than its output needs the head"]
    assert {s.site: s.chosen for s in ran.report.sites}["buy_3d"] == "head"


class Columns(nn.Module):
    """Heads that are columns of one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x)


@pytest.mark.parametrize(
    ("make", "judged", "reason"),
    [
        (lambda: captured("logits"), False, "there is no data"),
        (lambda: run_passes(capture(Columns(), (X,)), "canonicalize").program, True, "of its own"),
    ],
    ids=["no data", "columns of one linear"],
)
def test_near_misses(make: Any, judged: bool, reason: str) -> None:
    program = make()
    count = len(program.signature.tasks)
    passes = spec(program, DAYS[:count])
    ran = interpolated(program, passes) if judged else run_passes(program, passes)
    assert ran.outcomes == [Outcome.SKIPPED]
    assert reason in ran.missed("interpolate-windows")[0]


def test_heads_of_no_windows_are_a_miss() -> None:
    program = captured("tuple")
    ran = interpolated(program, "interpolate-windows")
    assert ran.outcomes == [Outcome.SKIPPED]
    assert "no heads are called like windows" in ran.missed("interpolate-windows")[0]


@settings(max_examples=25, deadline=None)
@given(st.floats(-9.0, 9.0), st.floats(-9.0, 9.0), st.floats(1.0, 28.0))
def test_what_is_asked_for_lies_between_the_heads(low: float, high: float, day: float) -> None:
    """However small the probabilities are, and also where noise has the longer window below."""
    program = _two_logits()
    scores = torch.tensor([[low, high]]).repeat(len(X), 1)
    found = program.run({"x": scores, "window": torch.full((len(X),), day)})["at_window"]
    first, last = sorted((np.float32(low), np.float32(high)))
    assert first - 1e-4 * abs(first) - 1e-5 <= float(found[0]) <= last + 1e-4 * abs(last) + 1e-5


_MADE: dict[str, Program] = {}


def _two_logits() -> Program:
    class Given(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"buy_1d": x[:, 0] * 1.0, "buy_28d": x[:, 1] * 1.0}

    if not _MADE:
        program = run_passes(capture(Given(), (torch.randn(9, 2),)), "canonicalize").program
        windows = rankc.Windows(heads={"buy_1d": 1, "buy_28d": 28}, rate=RATE)
        _MADE["made"] = interpolated(program, windows.spec()).program
    return _MADE["made"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "form"), [("exponential", "exponential"), ("lognormal", "empirical")]
)
def test_a_model_trained_on_a_log_of_conversions(law: str, form: str) -> None:
    log = simulated_conversions(40_000, law)
    days = (1, 3, 7, 14, 28)
    tasks = tuple(f"conversion_{day}d" for day in days)
    torch.manual_seed(0)
    sizes = MMoEConfig(
        log.data.cardinalities,
        4,
        embedding_dim=8,
        tasks=tasks,
        experts=2,
        expert=(32,),
        tower=(16,),
    )
    model = MMoE(sizes)
    train(model, log.data.train, task=tasks, epochs=2, batch_size=512, lr=5e-3)
    rows = list(batches(log.data.test, 2048))
    artifact = rankc.optimize(
        model,
        "cpu-fp32",
        data=[rankc.Batch(inputs, labels) for inputs, labels in rows],
        budget=rankc.Budget(ne=0.05, max_rms_shift=0.5, two_sided=False),
        windows=rankc.Windows(),
    )
    assert artifact.verdict.status is Status.PASS
    sites = {s.site: s for s in artifact.report.sites if s.kind == "window"}
    dropped = {s.site for s in sites.values() if s.chosen == "formula"}
    # The gate clusters rows by time: of so few it may keep a head beside those two.
    assert "conversion_7d" in dropped
    assert dropped <= set(tasks[1:-1])
    (said,) = [r.message for r in artifact.report.remarks if r.message.endswith("knots")]
    assert said.startswith(f"{form} delays")
    assert all(abs(s.candidates[0]["bias"]) < 0.05 for s in sites.values() if s.chosen == "formula")
    inputs, _ = rows[0]
    scores = artifact(*inputs)
    assert torch.allclose(scores["at_window"], scores["conversion_28d"], atol=1e-4)
    week = torch.full((len(inputs[0]),), 7.0)
    asked = artifact(*inputs, window=week)["at_window"]
    assert torch.allclose(asked, scores["conversion_7d"], atol=1e-4)
    message = "feature 'window' is 40 in row 2, outside of 1 to 28"
    with pytest.raises(SignatureError, match=message):
        artifact(*inputs, window=week.index_fill(0, torch.tensor([2]), 40.0))
    assert synthesize(artifact.signature, 9).features["window"].min() >= 1.0


class Wide(nn.Module):
    """Three windows over a table and a linear that are worth a low format."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(2000, 16)
        self.wide, self.low = nn.Linear(24, 128), nn.Linear(128, 128)
        self.heads = nn.ModuleList(nn.Linear(128, 1) for _ in range(3))

    def forward(self, dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.wide(torch.cat([self.table(ids), dense], 1)).relu()
        hidden = self.low(hidden).relu()
        low, middle, high = (head(hidden).squeeze(1) for head in self.heads)
        return {"buy_1d": low - 2.0, "buy_7d": 0.01 * middle - 1.0, "buy_28d": 0.1 * high}


@pytest.fixture(scope="module")
def wide() -> Program:
    return capture(Wide().eval(), (torch.randn(9, 8), torch.arange(9)))


def test_low_formats_are_placed_with_a_feature_that_the_rows_lack(wide: Program) -> None:
    windows = rankc.Windows().of(wide.signature).spec()
    rows = synthesize(wide.signature, 2000, seed=2)
    judge = Judge.of(wide, rows, rankc.Budget(ne=0.3, max_rms_shift=2.0))
    ran = run_passes(
        wide,
        f"default,+{windows}@after:canonicalize",
        target="h100-fp8",
        judge=judge,
        calibration=[made_up(wide, 500, seed=3)],
    )
    assert "window" in ran.program.signature.names
    assert ran.report.failures == []
    assert {"fp8", "int8"} & {record.chosen[:4].rstrip("-") for record in ran.report.sites}


@pytest.mark.parametrize("name", [n for n in sorted(pass_names()) if n != "interpolate-windows"])
def test_no_pass_trips_over_a_feature_that_the_rows_lack(wide: Program, name: str) -> None:
    """With a judge, calibration rows and rows to finetune on that were read without it."""
    windows = rankc.Windows().of(wide.signature).spec()
    plan = {"batch_size": 256, "rounds": 1}
    run_passes(
        wide,
        f"canonicalize,{windows},{name}",
        judge=permissive_judge(wide),
        calibration=[made_up(wide, 300, seed=3)],
        target="h100-fp8",
        recovery=made_up_recovery(wide, 300, **plan),
    )


def test_windows_without_data_are_refused() -> None:
    model = Delayed("logits").eval()
    with pytest.raises(rankc.RankcError, match="windows are fitted to data"):
        rankc.optimize(model, "cpu-fp32", inputs=(X,), windows=rankc.Windows())


@pytest.mark.openvino
def test_backends_are_raced_with_the_window_in() -> None:
    pytest.importorskip("openvino")
    model = Delayed("logits").eval()
    data = [rankc.Batch((torch.randn(4000, 4),))]
    loose = rankc.Budget(ne=0.5, max_rms_shift=None, two_sided=False)
    artifact = rankc.optimize(
        model, "cpu-fp32", data=data, budget=loose, windows=rankc.Windows(), batch_sizes=(8,)
    )
    assert artifact.report.race is not None
    assert set(artifact.report.race.milliseconds) == {"onnxruntime", "openvino"}
    assert artifact(X, window=torch.full((len(X),), 2.0))["at_window"].shape == (len(X),)
