"""`Distill`: how a program may be finetuned against the original, and what it is finetuned on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.parquet import Parquet
from ..data.rows import Rows, Split, collect
from ..errors import DataError, RecoverError
from ..ir.program import Program, content_hash
from ..ir.signature import Task
from ..quality.budget import Budget
from ..quality.scores import task_logits
from ..quality.verdict import Verdict

#: Rows the teacher scores at once.
_BATCH = 4096
#: Twins of proof rows among the rows to finetune on, over what chance explains, that give it away.
_SURPLUS = 2.0


@dataclass(frozen=True)
class Update:
    """How finetuning goes.

    Attributes:
        stage: What is being done, such as ``"round 2: 41 % of the time gone"``.
        step: Steps done.
        steps: Steps this stage has in all.
        loss: Mean training loss since the last update.
        delta_ne: ``{task: ΔNE}`` on the choice rows when last measured; empty before.
        seconds_left: Of this stage, at the present pace.
    """

    stage: str
    step: int
    steps: int
    loss: float
    delta_ne: Mapping[str, float]
    seconds_left: float

    def __str__(self) -> str:
        so_far = "".join(f", ΔNE of {k!r} {100 * v:+.3f} %" for k, v in self.delta_ne.items())
        return (
            f"{self.stage}: step {self.step} of {self.steps}, loss {self.loss:.4f}{so_far}, "
            f"{self.seconds_left:.0f} s left"
        )


@dataclass(frozen=True)
class Distill:
    """Finetuning of the optimized program against the original's scores and the labels.

    Attributes:
        data: Rows to finetune on, as `optimize` takes them. None of them may be among the rows
            that choose and prove. Without labels the original's scores are all there is to learn.
        epochs: Passes over the rows, in each round.
        batch_size: Rows a step.
        lr: Adam's learning rate at the first step of a round; falls to a twentieth within it.
        labels: Weight of the labels' loss beside the teacher's, between 0 and 1. Labels teach what
            the teacher hasn't learned, and so move scores further from its own: on a year of
            flights 0.5 widened the interval of ΔNE three times, and lost on later months.
        tables: Whether tables are finetuned too.
        rounds: At most so many times units are removed and the rest finetuned.
        step: Share of the estimated time that each round removes.
        flops: Share of the FLOPs to remove; 0 for as much as the gate lets through.
        share: Share of the budget the finetuned program may use; the rest is for number formats.
        patience: Further finetuning a round gets that doesn't pass, in rounds.
        teacher: A model that takes what the original takes and returns as many scores; None for the
            original.
        auxiliary: Lets the teacher's signal into a head of its own, which is dropped afterwards
            (ExFM, 2502.17494), and only the labels into the served one.
        head_weight: Of the auxiliary head's loss.
        head_gradient: Share of the auxiliary head's gradient that goes on into the model.
        label_scale: What the teacher's probabilities are multiplied by, and clipped, for that head.
        checkpoint: A folder to keep what was reached in, and to resume from. Its programs are
            ``.pt2`` files, so that resuming needs ``optimize(…, trust_code=True)``.
        progress: Called every few seconds.
    """

    data: Any
    epochs: float = 1.0
    batch_size: int = 2048
    lr: float = 5e-4
    labels: float = 0.0
    tables: bool = False
    rounds: int = 8
    step: float = 0.25
    flops: float = 0.0
    share: float = 0.7
    patience: int = 1
    teacher: nn.Module | None = None
    auxiliary: bool = False
    head_weight: float = 1.0
    head_gradient: float = 1.0
    label_scale: float = 1.0
    checkpoint: str | Path | None = None
    progress: Callable[[Update], None] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "rounds"):
            if not getattr(self, name) > 0:
                raise RecoverError(f"Distill: {name} must be positive, found {getattr(self, name)}")
        for name in ("labels", "step", "share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecoverError(f"Distill: {name} is a share, found {getattr(self, name)}")
        if not 0.0 <= self.flops < 1.0:
            raise RecoverError(f"Distill: flops is a share below 1, found {self.flops}")

    def relaxed(self, budget: Budget) -> Budget:
        """The budget without the limits that hold finetuning against a program.

        Its scores are others on purpose, and may be better.
        """
        tasks = {task: self.relaxed(own) for task, own in budget.overrides.items()}
        return replace(budget, two_sided=False, max_rms_shift=None, tasks=tasks)


@dataclass(frozen=True)
class Recovery:
    """What passes that finetune are given.

    Attributes:
        plan: What the user asked for.
        rows: To finetune on; shuffled by the trainer.
        teacher: ``{task: [N]}``: logits (values, for a regression) to learn.
        signature: A hash of the original, the rows and the plan; checkpoints of others are refused.
        say: Is told what is going on.
        seed: For the order of the rows.
        reached: By the fingerprint of what was begun with, the states that finetuning came to: a
            second attempt at the budget takes an earlier one instead of finetuning again.
        offered: By the same fingerprint, for each attempt at the budget how many states it went.
        trust_code: Whether the plan's checkpoint may be opened.
    """

    plan: Distill
    rows: Rows
    teacher: Mapping[str, Tensor]
    signature: str
    say: Callable[[str], None]
    seed: int = 0
    reached: dict[str, list[State]] = field(default_factory=dict)
    offered: dict[str, dict[str, int]] = field(default_factory=dict)
    trust_code: bool = False

    @property
    def soft(self) -> list[str]:
        """The tasks that have no labels."""
        return [task for task in self.teacher if task not in (self.rows.labels or {})]


def prepare(
    plan: Distill,
    program: Program,
    apart: Split | None,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
    *,
    trust_code: bool = False,
) -> Recovery:
    """Reads and checks the rows to finetune on, and lets the teacher score them once.

    Raises:
        DataError: No rows to judge on, rows that don't fit the model, or rows that prove among
            those to finetune on.
    """
    if apart is None:
        raise DataError(
            "recover= was given without data=: a finetuned program must be judged on labelled rows "
            "that it wasn't finetuned on."
        )
    say("reading the rows to finetune on")
    given = plan.data
    if isinstance(given, (str, Path)):
        given = Parquet(given)
    if isinstance(given, Parquet):
        given = given.batches(program)
    rows = collect(given, program, max_rows=10_000_000)
    for what, others in (("choose the plan", apart.choice), ("prove it", apart.proof)):
        _check_apart(what, rows, others, apart)
    teacher = _scores(plan.teacher, program, rows)
    signature = _signature(plan, program, rows)
    return Recovery(plan, rows, teacher, signature, say, seed, trust_code=trust_code)


def _scores(teacher: nn.Module | None, program: Program, rows: Rows) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {task.name: [] for task in program.signature.served}
    for features in rows.batches(_BATCH):
        outputs = program.run(features) if teacher is None else _asked(teacher, program, features)
        for task in program.signature.served:
            parts[task.name].append(task_logits(task, outputs).float())
    return {name: torch.cat(values) for name, values in parts.items()}


def _asked(
    teacher: nn.Module, program: Program, features: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Another model's outputs, by the original's names."""
    training = teacher.training
    with torch.no_grad():
        scores = teacher.eval()(**program.inputs.unflatten(features))
    teacher.train(training)
    return program.outputs.flatten(scores)


def _signature(plan: Distill, program: Program, rows: Rows) -> str:
    columns = {**rows.features, **{k: torch.from_numpy(v) for k, v in (rows.labels or {}).items()}}
    if rows.weights is not None:
        columns["weights of rows"] = torch.from_numpy(rows.weights)
    parts = [program.fingerprint(), repr(_settings(plan))]
    parts += [f"{name}:{content_hash(value).hex()}" for name, value in columns.items()]
    if plan.teacher is not None:
        parts += [content_hash(value).hex() for value in plan.teacher.state_dict().values()]
    return " ".join(parts)


def _settings(plan: Distill) -> tuple[Any, ...]:
    """What makes the result another one."""
    left_out = ("data", "teacher", "checkpoint", "progress")
    return tuple(value for name, value in vars(plan).items() if name not in left_out)


def _check_apart(what: str, rows: Rows, others: Rows, apart: Split) -> None:
    """Raises if rows that judge are among those to finetune on.

    Rows may have twins by chance, where there are few features: as many as rows that are known to
    be apart have.
    """
    judged = _row_hashes(others)
    twins = float(np.isin(judged, _row_hashes(rows)).mean())
    known = apart.proof if others is apart.choice else apart.choice
    by_chance = float(np.isin(judged, _row_hashes(known)).mean()) * max(len(rows) / len(known), 1.0)
    if twins > max(_SURPLUS * by_chance, 0.01):
        raise DataError(
            f"{twins:.0%} of the rows that {what} are among the rows of recover=: what was "
            "finetuned on a row proves nothing on it. Give Distill earlier rows, or later ones as "
            "data=."
        )


def _row_hashes(rows: Rows) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A number for each row's features and labels, the same for the same."""
    generator = np.random.default_rng(0)
    total = np.zeros(len(rows), dtype=np.uint64)
    columns: list[Any] = [
        rows.features[name].numpy()
        for name in sorted(rows.features)
        if not rows.ragged or len(rows.features[name]) == len(rows)
    ]
    columns += [values for _, values in sorted((rows.labels or {}).items())]
    columns += [] if rows.weights is None else [rows.weights]
    for column in columns:
        numbers = np.asarray(column).reshape(len(rows), -1).astype(np.float64).view(np.uint64)
        for bits in numbers.T:
            odd = generator.integers(2**63, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            total += (bits ^ (bits >> np.uint64(31))) * odd
    return total


def losses(
    tasks: Iterable[Task],
    outputs: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    share: float,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean loss of a batch: the labels' times a share, the teacher's times the rest."""
    total = torch.zeros(())
    for task in tasks:
        scores = task_logits(task, outputs)
        soft = loss_of(task, scores, teacher[task.name], soft=True, weights=weights)
        if task.name not in labels:
            total = total + soft
            continue
        hard = loss_of(task, scores, labels[task.name], soft=False, weights=weights)
        total = total + share * hard + (1.0 - share) * soft
    return total


def loss_of(
    task: Task,
    scores: Tensor,
    target: Tensor,
    *,
    soft: bool,
    scale: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Log loss of logits on labels, or on a teacher's logits; squared error for a regression.

    The mean over rows by their weights; a row whose target is NaN, a missing label, is left out.
    """
    missing = target.isnan()
    if bool(missing.any()):
        weights = (torch.ones_like(target) if weights is None else weights) * ~missing
        target = target.where(~missing, scores.detach().sigmoid())
    if task.kind.value == "regression":
        return _mean((scores - target).square(), weights)
    wanted = torch.sigmoid(target).mul(scale).clamp(0.0, 1.0) if soft else target
    if weights is None:
        return nn.functional.binary_cross_entropy_with_logits(scores, wanted)
    each = nn.functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    return _mean(each, weights)


def _mean(each: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return each.mean()
    return (each * weights).sum() / weights.sum().clamp_min(1e-30)


@dataclass(frozen=True)
class State:
    """What a round came to.

    Attributes:
        program: Finetuned.
        verdict: On the rows that choose.
        seconds: Share of the estimated time that is gone.
        flops: Share of the FLOPs that is gone.
    """

    program: Program
    verdict: Verdict
    seconds: float
    flops: float
