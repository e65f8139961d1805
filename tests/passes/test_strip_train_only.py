"""Heads that are only learned go, and the served outputs stay bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rankc
import torch
from rankc.frontends.export import capture
from rankc.models.early_stage import EarlyStage
from rankc.optimizer.errors import SignatureError
from rankc.optimizer.ir import FeatureKind, Program, site_of
from rankc.optimizer.report.records import Kind, Outcome
from support import (
    BIT_EQUAL,
    Ran,
    assert_same_graph,
    made_up,
    operators,
    run_passes,
    with_auxiliary,
)
from torch import Tensor, nn

X, IDS = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 3, 0])


class Distilled(nn.Module):
    """A served head, and one that learns a teacher's score from a table of its own (ExFM)."""

    def __init__(self, makes: Callable[[Distilled, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
        self.teacher_table, self.distill = nn.Embedding(4, 8), nn.Linear(16, 1)
        self.makes = makes

    def hidden(self, x: Tensor) -> Tensor:
        return self.trunk(x).relu()

    def learned(self, x: Tensor, ids: Tensor) -> Tensor:
        both = torch.cat([self.hidden(x).detach(), self.teacher_table(ids)], 1)
        return self.distill(both)

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return self.makes(self, x, ids)


class Served(Distilled):
    """What is left."""

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return self.head(self.hidden(x)).squeeze(1)


def _pair(m: Distilled, x: Tensor, ids: Tensor) -> Any:
    return m.head(m.hidden(x)).squeeze(1), m.learned(x, ids).squeeze(1)


def _named(m: Distilled, x: Tensor, ids: Tensor) -> Any:
    return {"ctr": m.head(m.hidden(x)).squeeze(1), "aux": {"kd": m.learned(x, ids).squeeze(1)}}


def _columns(m: Distilled, x: Tensor, ids: Tensor) -> Any:
    return torch.cat([m.head(m.hidden(x)), m.learned(x, ids)], 1).sigmoid()


def _stacked(m: Distilled, x: Tensor, ids: Tensor) -> Any:
    return torch.stack([m.head(m.hidden(x)).squeeze(1), m.learned(x, ids).squeeze(1)], 1)


#: What of each form is only learned.
LEARNED = {_pair: "score_1", _named: "aux_kd", _columns: "score_1", _stacked: "score_1"}


def captured(makes: Any) -> Program:
    program = capture(Distilled(makes).eval(), (X, IDS))
    return with_auxiliary(program, LEARNED[makes])


def stripped(program: Program) -> Ran:
    ran = run_passes(program, "strip-train-only")
    again = run_passes(ran.program, "strip-train-only")
    assert again.outcomes[0] in (Outcome.UNCHANGED, Outcome.SKIPPED)
    return ran


@pytest.mark.parametrize("makes", [_pair, _named], ids=["tuple", "dict"])
def test_before_and_expected(makes: Any) -> None:
    program = captured(makes)
    ran = stripped(program)
    expected = Served(makes)
    expected.load_state_dict(Distilled(makes).state_dict())
    left = run_passes(ran.program, "canonicalize").program
    assert_same_graph(left, expected, (X, IDS), tolerance=BIT_EQUAL)
    (told,) = ran.report.said(Kind.APPLIED)
    assert told.data["linears"] == ["distill"]
    assert told.data["tables"] == ["teacher_table"]
    assert told.data["nbytes"] == 4 * (4 * 8 + 16 + 1)
    assert told.data["flops"] > 2 * 16
    assert told.data["unused_features"] == ["ids"]


def test_what_is_returned_keeps_its_nesting() -> None:
    pair, named = (stripped(captured(makes)).program for makes in (_pair, _named))
    assert isinstance(pair(X, IDS), Tensor)
    assert list(named(X, IDS)) == ["ctr"]


@pytest.mark.parametrize("makes", [_columns, _stacked], ids=["cat", "stack"])
def test_trailing_columns_of_one_output(makes: Any) -> None:
    program = captured(makes)
    assert [task.auxiliary for task in program.signature.tasks] == [False, True]
    ran = stripped(program)
    (task,) = ran.program.signature.tasks
    assert (task.name, task.column) == ("score_0", 0)
    assert operators(ran.program).count("linear") == 2
    assert torch.equal(ran.program(X, IDS), program(X, IDS)[:, :1])


def test_columns_of_one_linear_are_cut_from_its_output() -> None:
    """A linear of fewer outputs could round otherwise."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.heads(x).sigmoid()

    program = capture(Heads().eval(), (X,))
    program.signature = program.signature.with_task("score_2", auxiliary=True)
    ran = stripped(program)
    assert torch.equal(ran.program(X), program(X)[:, :2])


def test_a_column_before_a_served_one_stays() -> None:
    program = captured(_columns)
    signature = program.signature.with_task("score_0", auxiliary=True)
    program.signature = signature.with_task("score_1", auxiliary=False)
    ran = stripped(program)
    assert ran.outcomes == [Outcome.UNCHANGED]
    reason = "its column stands before a served one, which would change places"
    assert ran.missed("strip-train-only") == [reason]
    (remark,) = ran.report.said(Kind.MISSED)
    assert remark.sites == ("score_0",)


def test_a_head_that_a_served_output_needs_is_named() -> None:
    """The cascade's first step is learned only, and its second is served."""

    class Cascade(Distilled):
        def forward(self, x: Tensor, ids: Tensor) -> Any:
            click = torch.sigmoid(self.head(self.hidden(x)).squeeze(1))
            return {"click": click, "order": click * self.learned(x, ids).squeeze(1).sigmoid()}

    program = capture(Cascade(_pair).eval(), (X, IDS))
    program.signature = program.signature.with_task("click", auxiliary=True)
    ran = stripped(program)
    assert ran.program.signature.outputs == ("order",)
    assert operators(ran.program).count("linear") == operators(program).count("linear")
    assert torch.equal(ran.program(X, IDS)["order"], program(X, IDS)["order"])
    assert ran.missed("strip-train-only") == ["a served output needs it, so its layers stay"]
    (remark,) = ran.report.said(Kind.MISSED)
    assert remark.sites == ("click",)


class Called(nn.Module):
    """Two heads, outputs and modules of any names."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, f"{name}_head", nn.Linear(4, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, f"{name}_head")(x).squeeze(1) for name in self.names}


@pytest.mark.parametrize("name", ["aux", "auxiliary", "teacher", "distilled", "kd", "auxLoss"])
def test_names_never_decide_what_is_served(name: str) -> None:
    module = Called(("ctr", name)).eval()
    program = capture(module, (X,))
    assert [task.auxiliary for task in program.signature.tasks] == [False, False]
    assert stripped(program).outcomes == [Outcome.UNCHANGED]
    renamed = capture(module, (X,), outputs=("click", f"{name}_click"))
    assert not any(task.auxiliary for task in renamed.signature.tasks)
    with torch.no_grad():
        expected = module(X)
    scores = rankc.optimize(module, "cpu-fp32", inputs=(X,))(X)
    assert list(scores) == ["ctr", name]
    assert all(torch.allclose(scores[k], expected[k], atol=1e-6) for k in expected)


def test_columns_of_a_head_of_any_name_are_served() -> None:
    """The module's name is no reason to cut a column off."""
    program = capture(Distilled(_columns).eval(), (X, IDS))
    assert not any(task.auxiliary for task in program.signature.tasks)
    assert stripped(program).outcomes == [Outcome.UNCHANGED]


def test_nothing_left_to_serve_is_a_miss() -> None:
    ran = stripped(with_auxiliary(captured(_named), "ctr"))
    assert ran.outcomes == [Outcome.SKIPPED]
    assert "nothing would be served" in ran.missed("strip-train-only")[0]


def test_what_outputs_leaves_out_is_not_served() -> None:
    program = capture(Distilled(_named).eval(), (X, IDS), outputs=("ctr",))
    assert program.signature.outputs == ("ctr",)
    assert "distill" not in {site_of(node) for node in program.graph.nodes}


def test_an_output_asked_for_and_marked_auxiliary_is_refused() -> None:
    signature = captured(_named).signature
    with pytest.raises(SignatureError, match=r"asks for tasks \['aux_kd'\].*marks them auxiliary"):
        capture(Distilled(_named).eval(), (X, IDS), signature=signature, outputs=("aux_kd",))


def test_the_early_stage_ranker() -> None:
    torch.manual_seed(0)
    module = EarlyStage.small().eval()
    program = with_auxiliary(capture(module), "aux_final_click", "aux_final_quality")
    ran = stripped(program)
    assert ran.program.signature.outputs == ("click", "quality")
    heads = sum(p.nbytes for head in module.heads[2:] for p in head.parameters())
    assert program.nbytes - ran.program.nbytes == heads
    rows = made_up(program, 100, seed=1)
    before, after = program.run(rows), ran.program.run(rows)
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_an_artifact_takes_calls_with_and_without_what_nothing_needs() -> None:
    module = Distilled(_named).eval()
    batches = [rankc.Batch((X, IDS), {"ctr": torch.zeros(6), "aux_kd": torch.zeros(6)})]
    signature = captured(_named).signature
    artifact = rankc.optimize(module, "cpu-fp32", inputs=(X, IDS), signature=signature)
    assert artifact.signature.feature("ids").kind is FeatureKind.UNUSED
    with torch.no_grad():
        expected = module(X, IDS)["ctr"]
    for scores in (artifact(X, IDS), artifact(X), artifact(x=X), artifact(X, IDS + 100)):
        assert list(scores) == ["ctr"]
        assert torch.allclose(scores["ctr"], expected, atol=1e-6)
    with pytest.raises(SignatureError, match="missing"):
        artifact(ids=IDS)
    program = rankc.capture(module, batches[0].inputs, signature=signature)
    assert set(rankc.optimizer.data.rows.collect(batches, program).labels) == {"ctr"}
