"""What is said of a model that can't be captured: the line, the construct, and what to change."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import scipy.special
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import CaptureError
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Forward = Callable[..., Any]
X = torch.linspace(-1, 1, 20).reshape(5, 4)
IDS = torch.arange(15).reshape(5, 3) % 10
LENGTHS = torch.tensor([3, 1, 2, 3, 1])


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 4)
        self.cell = nn.GRUCell(4, 4)
        self.linear = nn.Linear(4, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: Any = None


def make(forward: Forward) -> nn.Module:
    return type("Ranker", (Ranker,), {"forward": forward})().eval()  # type: ignore[no-any-return]


def branch(self: Any, x: Tensor) -> Tensor:
    if x.mean() > 0:  # HERE
        return self.linear(x)
    return self.linear(-x)


def while_loop(self: Any, x: Tensor) -> Tensor:
    while x.abs().max() > 0.1:  # HERE
        x = x * 0.5
    return self.linear(x)


def check_values(self: Any, x: Tensor) -> Tensor:
    if torch.isnan(x).any():  # HERE
        raise ValueError("NaN")
    return self.linear(x)


def in_a_helper(self: Any, x: Tensor) -> Tensor:
    return self.linear(_scaled(x))


def _scaled(x: Tensor) -> Tensor:
    return x / x.max() if x.max() > 1 else x  # HERE


def walk_packed(self: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    packed: PackedSequence = pack_padded_sequence(
        self.table(ids), lengths, batch_first=True, enforce_sorted=False
    )
    state, start = torch.zeros(len(ids), 4), 0
    for size in packed.batch_sizes.tolist():  # HERE
        step = self.cell(packed.data[start : start + size], state[:size])
        state, start = torch.cat([step, state[size:]]), start + size
    return self.linear(state[packed.unsorted_indices])


def walk_lists(self: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    rows = []
    for row, length in zip(ids, lengths, strict=True):
        rows.append(self.table(row[: int(length)]).sum(0))  # HERE
    return self.linear(torch.stack(rows))


def split_by_lengths(self: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    parts = self.table(ids.flatten()[: lengths.sum()]).split(lengths.tolist())  # HERE
    return self.linear(torch.stack([part.sum(0) for part in parts]))


def number_of_a_score(self: Any, x: Tensor) -> Tensor:
    sign = int(self.linear(x)[0] > 0)  # HERE
    return self.linear(x) * sign


def look_up_in_python(self: Any, x: Tensor) -> Tensor:
    known = {0: 1.0, 1: 2.0}
    return self.linear(x) * sum(known.get(int(v), 3.0) for v in x[:, 0].tolist())  # HERE


def walk_rows(self: Any, x: Tensor) -> Tensor:
    return torch.stack([self.linear(row) for row in x])  # HERE


def map_rows(self: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: self.linear(row))(x)  # HERE


def take_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        self.linear(x).pow(2).sum().backward()  # HERE
    return self.linear(x * x.grad)


def call_scipy(self: Any, x: Tensor) -> Tensor:
    return self.linear(torch.from_numpy(scipy.special.expit(x.numpy())))  # HERE


def name_a_device(self: Any, x: Tensor) -> Tensor:
    return self.linear(x.to("cuda:0"))  # HERE


def make_a_layer(self: Any, x: Tensor) -> Tensor:
    return nn.Linear(4, 1)(x)  # HERE


def make_nested(self: Any, x: Tensor) -> Tensor:
    rows = torch.nested.nested_tensor([x[0], x[1]])  # HERE
    return self.linear(x) + rows.to_padded_tensor(0.0).sum()


def make_sparse(self: Any, x: Tensor) -> Tensor:
    return self.linear(torch.sparse.mm(x.to_sparse(), torch.eye(4)))  # HERE


def count_calls(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.linear(x) * self.calls


def remember_rows(self: Any, x: Tensor) -> Tensor:
    before = 0.0 if self.seen is None else self.seen
    self.seen = x.mean(0)
    return self.linear(x + before)


@pytest.mark.parametrize(
    ("forward", "inputs", "construct", "remedy"),
    [
        (branch, X, r"control flow .* values, `x.mean\(\) > 0`", "torch.where"),
        (while_loop, X, r"control flow .* values, `x.abs\(\).max\(\) > 0.1`", "torch.where"),
        (check_values, X, r"`torch.isnan\(x\).any\(\)`", "only complains belongs in front"),
        (in_a_helper, X, r"values, `x.max\(\) > 1`", "torch.where"),
        (walk_packed, (IDS, LENGTHS), "a Python loop over packed batch sizes", "torch.where"),
        (walk_lists, (IDS, LENGTHS), "a Python loop or a split by lengths", "nn.EmbeddingBag"),
        (split_by_lengths, (IDS, LENGTHS), "a Python loop or a split by lengths", "mask"),
        (number_of_a_score, X, "a tensor turned into a Python number", "keep it a tensor"),
        (look_up_in_python, X, "a tensor turned into a Python number", "index_select"),
        (walk_rows, X, "fixes the batch size", "in place of a Python loop over the rows"),
        (map_rows, X, "a transformation of functions", "plain torch operators"),
        (take_gradient, X, "gradients inside forward", "as a formula"),
        (call_scipy, X, "another library's computation", "write it in torch"),
        (name_a_device, X, "several devices", "leave out x.cuda"),
        (make_a_layer, X, "draws random numbers", "make layers and parameters in __init__"),
        (make_nested, X, "a NestedTensor", "values and lengths"),
        (make_sparse, X, "a sparse tensor", "EmbeddingBag"),
        (count_calls, X, "or on state", "Forward changes 'calls'"),
        (remember_rows, X, "or on state", "Forward changes 'seen'"),
    ],
)
def test_what_and_where_and_what_to_do(
    forward: Forward, inputs: Any, construct: str, remedy: str
) -> None:
    with pytest.raises(CaptureError, match=f"(?s){construct}.*{remedy}") as caught:
        capture(make(forward), inputs)
    source, start = inspect.getsourcelines(_scaled if forward is in_a_helper else forward)
    marked = [index for index, line in enumerate(source) if "# HERE" in line]
    if marked:
        assert f" at {__file__}:{start + marked[0]} `" in str(caught.value)


def mix_in_a_helper(self: Any, x: Tensor) -> Tensor:
    return self.linear(_centered(x))


def _centered(x: Tensor) -> Tensor:
    return x - x.mean(0)  # HERE


def test_the_line_is_the_innermost_of_the_users() -> None:
    with pytest.raises(CaptureError, match="depends on the other rows") as caught:
        capture(make(mix_in_a_helper), X)
    _, start = inspect.getsourcelines(_centered)
    assert f"at {__file__}:{start + 1} `return x - x.mean(0)" in str(caught.value)


def test_a_scripted_model_is_told() -> None:
    scripted = torch.jit.trace(make(lambda self, x: self.linear(x)), X)
    with pytest.raises(CaptureError, match="Capture the Python module it was made from"):
        capture(scripted, X)
