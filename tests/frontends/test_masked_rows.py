"""Models that drop rows by a mask: captured with all rows, held against the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import CaptureError
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

IDS = torch.randint(0, 50, (9, 5), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([0, 1, 2, 3, 4, 5, 5, 0, 3])


class History(nn.Module):
    """A recurrent layer over the rows that have a history, as DIEN's public versions write it."""

    def __init__(self, kind: type[nn.Module] = nn.GRU, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(50, 8)
        self.recurrent = kind(8, 8, batch_first=True, **options)
        self.score = nn.Linear(8, 1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        rows = self.items(ids)
        interest = torch.zeros(rows.shape[0], 8)
        mask = lengths > 0
        seen = lengths[mask]
        if seen.shape[0] == 0:
            return self.score(interest)  # type: ignore[no-any-return]
        interest[mask] = self.evolve(rows, mask, seen)
        return self.score(interest)  # type: ignore[no-any-return]

    def evolve(self, rows: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        kept = torch.masked_select(rows, mask.view(-1, 1, 1)).view(-1, rows.shape[1], 8)
        packed = pack_padded_sequence(kept, seen.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.recurrent(packed)
        if isinstance(last, tuple):
            last = last[0]
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=rows.shape[1])
        ends = torch.arange(rows.shape[1]).repeat(padded.shape[0], 1) == seen.view(-1, 1) - 1
        return last.squeeze(0) + padded[ends] + padded.mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_rows_without_a_history_keep_their_zeros(kind: type[nn.Module]) -> None:
    model = History(kind).eval()
    program = capture(model, (IDS, LENGTHS))
    assert program.module.meta["route"] == "all rows"
    for rows in (slice(0, 9), slice(0, 1), slice(1, 2), slice(3, 6)):
        batch = IDS[rows], LENGTHS[rows]
        assert torch.allclose(program(*batch), model(*batch), atol=1e-6)


def test_the_layers_and_functions_are_put_back() -> None:
    before = nn.GRU.forward, pack_padded_sequence, nn.utils.rnn.pad_packed_sequence
    capture(History().eval(), (IDS, LENGTHS))
    assert before == (nn.GRU.forward, pack_padded_sequence, nn.utils.rnn.pad_packed_sequence)


def test_asking_whether_any_row_is_left() -> None:
    class Asks(History):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            rows = self.items(ids).mean(1)
            has = lengths > 0
            out = torch.zeros_like(rows)
            if has.any():
                out[has] = torch.tanh(rows[has])
            return self.score(out)  # type: ignore[no-any-return]

    model = Asks().eval()
    program = capture(model, (IDS, LENGTHS))
    assert torch.allclose(program(IDS, LENGTHS), model(IDS, LENGTHS), atol=1e-6)


def test_what_the_kept_rows_would_change_is_refused() -> None:
    """The mean over the rows that have a history isn't the mean over all of them."""

    class Mixes(History):
        def evolve(self, rows: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
            kept = rows[mask].mean(1)
            return kept - kept.mean(0)

    with pytest.raises(CaptureError, match="control flow that depends on how many rows"):
        capture(Mixes().eval(), (IDS, LENGTHS))


def test_a_loop_over_packed_steps() -> None:
    """A cell of one's own walks the steps; each row's last state is looked up by its length."""

    class Walks(History):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(self.items.embedding_dim, self.items.embedding_dim)

        def evolve(self, rows: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
            packed: PackedSequence = pack_padded_sequence(
                rows[mask], seen, batch_first=True, enforce_sorted=False
            )
            steps, sizes, order, back = packed
            state = torch.zeros(int(sizes[0]), steps.shape[1])
            states, start = torch.zeros_like(steps), 0
            for size in sizes:
                state = self.cell(steps[start : start + size], state[:size])
                states[start : start + size] = state
                start += size
            walked = PackedSequence(states, sizes, order, back)
            padded, _ = pad_packed_sequence(walked, batch_first=True, total_length=rows.shape[1])
            ends = torch.arange(rows.shape[1]).repeat(padded.shape[0], 1) == seen.view(-1, 1) - 1
            return padded[ends]

    model = Walks().eval()
    program = capture(model, (IDS, LENGTHS))
    assert program.module.meta["route"] == "all rows"
    for rows in (slice(0, 9), slice(0, 1), slice(1, 2), slice(3, 6)):
        batch = IDS[rows], LENGTHS[rows]
        assert torch.allclose(program(*batch), model(*batch), atol=1e-6)
