"""Stream: windows in order, units that come back where the data moved, bad streams."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import rankc
import torch
from rankc.optimizer.analysis.cost import total
from rankc.optimizer.errors import DataError, PruneError, RecoverError
from rankc.optimizer.ir import Program
from rankc.optimizer.pruning.stream import Followed, Stream, _Arm
from support import capture_small, made_up, run_passes
from torch import Tensor, nn

ROWS, WINDOWS, SHIFT = 4096, 8, 4


class Towers(nn.Module):
    """Two towers over two halves of the input; clicks follow one half, later the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 32), nn.Linear(8, 32)
        self.mix, self.last = nn.Linear(64, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([self.left(x[:, :8]).relu(), self.right(x[:, 8:]).relu()], 1)
        return self.last(self.mix(hidden).relu()).squeeze(1)


@functools.cache
def towers() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Towers()
        generator = torch.Generator().manual_seed(3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            x = torch.randn(512, 16, generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(model(x), clicks(x, 0.0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return capture_small(model.eval(), torch.randn(4, 16))


def clicks(x: Tensor, moved: float) -> Tensor:
    """Probabilities: of the first half of the input, then of the second."""
    halves = [3.0 * half.abs().mean(1) - 2.4 for half in (x[:, :8], x[:, 8:])]
    return torch.sigmoid(4.0 * ((1.0 - moved) * halves[0] + moved * halves[1]))


def stream(shift: int = SHIFT, labels: bool = True) -> Iterator[tuple[Any, list[rankc.Batch]]]:
    generator = torch.Generator().manual_seed(7)
    for number in range(WINDOWS):
        x = torch.randn(ROWS, 16, generator=generator)
        y = torch.bernoulli(clicks(x, float(number >= shift)), generator=generator)
        times = np.arange(ROWS) + number * ROWS
        yield times, [rankc.Batch((x,), y if labels else None)]


PLAN = Stream(flops=0.75, lr=5e-3, batch_size=256, epochs=2, moved=0.3, worse=0.03)


@functools.cache
def followed() -> Followed:
    return PLAN.follow(towers(), stream())


def test_units_come_back_where_the_data_moved() -> None:
    windows = followed().windows
    assert [one.number for one in windows] == list(range(1, WINDOWS + 1))
    assert any(one.replanned for one in windows[SHIFT:])
    fixed, adaptive = (windows[-1].delta_ne(arm) for arm in ("fixed", "adaptive"))
    assert adaptive < 0.5 * fixed


def test_nothing_is_chosen_anew_while_nothing_moves() -> None:
    assert not any(one.replanned for one in followed().windows[1:SHIFT])


def test_what_is_served_is_smaller_and_scores_as_the_masked_one() -> None:
    dense, fixed, adaptive = (followed().programs[n] for n in ("dense", "fixed", "adaptive"))
    for smaller in (fixed, adaptive):
        assert total(smaller, 512).flops < 0.45 * total(dense, 512).flops
        assert smaller.signature == towers().signature


def test_the_table_and_the_plot_have_every_window() -> None:
    assert len(followed().table().splitlines()) == 2 + WINDOWS
    assert followed().plot().count("<polyline") == 3


def test_a_unit_comes_back_as_the_dense_model_has_it() -> None:
    base = run_passes(towers(), "canonicalize").program
    arm, dense = (_Arm(base, PLAN, name) for name in ("adaptive", "dense"))
    none = arm.gone
    first, second = (
        rankc.optimizer.pruning.stream._rows(next(stream())[1], towers(), n) for n in (1, 2)
    )
    context = rankc.optimizer.pruning.stream.PassContext(target=rankc.Target.of("cpu-fp32"))
    gone = PLAN._chosen(base, first, context)
    arm.cut(gone, dense)
    for learner in (arm, dense):
        learner.learn(second, 2)
    masks, masked = arm._masks, arm._trainable.state()
    assert all(not masked[name][mask].any() for name, mask in masks.items())
    assert arm.smaller().run(made_up(base, 4, 0)).keys() == {"score"}
    arm.cut(none, dense)
    for name, mask in masks.items():
        for part, value in arm._state_of(name).items():
            assert torch.equal(value[mask], dense._state_of(name)[part][mask])
        assert torch.equal(arm._trainable.leaves[name][~mask], masked[name][~mask])


def test_a_stream_out_of_order_is_refused() -> None:
    windows = list(stream())
    with pytest.raises(DataError, match=r"window 2 has a row of time 0, and the one before"):
        PLAN.follow(towers(), [windows[1], windows[0]])


def test_windows_need_labels() -> None:
    with pytest.raises(DataError, match="window 1 has no labels of score"):
        PLAN.follow(towers(), stream(labels=False))


def test_no_windows() -> None:
    with pytest.raises(DataError, match="no windows"):
        PLAN.follow(towers(), [])


def test_a_share_that_can_not_go() -> None:
    with pytest.raises(PruneError, match=r"100% of the FLOPs were to go"):
        Stream(flops=0.999).follow(towers(), stream())
    with pytest.raises(PruneError, match="flops is a share between 0 and 1"):
        Stream(flops=1.0)


def test_a_lost_loss_names_the_window() -> None:
    times, (batch,) = next(stream())
    wild = Stream(flops=0.6, lr=1e30, batch_size=256)
    with pytest.raises(RecoverError, match=r"window 1: the loss of the dense model is no number"):
        wild.follow(towers(), [(times, [batch])])
