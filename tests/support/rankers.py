"""Small rankers with labelled rows of their own: what the tests of the whole way optimize."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import rankc
import torch
from rankc.models.dlrm import DLRM, DLRMConfig
from support import EAGER_INT8
from torch import Tensor, nn

#: Wide enough for a few thousand rows; what is tested is the way, not the formats.
LOOSE = rankc.Budget(ne=2e-2)
#: INT8 as on the CPU, run in PyTorch: no ONNX export, which takes most of a small model's time.
EAGER = replace(EAGER_INT8, name="test-eager", backends=("eager",))
EAGER_FP32 = rankc.Target("test-eager-fp32", EAGER.device, backends=("eager",))

_CARDINALITIES = (400, 300, 30)
_DENSE = 6
_Model = TypeVar("_Model", bound=nn.Module)


# --- a DLRM ---------------------------------------------------------------------------------------


@functools.cache
def dlrm() -> DLRM:
    """A DLRM whose scores spread as a trained one's do: about 30 % clicks, AUC about 0.7."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DLRM(DLRMConfig(_CARDINALITIES, _DENSE, 16, bottom=(64,), top=(128, 64))).eval()
    return _spread(model, model.top[-1], dlrm_inputs(2000, seed=9))


def dlrm_inputs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random rows as a DLRM takes them."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, rows, (count,), generator=generator) for rows in _CARDINALITIES]
    return torch.randn(count, _DENSE, generator=generator), torch.stack(ids, 1)


@functools.cache
def dlrm_batches() -> tuple[rankc.Batch, ...]:
    """6,000 labelled rows for the DLRM."""
    model, inputs = dlrm(), dlrm_inputs(6000, seed=1)
    return batches(inputs, drawn_labels(model, inputs), 1000)


@functools.cache
def optimized(target: str | rankc.Target) -> rankc.Artifact:
    """The DLRM for a target, within a loose budget; built once, not to be changed."""
    return rankc.optimize(dlrm(), target, data=dlrm_batches(), budget=LOOSE)


#: An H100 whose linears take FP8 or stay fp32.
FP8_ONLY = dataclasses.replace(rankc.Target.of("h100-fp8"), formats=("fp8",))


# --- smaller than that ----------------------------------------------------------------------------


class Small(nn.Module):
    """One table and three linears."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 16)
        self.first = nn.Linear(22, 32)
        self.second = nn.Linear(32, 32)
        self.last = nn.Linear(32, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.first(torch.cat([dense, self.table(ids)], -1)))
        return self.last(torch.relu(self.second(hidden))).squeeze(-1)


class SmallWithExample(Small):
    """`Small` that brings its own example."""

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        return small_inputs(4, seed=0)


class TwoTasks(nn.Module):
    """Takes and returns dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.shared = nn.Linear(12, 16)
        self.click = nn.Linear(16, 1)
        self.buy = nn.Linear(16, 1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        joined = torch.cat([features["dense"], self.table(features["item"])], -1)
        hidden = torch.relu(self.shared(joined))
        return {"click": self.click(hidden).squeeze(-1), "buy": self.buy(hidden).squeeze(-1)}


def small(kind: type[Small] = Small) -> Small:
    """A seeded `Small`, fresh: tests may break it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().eval()
    return _spread(model, model.last, small_inputs(500, seed=9))


def small_with_example() -> Small:
    """The same, with its example: what the command line is given."""
    return small(SmallWithExample)


def small_inputs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random rows for `Small`."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, 6, generator=generator)
    return dense, torch.randint(0, 300, (count,), generator=generator)


def small_batches(model: Small, count: int = 3000, seed: int = 1) -> tuple[rankc.Batch, ...]:
    """Labelled rows for `Small`, in batches of 500."""
    inputs = small_inputs(count, seed)
    return batches(inputs, drawn_labels(model, inputs), 500)


def two_tasks() -> TwoTasks:
    """A seeded `TwoTasks`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TwoTasks().eval()


def two_tasks_inputs(count: int, seed: int) -> dict[str, Tensor]:
    """Random rows for `TwoTasks`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "dense": torch.randn(count, 4, generator=generator),
        "item": torch.randint(0, 50, (count,), generator=generator),
    }


# --- labels and batches ---------------------------------------------------------------------------


def drawn_labels(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 2) -> Tensor:
    """Clicks drawn from the model's own probabilities, so that it is perfectly calibrated."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return torch.bernoulli(torch.sigmoid(model(*inputs)), generator=generator)


def batches(
    inputs: tuple[Tensor, ...], labels: Tensor | None, size: int
) -> tuple[rankc.Batch, ...]:
    """The rows in batches."""
    return tuple(
        rankc.Batch(
            tuple(value[start : start + size] for value in inputs),
            None if labels is None else labels[start : start + size],
        )
        for start in range(0, len(inputs[0]), size)
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _spread(model: _Model, last: nn.Linear, inputs: tuple[Tensor, ...]) -> _Model:
    """Scales and shifts the last layer so that the logits are about -1 ± 1."""
    with torch.no_grad():
        scale = 1.0 / model(*inputs).std()
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        last.bias.add_(-1.0 - model(*inputs).mean())
    return model
