"""Training good enough for a sound baseline; tuning is the user's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rows import Rows, batch_at, to_tensors

FINAL_LR_RATIO = 0.02


def train(
    model: nn.Module,
    rows: Rows,
    *,
    task: str | tuple[str, ...] | Mapping[str, str],
    epochs: int = 1,
    batch_size: int = 2048,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    id_mask_rate: float = 0.01,
    probabilities: bool = False,
    arrange: Callable[[Tensor, Tensor], tuple[Any, ...]] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Trains a model in place with Adam on binary cross-entropy, and leaves it in eval mode.

    The learning rate falls linearly to 2 % of `lr`. The same arguments, threads and machine give
    the same weights.

    Args:
        model: takes `(dense, ids)`, or what `arrange` makes of them, and returns logits `[B]`, or
            `{task: [B]}` for several tasks.
        rows: the training rows; labels may be soft, such as another model's predictions.
        task: the label to learn; a tuple of them for a model that returns a dict, whose loss is
            the sum over the tasks; or `{output: label}` where they are called differently.
        epochs: passes over the rows.
        batch_size: rows per step.
        lr: Adam's learning rate at the first step.
        weight_decay: Adam's L2 penalty. Rows of tables that few training rows use need one, or
            they fit these rows' noise; 1e-5 to 1e-4 is a start.
        seed: of the order of the rows, the masked ids and any dropout.
        id_mask_rate: share of ids replaced by 0 in every step, so that the row of the unknown id,
            which no training row uses, learns to stand for an average one.
        probabilities: whether the model returns probabilities instead of logits, as `ESMM` does.
        arrange: makes the model's arguments of `(dense, ids)`, such as a `Sides`.
        progress: called after every step with (steps done, steps in all, loss of the step).

    Raises:
        ValueError: `rows` has no label called `task`.
    """
    names = (task,) if isinstance(task, str) else task
    tasks = names if isinstance(names, Mapping) else {name: name for name in names}
    missing = [name for name in tasks.values() if name not in rows.labels]
    if missing or not tasks:
        raise ValueError(f"no label {missing} in these rows; they have {sorted(rows.labels)}")
    device = next(model.parameters()).device
    inputs, labels = to_tensors(rows)
    steps_per_epoch = -(-len(rows) // batch_size)
    total = epochs * steps_per_epoch
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, FINAL_LR_RATIO, total)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(total):
            if step % steps_per_epoch == 0:
                order = torch.randperm(len(rows), generator=generator)
            start = step % steps_per_epoch * batch_size
            (dense, ids), target = batch_at(inputs, labels, order[start : start + batch_size])
            masked = torch.rand(ids.shape, generator=generator) < id_mask_rate
            taken = dense.to(device), ids.masked_fill(masked, 0).to(device)
            output = model(*(taken if arrange is None else arrange(*taken)))
            labels_of = {name: target[label].to(device) for name, label in tasks.items()}
            loss = _loss(output, labels_of, probabilities)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, total, loss.item())
    model.eval()


def _loss(
    output: Tensor | Mapping[str, Tensor], target: Mapping[str, Tensor], probabilities: bool
) -> Tensor:
    """Binary cross-entropy, summed over the tasks; outputs and targets are `[B]`."""
    entropy = F.binary_cross_entropy if probabilities else F.binary_cross_entropy_with_logits
    if isinstance(output, Tensor):
        if len(target) != 1:
            raise ValueError(f"one output can't learn {len(target)} tasks: {sorted(target)}")
        return entropy(output, next(iter(target.values())))
    losses = [entropy(output[name], y) for name, y in target.items()]
    return torch.stack(losses).sum()
