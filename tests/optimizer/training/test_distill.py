"""recover=: what is finetuned, on which rows, and what happens when it goes wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rankc
import torch
from rankc.models import zoo
from rankc.optimizer.data.rows import collect, split
from rankc.optimizer.errors import CheckpointError, DataError, RecoverError
from rankc.optimizer.ir import Program
from rankc.optimizer.ir.signature import Task
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.report.records import Outcome
from rankc.optimizer.training import trainer as recovery
from rankc.optimizer.training.auxiliary_head import attach, strip
from rankc.optimizer.training.distill import Recovery, Update, prepare
from rankc.optimizer.training.trainable import Trainable
from rankc.optimizer.training.trainer import Trainer
from rankers import (
    EAGER,
    EAGER_FP32,
    Small,
    SmallWithExample,
    drawn_labels,
    small,
    small_batches,
    small_inputs,
)
from support import (
    Ran,
    capture_small,
    made_up,
    made_up_recovery,
    permissive_judge,
    run_passes,
)
from torch import Tensor, nn

LOOSE = rankc.Budget(ne=5e-2)


def earlier_rows(labels: bool = True, count: int = 3000) -> list[rankc.Batch]:
    """Rows that none of `small_batches` is among."""
    model, inputs = small(), small_inputs(count, seed=77)
    return [rankc.Batch(inputs, drawn_labels(model, inputs, seed=78) if labels else None)]


@functools.cache
def program() -> Program:
    return capture_small(small(), *small_inputs(4, seed=0))


def trainer(**plan: Any) -> Trainer:
    made = made_up_recovery(program(), batch_size=64, **plan)
    return Trainer(made, permissive_judge(program()))


# --- the whole way --------------------------------------------------------------------------------


@functools.cache
def recovered(labels: bool = True) -> rankc.Artifact:
    model = small()
    plan = rankc.Distill(earlier_rows(labels), batch_size=256, epochs=4.0, rounds=2)
    return rankc.optimize(model, EAGER_FP32, data=small_batches(model), budget=LOOSE, recover=plan)


def test_units_go_and_the_rest_makes_up_for_them() -> None:
    artifact = recovered()
    assert artifact.verdict.status is rankc.Status.PASS
    (record,) = [r for r in artifact.report.records if r.spec.startswith("prune-and-distill")]
    assert record.outcome is Outcome.CHANGED
    assert record.after.flops < 0.8 * record.before.flops
    (rounds,) = [site for site in artifact.report.sites if site.kind == "rounds"]
    assert all(told["status"] in ("pass", "fail", "inconclusive") for told in rounds.candidates)


def test_the_report_tells_what_each_pass_bought() -> None:
    bought = {part.spec.split("{")[0]: part for part in recovered().report.waterfall}
    part = bought["prune-and-distill"]
    assert part.seconds > 0.1
    assert part.nbytes > 0
    assert part.delta_ne.keys() == {"score"}
    assert "what each pass bought" in str(recovered().report)


def test_the_contract_stays() -> None:
    artifact = recovered()
    assert artifact.signature.names == ("dense", "ids")
    assert artifact(*small_inputs(5, seed=3)).shape == (5,)


def test_without_labels_the_scores_are_learned_and_it_is_said() -> None:
    artifact = recovered(labels=False)
    assert any("has no labels of 'score'" in note for note in artifact.report.notes)
    assert artifact.verdict.status is rankc.Status.PASS


def test_nothing_is_trained_unasked() -> None:
    model = small()
    artifact = rankc.optimize(model, EAGER_FP32, data=small_batches(model), budget=LOOSE)
    trained = ("prune-and-distill", "finetune")
    assert not any(r.spec.split("{")[0] in trained for r in artifact.report.records)


@pytest.mark.parametrize("name", ["prune-and-distill", "finetune"])
def test_passes_that_train_are_skipped_unless_asked_for(name: str) -> None:
    ran = run_passes(program(), f"canonicalize,{name}", judge=permissive_judge(program()))
    assert Outcome.CHANGED not in ran.outcomes[1:]


# --- rows -----------------------------------------------------------------------------------------


def test_rows_that_judge_can_not_be_finetuned_on() -> None:
    model = small()
    rows = small_batches(model)
    with pytest.raises(DataError, match=r"% of the rows that choose the plan are among the rows"):
        rankc.optimize(model, EAGER_FP32, data=rows, recover=rankc.Distill(rows))


def test_rows_to_judge_on_are_needed() -> None:
    with pytest.raises(DataError, match="recover= was given without data="):
        rankc.optimize(small(SmallWithExample), EAGER_FP32, recover=rankc.Distill(earlier_rows()))


def test_another_teacher_is_asked_for_its_scores() -> None:
    teacher = small()
    nn.init.zeros_(teacher.last.weight)
    model = small()
    rows = split(collect(small_batches(model), program()))
    made = prepare(rankc.Distill(earlier_rows(), teacher=teacher), program(), rows)
    assert torch.allclose(made.teacher["score"], teacher.last.bias.detach())


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"epochs": 0.0}, "epochs must be positive"),
        ({"labels": 1.5}, "labels is a share"),
        ({"flops": 1.0}, "flops is a share below 1"),
    ],
)
def test_plans_that_make_no_sense(plan: dict[str, float], told: str) -> None:
    with pytest.raises(RecoverError, match=told):
        rankc.Distill(earlier_rows(), **plan)


# --- going wrong ----------------------------------------------------------------------------------


def losing(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """Makes the loss of some of the steps no number."""
    count, loss = iter(range(10_000)), Trainer._loss

    def lost(self: Trainer, *given: Any) -> Tensor:
        found = loss(self, *given)
        return found * float("nan") if when(next(count)) else found

    monkeypatch.setattr(Trainer, "_loss", lost)


def test_a_lost_loss_is_rolled_back_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_KEEP_EVERY", 2)
    losing(monkeypatch, lambda step: step == 5)
    teaching = trainer()
    tuned = teaching.finetuned(program(), "round 1", 0)
    assert teaching.notes == [
        "round 1: the loss diverged after step 4 and was rolled back; tried again with a third of "
        "the rate"
    ]
    assert all(torch.isfinite(score).all() for score in tuned.run(made_up(tuned, 8, 0)).values())


def test_a_loss_that_stays_lost_leaves_the_program_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losing(monkeypatch, lambda step: True)
    teaching = trainer()
    tuned = teaching.finetuned(program(), "round 1", 0)
    assert teaching.notes[-1].endswith("given up")
    rows = made_up(tuned, 8, 0)
    assert torch.equal(tuned.run(rows)["score"], program().run(rows)["score"])


class Rounded(nn.Module):
    """A model that was made for evaluation: its hidden units are integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.register_buffer("codes", torch.randint(-9, 9, (32, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.round(self.first(x)) @ self.codes.float()).squeeze(1)


def test_a_model_for_evaluation_only_names_what_blocks_the_gradient() -> None:
    frozen = capture_small(Rounded(), torch.randn(4, 6))
    made = made_up_recovery(frozen, batch_size=64)
    with pytest.raises(RecoverError, match=r"evaluation only|no gradient reaches") as raised:
        Trainer(made, permissive_judge(frozen)).finetuned(frozen, "round 1", 0)
    assert "round" in str(raised.value)


# --- stopping and going on ------------------------------------------------------------------------


def distilled(folder: Path, *, trust_code: bool = False, **plan: Any) -> Ran:
    made = made_up_recovery(program(), batch_size=64, rounds=2, checkpoint=folder, **plan)
    made = replace(made, trust_code=trust_code)
    return run_passes(
        program(),
        "canonicalize,prune-and-distill",
        judge=permissive_judge(program()),
        recovery=made,
        calibration=[made_up(program(), 128, seed=5)],
    )


def test_what_was_reached_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = distilled(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-01",
        "round-02",
        "signature.json",
    ]
    losing(monkeypatch, lambda step: True)  # nothing can be learned any more
    with pytest.raises(CheckpointError, match=r"program\.pt2 may hold code.*trust_code=True"):
        distilled(tmp_path)
    again = distilled(tmp_path, trust_code=True)
    assert again.program.fingerprint() == first.program.fingerprint()


def test_what_was_refused_is_not_offered_again() -> None:
    made = made_up_recovery(program(), batch_size=64, rounds=4, step=0.1)

    def attempt(ne: float) -> Ran:
        return run_passes(
            program(),
            "canonicalize,prune-and-distill",
            judge=replace(
                permissive_judge(program()), budget=rankc.Budget(ne=ne, max_rms_shift=None)
            ),
            recovery=made,
            calibration=[made_up(program(), 128, seed=5)],
        )

    chosen = [[site.chosen for site in attempt(ne).report.sites] for ne in (0.9, 0.9, 0.8, 0.7)]
    assert chosen == [
        ["round 4 of 4"],
        ["round 4 of 4"],  # for another backend
        ["round 2 of 4"],
        ["round 1 of 4"],
    ]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    distilled(tmp_path)
    judge = permissive_judge(program())
    other = replace(judge, budget=rankc.Budget(ne=0.4, max_rms_shift=1.0))
    made = made_up_recovery(program(), batch_size=64, rounds=2, checkpoint=tmp_path)
    with pytest.raises(RecoverError, match="is of another model, of other rows, or of other"):
        run_passes(
            program(),
            "canonicalize,prune-and-distill",
            judge=other,
            recovery=made,
            calibration=[made_up(program(), 128, seed=5)],
        )


def test_progress_tells_loss_and_time_left() -> None:
    told: list[Update] = []
    trainer(progress=told.append).finetuned(program(), "round 1", 0)
    assert told[-1].step == told[-1].steps == 8
    assert told[-1].loss > 0.0
    assert told[-1].seconds_left == 0.0
    assert str(told[-1]).startswith("round 1: step 8 of 8, loss ")


# --- the auxiliary head ---------------------------------------------------------------------------


def test_a_head_put_on_and_dropped_leaves_every_bit() -> None:
    headed, heads = attach(program())
    assert [head.task for head in heads] == ["score"]
    rows = made_up(program(), 16, seed=4)
    both = headed.run(rows)
    assert len(both) == 2
    strip(headed, heads)
    assert torch.equal(headed.run(rows)["score"], program().run(rows)["score"])


def test_the_teachers_signal_goes_through_the_head_and_the_head_goes() -> None:
    tuned = trainer(auxiliary=True, label_scale=2.0).finetuned(program(), "round 1", 0)
    assert tuned.signature == program().signature
    assert not any("distilled" in str(node.target) for node in tuned.graph.nodes)
    assert not torch.equal(tuned.tensor("first.weight"), program().tensor("first.weight"))


def test_heads_are_put_on_every_model_that_ends_in_a_linear() -> None:
    model = zoo()["mmoe"]().eval()
    several = capture_small(model, *model.example_inputs(4))
    headed, heads = attach(several)
    served: tuple[Task, ...] = several.signature.served
    assert [head.task for head in heads] == [task.name for task in served]
    assert headed.signature.served == served


# --- codes ----------------------------------------------------------------------------------------


@functools.cache
def quantized() -> Program:
    model = small()
    passes = "canonicalize,place-precision,insert-quantize,quantize-tables"
    return run_passes(
        capture_small(model, *small_inputs(4, seed=0)),
        passes,
        target=EAGER,
        judge=permissive_judge(program()),
        calibration=[made_up(program(), 256, seed=5)],
    ).program


def test_codes_are_trained_as_real_numbers_and_written_back_as_seen() -> None:
    learner = Trainable(quantized(), tables=True)
    rows = made_up(program(), 64, seed=6)
    torch.testing.assert_close(
        learner(rows)["score"].detach(), quantized().run(rows)["score"], rtol=0.0, atol=1e-5
    )
    optimizer = torch.optim.Adam(learner.leaves.values(), lr=0.3)
    for _ in range(5):
        loss = (learner(rows)["score"] - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = learner.trained()
    torch.testing.assert_close(
        made.run(rows)["score"], learner(rows)["score"].detach(), rtol=0.0, atol=1e-5
    )
    coded = [n for n in learner.leaves if not made.tensor(n).dtype.is_floating_point]
    assert coded
    assert any(not torch.equal(made.tensor(n), quantized().tensor(n)) for n in coded)


def test_finetune_keeps_only_what_helps() -> None:
    hurt = hurt_program()
    judge = Judge.of(program(), permissive_judge(program()).rows, LOOSE)
    judge = replace(judge, budget=rankc.Budget(ne=0.5, two_sided=False, max_rms_shift=None))
    made = recovery_for(hurt, epochs=8.0)
    ran = run_passes(hurt, "finetune", judge=judge, recovery=made)
    assert ran.outcomes == [Outcome.CHANGED]
    assert "finetuned: ΔNE" in ran.applied("finetune")[0]
    fine = run_passes(program(), "canonicalize,finetune", judge=judge, recovery=made)
    assert "finetuning didn't help" in fine.missed("finetune")[0]


def hurt_program() -> Program:
    """The program with half of its last weights at zero."""
    model: Small = small()
    model.last.weight.data[:, ::2] = 0.0
    raw = capture_small(model, *small_inputs(4, seed=0))
    return run_passes(raw, "canonicalize").program


def recovery_for(_: Program, **plan: Any) -> Recovery:
    return made_up_recovery(program(), batch_size=64, **plan)
