"""A plan over budget loses the sites that hurt, not all; what wasn't asked for races too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import rankc
import torch
from rankc.optimizer.analysis.sites import linear_sites
from rankc.optimizer.ir import Precision, Program, facts_of, set_precision, site_of
from rankc.optimizer.pipeline import registry as pass_registry
from rankc.optimizer.pipeline.backoff import REASON
from rankc.optimizer.pipeline.passbase import Exactness, Pass, PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.verdict import Status, Verdict
from rankc.optimizer.report.records import Kind, Outcome, SiteRecord
from rankers import LOOSE, drawn_labels, small, small_batches, small_inputs
from support import RuleJudge, verdict

Make = Callable[..., PassContext]


def placed(program: Program, context: Make, judge: Any, damages: list[float]) -> PassContext:
    """A context whose plan has every inner linear in bf16, and says what each of them costs."""
    ctx = context(judge=judge)
    for node, damage in zip(linear_sites(program), damages, strict=False):
        set_precision(node, Precision("bf16"))
        told = {"format": "bf16", "damage": {"score": damage}}
        ctx.report.sites.append(SiteRecord(site_of(node), "linear", (6, 6), "bf16", (told,), ""))
    return ctx


def low_sites(program: Program) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if "half_linear" in str(n.target)]


def at_most(count: int) -> RuleJudge:
    def rule(program: Program) -> Verdict:
        over = len(low_sites(program)) > count
        return verdict(Status.FAIL, 0.03, "too many") if over else verdict(Status.PASS, 1e-5)

    return RuleJudge(rule)


@pytest.mark.parametrize(("count", "kept"), [(5, 5), (4, 4), (3, 3), (1, 1)])
def test_the_sites_that_hurt_most_go_first(
    program: Program, context: Make, count: int, kept: int
) -> None:
    ctx = placed(program, context, at_most(count), [1e-4, 9e-4, 2e-4, 4e-4, 3e-5])
    Pipeline.parse("insert-quantize").run(program, ctx)
    (record,) = ctx.report.records
    assert record.outcome is Outcome.CHANGED
    assert len(low_sites(program)) == kept
    chosen = {site.site: site.chosen for site in ctx.report.sites}
    order = ["layers.1", "layers.3", "layers.2", "layers.0", "layers.4"]
    assert [site for site in order if chosen[site] == "fp32"] == order[: 5 - kept]
    reasons = [site.reason for site in ctx.report.sites if site.chosen == "fp32"]
    assert set(reasons) <= {REASON}
    assert ctx.report.said(Kind.FAILED) == []
    assert (REASON in [r.message for r in ctx.report.said(Kind.MISSED)]) is (kept < 5)


def test_where_no_part_of_the_plan_passes_all_of_it_goes(program: Program, context: Make) -> None:
    ctx = placed(program, context, at_most(0), [1e-4, 9e-4, 2e-4, 4e-4, 3e-5])
    Pipeline.parse("insert-quantize").run(program, ctx)
    (record,) = ctx.report.records
    assert record.outcome is Outcome.ROLLED_BACK
    assert {site.chosen for site in ctx.report.sites} == {"fp32"}
    assert low_sites(program) == []
    assert len([n for n in linear_sites(program) if facts_of(n).precision is not None]) == 1


@dataclass(frozen=True)
class Burden(Pass):
    """Stands for finetuning that comes out slower than what was begun with."""

    name: ClassVar[str] = "burden"
    exactness: ClassVar[Exactness] = Exactness.TRAINED

    def run(self, program: Program, ctx: PassContext) -> None:
        """Adds large products that come to nothing."""
        rw = ctx.rewriter(program)
        (output,) = program.graph.find_nodes(op="output")
        score = output.args[0][0]
        wide = rw.parameter("wide", torch.ones(1, 300))
        large = rw.parameter("large", torch.eye(300) * 0.5)
        with rw.before(output):
            nothing = rw.emit(torch.ops.aten.mul.Tensor, score, 0.0, like=score)
            column = rw.emit(torch.ops.aten.unsqueeze.default, nothing, 1, like=score)
            product = rw.emit(torch.ops.aten.mm.default, column, wide, like=score)
            for _ in range(4):
                product = rw.emit(torch.ops.aten.mm.default, product, large, like=score)
            total = rw.emit(torch.ops.aten.sum.dim_IntList, product, [1], like=score)
            added = rw.emit(torch.ops.aten.add.Tensor, score, total, like=score)
        rw.set_argument(output, 0, (added, *output.args[0][1:]))
        ctx.applied("added a burden")


def test_asking_for_finetuning_never_gives_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pass_registry, "_REGISTERED", {**pass_registry._REGISTERED, "burden": Burden}
    )
    model = small()
    inputs = small_inputs(1500, seed=77)
    earlier = [rankc.Batch(inputs, drawn_labels(model, inputs))]
    artifact = rankc.optimize(
        model,
        "cpu-fp32",
        data=small_batches(model),
        budget=LOOSE,
        pipeline="default,+burden",
        recover=rankc.Distill(earlier),
    )
    assert artifact.verdict.status is Status.PASS
    assert artifact.report.race is not None
    assert set(artifact.report.race.milliseconds) == {"onnxruntime", "onnxruntime, not finetuned"}
    assert "burden" not in artifact.manifest.recipe
    assert any("this is what is returned" in note for note in artifact.report.notes)
