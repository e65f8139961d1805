"""`rankc.optimize` without data: what it places, on which ranges, and what it says of that."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import pytest
import rankc
import torch
from rankc.optimizer.errors import DataError, TargetError
from rankc.optimizer.precision.assumed import KNOWN
from rankc.optimizer.target import TARGETS
from rankers import LOOSE
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Modules that a test makes have the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


#: Targets that have a format below fp32.
LOW = [name for name, target in TARGETS.items() if target.formats]


class Wide(nn.Module):
    """Like a DLRM, wide enough for every device: a table, dense features, two linears over both."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 64)
        self.bottom = nn.Linear(32, 64)
        self.over = nn.Linear(128, 512)
        self.score = nn.Linear(512, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.bottom(dense)), self.table(ids)], 1)
        return self.score(torch.relu(self.over(both))).squeeze(1)


@functools.cache
def wide() -> Wide:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Wide().eval()


def wide_inputs(count: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, 32, generator=generator)
    return dense, torch.randint(0, 500, (count,), generator=generator)


def eager(name: str) -> rankc.Target:
    """The target's formats, run in PyTorch: what is placed doesn't hang on who builds it."""
    target = rankc.Target.of(name)
    formats = tuple(f for f in target.formats if target.measured or not f.endswith("-rows"))
    return dataclasses.replace(target, formats=formats, backends=("eager",), measured=False)


@functools.cache
def program() -> rankc.Program:
    """Captured with an example, which shows shapes and says nothing of sizes."""
    return rankc.capture(wide(), wide_inputs())


def allowed(name: str) -> rankc.Budget:
    """Four bits on both sides of a product move scores by more than a tenth of their spread."""
    return dataclasses.replace(LOOSE, max_rms_shift=0.25) if name.endswith("fp4") else LOOSE


@functools.cache
def placed(name: str, exemplified: bool = False) -> rankc.Artifact:
    inputs = wide_inputs() if exemplified else None
    return rankc.optimize(program(), eager(name), inputs=inputs, budget=allowed(name))


def chosen(artifact: rankc.Artifact) -> dict[str, str]:
    return {site.site: site.chosen for site in artifact.report.sites}


# --- what is placed -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOW)
def test_every_target_places_what_it_is_for(name: str) -> None:
    artifact = placed(name)
    formats = chosen(artifact)
    kind = name.rpartition("-")[2]
    wanted = {"cpu-int8": "int8-rows"}.get(name, {"fp4": "nvfp4"}.get(kind, kind))
    assert formats["over"] == wanted
    assert formats["bottom"] == "fp32"
    assert formats.get("table", "fp32") == ("fp32" if wanted == "bf16" else "int8")
    assert artifact.verdict.status is rankc.Status.UNVERIFIED
    inputs = wide_inputs(200, seed=3)
    with torch.no_grad():
        want = wide()(*inputs)
    moved = (artifact(*inputs) - want).square().mean().sqrt() / want.std()
    assert 0.0 < moved < allowed(name).max_rms_shift


@pytest.mark.parametrize("name", ["h100-fp8", "cpu-int8", "h100-bf16"])
def test_an_example_lets_the_first_linear_take_a_format(name: str) -> None:
    assert chosen(placed(name, exemplified=True))["bottom"] != "fp32"
    (why,) = (s.reason for s in placed(name).report.sites if s.site == "bottom")
    assert why == (
        "reads 'dense', a feature of unknown scale; give inputs=, an example whose values "
        "are typical"
    )


EXAMPLES = {
    "constant": lambda dense: dense.fill_(3.0),
    "zero": lambda dense: dense.zero_(),
    "empty": lambda dense: dense[:0],
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_that_tells_no_size_keeps_the_first_linear_high(kind: str) -> None:
    dense, ids = wide_inputs()
    dense = EXAMPLES[kind](dense)
    found = rankc.optimize(
        program(), eager("h100-fp8"), inputs=(dense, ids[: len(dense)]), budget=LOOSE
    )
    assert chosen(found) == chosen(placed("h100-fp8"))


def test_an_example_without_a_number_is_told() -> None:
    dense, ids = wide_inputs()
    with pytest.raises(DataError, match="feature 'dense' is NaN in row 0"):
        rankc.optimize(program(), eager("h100-fp8"), inputs=(dense.fill_(float("nan")), ids))


def test_missing_values_of_an_example_are_left_out() -> None:
    dense, ids = wide_inputs()
    dense[3, 5] = float("nan")
    found = rankc.optimize(program(), eager("h100-fp8"), inputs=(dense, ids), budget=LOOSE)
    assert chosen(found)["bottom"] == "fp8"


def test_ranges_grow_with_the_example() -> None:
    dense, ids = wide_inputs()
    small_ones = placed("h100-fp8", exemplified=True)
    large = rankc.optimize(program(), eager("h100-fp8"), inputs=(100 * dense, ids), budget=LOOSE)
    before, after = (
        {one.site: one.high for one in artifact.report.assumed} for artifact in (small_ones, large)
    )
    assert 50 < after["bottom"] / before["bottom"] < 200


class Positive(nn.Module):
    """Has no score where its feature isn't positive."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Linear(64, 64)

    def forward(self, amount: Tensor) -> Tensor:
        return self.over(amount.log()).sum(1)


def test_rows_are_made_up_as_the_model_takes_them() -> None:
    amounts = torch.rand(8, 64) + 0.5
    captured = rankc.capture(Positive().eval(), (amounts,))
    told = rankc.optimize(captured, eager("cpu-bf16"), inputs=(amounts,), budget=LOOSE)
    assert chosen(told) == {"over": "bf16"}
    bare = rankc.optimize(captured, eager("cpu-bf16"), budget=LOOSE)
    assert chosen(bare) == {"over": "fp32"}
    assert "'amount' of unknown scale" in str(bare.verdict)


class Still(nn.Module):
    """Scores alike whatever is made up, since it hardly ever looks at what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Linear(64, 64)

    def forward(self, dense: Tensor) -> Tensor:
        return torch.relu(self.over(dense) - 1e3).sum(1)


def test_where_all_made_up_rows_score_alike_no_format_is_placed() -> None:
    model = Still().eval()
    captured = rankc.capture(model, (torch.randn(8, 64),))
    artifact = rankc.optimize(captured, eager("cpu-bf16"), budget=LOOSE)
    assert chosen(artifact) == {}
    (why,) = (note for note in artifact.report.notes if "made-up rows" in note)
    assert "task 'score' scores all of them alike; give inputs=, an example" in why


# --- what is said ---------------------------------------------------------------------------------


def test_the_verdict_says_what_was_assumed_and_what_would_settle_it() -> None:
    artifact = placed("h100-fp8")
    first, *reasons = str(artifact.verdict).splitlines()
    assert first == "UNVERIFIED: no rows to measure on"
    placing, damage, ranged, unknown, settling = reasons
    assert placing == (
        "  - no data was given: 1 linear in fp8 and 1 table in int8, and what that costs on your "
        "rows is not known"
    )
    assert damage.startswith("  - on 2,048 made-up rows, and the original's own scores as soft")
    assert "it moves task 'score' by ΔNE +0." in damage
    (range_,) = artifact.report.assumed
    assert ranged == f"  - assumed range: {range_}"
    assert range_.site == "over"
    assert range_.source == "8 times what made-up rows give"
    assert "'dense' of unknown scale" in unknown
    assert "bottom keeps fp32 for it; give inputs=, an example" in unknown
    assert "labelled rows of traffic as data= would settle it: 4,096 give the ranges" in settling
    assert settling.endswith('formats="none" leaves every format as it is')
    report = artifact.report.to_json()
    assert report["assumed"] == [range_.to_json()]
    (why,) = (site["reason"] for site in report["sites"] if site["site"] == "over")
    assert str(range_) in why
    assert rankc.Verdict.from_json(artifact.verdict.to_json()) == artifact.verdict


def test_what_is_known_from_tables_is_said_to_be() -> None:
    class Lookups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 64)
            self.over = nn.Linear(64, 256)

        def forward(self, ids: Tensor) -> Tensor:
            return torch.tanh(self.over(self.table(ids))).mean(1)

    model = Lookups().eval()
    captured = rankc.capture(model, (torch.arange(8),))
    artifact = rankc.optimize(captured, eager("h100-fp8"), budget=LOOSE)
    (range_,) = artifact.report.assumed
    weight = model.table.weight.detach()
    assert range_.source == KNOWN
    assert (range_.low, range_.high) == (float(weight.min()), float(weight.max()))
    assert "unknown scale" not in str(artifact.verdict)


def test_with_data_nothing_is_assumed() -> None:
    dense, ids = wide_inputs(400)
    data = [rankc.Batch((dense, ids))]
    artifact = rankc.optimize(program(), eager("h100-fp8"), data=data, budget=LOOSE)
    assert artifact.report.assumed == []
    assert chosen(artifact)["bottom"] == "fp8"


# --- what is asked for ----------------------------------------------------------------------------


def test_formats_none_leaves_every_format() -> None:
    artifact = rankc.optimize(program(), eager("h100-fp8"), formats="none", budget=LOOSE)
    assert chosen(artifact) == {}
    assert str(artifact.verdict) == (
        "UNVERIFIED: no rows to measure on\n"
        "  - no data was given; give data= to measure ΔNE and to allow lossy formats"
    )
    inputs = wide_inputs(100, seed=3)
    with torch.no_grad():
        assert torch.allclose(artifact(*inputs), wide()(*inputs), atol=1e-5)


def test_formats_none_holds_with_data_too() -> None:
    data = [rankc.Batch(wide_inputs(400))]
    artifact = rankc.optimize(program(), eager("h100-fp8"), data=data, formats="none")
    assert artifact.verdict.status is rankc.Status.PASS
    assert chosen(artifact) == {}


def test_formats_are_auto_or_none() -> None:
    with pytest.raises(TargetError, match="formats is 'fp8', expected 'auto'"):
        rankc.optimize(program(), "h100-fp8", formats="fp8")
    message = "nvfp4 is a format of the targets b200-fp4, rtx6000-fp4"
    with pytest.raises(TargetError, match=message):
        rankc.optimize(program(), "h100-fp8", formats="nvfp4")
    # The remedies, up to the plan.
    single = dataclasses.replace(eager("h100-fp8"), formats=("fp8",))
    assert rankc.optimize(program(), single, formats="auto", budget=LOOSE).report.sites
    assert "nvfp4" in rankc.Target.of("b200-fp4").formats


def test_a_budget_that_needs_labels_and_groups_is_held_as_far_as_it_can_be() -> None:
    budget = dataclasses.replace(LOOSE, gauc=0.01, recall_at=(10, 0.9), cohorts=("country",))
    artifact = rankc.optimize(program(), eager("h100-fp8"), budget=budget)
    assert chosen(artifact) == chosen(placed("h100-fp8"))


def test_a_tight_budget_holds_for_made_up_rows() -> None:
    artifact = rankc.optimize(program(), eager("h100-fp8"), budget=rankc.Budget(ne=1e-12))
    assert set(chosen(artifact).values()) == {"fp32"}
    assert artifact.report.assumed == []
    _, why, *_ = str(artifact.verdict).splitlines()
    assert why.startswith("  - no data was given, and no format was placed on what can be assumed")


@pytest.mark.parametrize("name", ["cpu-int8", "h100-fp8", "a100-int8", "h100-bf16"])
def test_the_report_says_that_low_formats_save_time(name: str) -> None:
    bought = {pass_.spec: pass_.seconds for pass_ in placed(name).report.waterfall}
    assert bought["insert-quantize"] > 0.0
    assert bought.get("quantize-tables", 0.0) >= 0.0
    assert "place-precision" not in bought


# --- features whose size is known otherwise, or isn't ---------------------------------------------


class Normed(nn.Module):
    """A batch norm reads the dense feature first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.norm.running_mean.fill_(500.0)
        self.norm.running_var.fill_(1e6)
        self.over = nn.Linear(64, 256)

    def forward(self, dense: Tensor) -> Tensor:
        return torch.tanh(self.over(self.norm(dense))).mean(1)


def test_what_batch_norms_have_seen_of_a_feature_is_its_size() -> None:
    captured = rankc.capture(Normed().eval(), (500.0 + 1000.0 * torch.randn(8, 64),))
    artifact = rankc.optimize(captured, eager("h100-fp8"), budget=LOOSE)
    assert chosen(artifact) == {"over": "fp8"}
    assert "assumed: 'dense' like what the batch norms have seen of it" in str(artifact.verdict)
    (range_,) = artifact.report.assumed
    assert 10_000 < range_.high < 100_000, "the norm is folded, so the linear reads the feature"


class Clock(nn.Module):
    """Takes an integer as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.rand(64) / 3600.0)
        self.over = nn.Linear(64, 256)

    def forward(self, seconds: Tensor) -> Tensor:
        return torch.tanh(self.over(seconds.float().unsqueeze(1) * self.steps)).mean(1)


def test_an_integer_that_is_taken_as_a_number_has_no_known_size_either() -> None:
    seconds = torch.randint(0, 86_400, (64,))
    captured = rankc.capture(Clock().eval(), (seconds,))
    bare = rankc.optimize(captured, eager("cpu-bf16"), budget=LOOSE)
    assert chosen(bare) == {"over": "fp32"}
    assert "'seconds' of unknown scale" in str(bare.verdict)
    told = rankc.optimize(captured, eager("cpu-bf16"), inputs=(seconds,), budget=LOOSE)
    assert chosen(told) == {"over": "bf16"}
