"""Packed sequences through recurrent layers of every form: last states, cells, all states."""

from __future__ import annotations

from typing import Any

import pytest
import rankc
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import CaptureError
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

STEPS = 4


def rows(count: int) -> tuple[Tensor, Tensor]:
    """Ids ``[count, STEPS]`` and how many of them count, 1 to STEPS each."""
    drawn = torch.Generator().manual_seed(count)
    ids = torch.randint(0, 30, (count, STEPS), generator=drawn)
    return ids, torch.randint(1, STEPS + 1, (count,), generator=drawn)


class Packed(nn.Module):
    """A recurrent layer over histories of different lengths."""

    def __init__(self, kind: type[nn.Module], reads: str, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(30, 3)
        self.recurrent = kind(3, 4, **{"batch_first": True, **options})
        self.reads = reads
        self.total: int | None = STEPS

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        first = bool(self.recurrent.batch_first)
        steps = self.items(ids) if first else self.items(ids).transpose(0, 1)
        packed = pack_padded_sequence(steps, lengths, batch_first=first, enforce_sorted=False)
        states, last = self.recurrent(packed)
        if self.reads == "states":
            padded, _ = pad_packed_sequence(states, batch_first=True, total_length=self.total)
            return padded.sum((1, 2))
        if isinstance(last, tuple):
            last = last[self.reads == "cells"]
        return last.sum((0, 2))  # type: ignore[no-any-return]


FORMS: list[tuple[type[nn.Module], str, dict[str, Any]]] = [
    (nn.GRU, "last", {"bidirectional": True}),
    (nn.GRU, "states", {"num_layers": 2, "dropout": 0.3}),
    (nn.GRU, "last", {"num_layers": 2, "bidirectional": True, "bias": False}),
    (nn.GRU, "last", {"batch_first": False}),
    (nn.RNN, "last", {"bidirectional": True, "nonlinearity": "relu"}),
    (nn.RNN, "states", {"num_layers": 2}),
    (nn.LSTM, "cells", {}),
    (nn.LSTM, "cells", {"bidirectional": True, "num_layers": 2, "dropout": 0.3}),
    (nn.LSTM, "states", {"bidirectional": True}),
    (nn.LSTM, "last", {"proj_size": 2, "bidirectional": True}),
    (nn.LSTM, "cells", {"proj_size": 2, "num_layers": 2, "bias": False}),
]


@pytest.mark.parametrize(("kind", "reads", "options"), FORMS)
def test_every_form_scores_as_the_layer_does(
    kind: type[nn.Module], reads: str, options: dict[str, Any]
) -> None:
    model = Packed(kind, reads, options).eval()
    program = capture(model, rows(9))
    for count in (1, 3, 64):
        assert torch.allclose(program(*rows(count)), model(*rows(count)), atol=1e-6)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 2, "bias": False}])
@pytest.mark.parametrize("first", [True, False])
def test_a_projected_lstm_goes_step_by_step(options: dict[str, Any], first: bool) -> None:
    class Plain(Packed):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            steps = self.items(ids) if first else self.items(ids).transpose(0, 1)
            states, (last, cells) = self.recurrent(steps)
            return states.sum(2).sum(1 if first else 0) + (
                last.sum((0, 2)) + cells.sum((0, 2)) + lengths
            )

    model = Plain(nn.LSTM, "last", {"proj_size": 2, "batch_first": first, **options}).eval()
    artifact = rankc.optimize(model, "cpu-fp32", inputs=rows(9))
    for count in (1, 3, 64):
        with torch.no_grad():
            assert torch.allclose(artifact(*rows(count)), model(*rows(count)), atol=1e-5)


def test_a_width_that_the_longest_row_sets_is_told_and_its_remedy_works() -> None:
    model = Packed(nn.GRU, "states", {}).eval()
    model.total = None
    with pytest.raises(CaptureError, match=r"Pass total_length=x.shape\[1\]") as refused:
        capture(model, rows(9))
    assert [said.split(":")[0] for said in refused.value.routes] == [
        "export",
        "all rows",
        "strict",
        "trace",
    ]
    model.total = STEPS
    assert torch.allclose(capture(model, rows(9))(*rows(3)), model(*rows(3)), atol=1e-6)
