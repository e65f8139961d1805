"""Capture: what models may take and return, and a clear message for what can't be captured."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import CaptureError, DataError, SignatureError
from rankc.optimizer.ir import Program, facts_of, verify
from torch import Tensor, nn

torch.manual_seed(0)
X = torch.randn(5, 4)
Forward = Callable[..., Any]


class Scorer(nn.Module):
    """One linear, and a forward that the test gives."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)


def model(forward: Forward) -> nn.Module:
    return type("Ranker", (Scorer,), {"forward": forward})().eval()


class Pair(NamedTuple):
    user: Tensor
    item: Tensor


@dataclass
class Request:
    user: Tensor
    items: list[Tensor]
    day: int = 2


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in flat(v)]
    if isinstance(value, Request):
        return [value.user, *value.items]
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else []


def check_same(program: Program, module: nn.Module, args: tuple[Any, ...], **kwargs: Any) -> None:
    """The program returns the same type with the same scores."""
    verify(program)
    with torch.no_grad():
        want = module(*args, **kwargs)
    got = program(*args, **kwargs)
    assert type(got) is type(want)
    pairs = list(zip(flat(want), flat(got), strict=True))
    assert pairs
    for expected, found in pairs:
        # One library computes both; blocking by batch size may move the last bits.
        assert torch.allclose(found, expected, rtol=0.0, atol=1e-6)


def by_dict(self: Any, features: dict[str, Any]) -> Any:
    return {"click": self.linear(features["user"]) + features["item"]["price"], "n": 3}


def by_integer(self: Any, features: dict[int, Tensor]) -> Any:
    return {0: self.linear(features[0]), 1: self.linear(features[7])}


def by_pair(self: Any, pair: Pair) -> Any:
    return Pair(self.linear(pair.user), self.linear(pair.item).sigmoid())


def by_request(self: Any, request: Request) -> Any:
    scores = [self.linear(item + request.user) * request.day for item in request.items]
    return Request(self.linear(request.user), scores)


def by_tuple(self: Any, pair: tuple[Tensor, list[Tensor]]) -> Any:
    return (self.linear(pair[0]), [self.linear(pair[1][0]), None])


PRICE = X[:, :1]


@pytest.mark.parametrize(
    ("forward", "inputs", "names"),
    [
        (lambda self, x: self.linear(x), (X,), ("x",)),
        (by_dict, ({"user": X, "item": {"price": PRICE}},), ("user", "item_price")),
        (by_integer, ({0: X, 7: X + 1},), ("features_0", "features_7")),
        (by_pair, (Pair(X, X + 1),), ("user", "item")),
        (by_request, (Request(X, [X + 1, X + 2]),), ("user", "items_0", "items_1")),
        (by_tuple, ((X, [X + 1]),), ("pair_0", "pair_1_0")),
    ],
)
def test_nested_inputs_and_outputs(
    forward: Forward, inputs: tuple[Any, ...], names: tuple[str, ...]
) -> None:
    module = model(forward)
    program = capture(module, inputs)
    assert program.signature.names == names
    check_same(program, module, inputs)


def test_inputs_by_position_by_name_and_with_defaults() -> None:
    module = model(lambda self, x, y, scale=2.0: self.linear(x) * scale + y)
    for inputs in ((X, PRICE), {"x": X, "y": PRICE}, {"y": PRICE, "x": X}):
        program = capture(module, inputs)
        assert set(program.signature.names) == {"x", "y"}
        check_same(program, module, (X,), y=PRICE)
    fixed = capture(module, (X, PRICE, 3.0))
    check_same(fixed, module, (X, PRICE, 3.0))
    with pytest.raises(SignatureError, match=r"inputs\['scale'\] was 3.0 when"):
        fixed(X, PRICE, 4.0)


def test_numpy_examples() -> None:
    module = model(lambda self, x: self.linear(x))
    assert capture(module, X.numpy()).signature.names == ("x",)


@pytest.mark.parametrize("rows", [1, 2, 23])
def test_any_example_gives_any_batch(rows: int) -> None:
    module = model(lambda self, x: self.linear(x).squeeze(1))
    program = capture(module, X[:1].repeat(rows, 1))
    for size in (1, 3, 64):
        check_same(program, module, (torch.randn(size, 4),))


@pytest.mark.parametrize(
    "name", ["class", "self", "1st", "user id", "linear", "score", "é", "from"]
)
def test_odd_names_of_features(name: str) -> None:
    module = model(lambda self, features: self.linear(features[name]) + features["other"])
    inputs = ({name: X, "other": PRICE},)
    program = capture(module, inputs)
    assert all(feature.name.isidentifier() for feature in program.signature)
    assert not set(program.signature.outputs) & set(program.signature.names)
    check_same(program, module, inputs)


class Trained(nn.Module):
    """Dropout, batch norm and a module that was frozen by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.frozen(self.norm(x))))


def test_a_model_in_training_is_captured_in_eval_and_put_back() -> None:
    module = Trained().train()
    module.frozen.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    program = capture(module, X)
    assert [m.training for m in module.modules()] == [True, True, False, True, True]
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
    check_same(program, module.eval(), (X,))


def test_modes_are_put_back_after_a_failure() -> None:
    module = Trained().train()
    with pytest.raises(CaptureError):
        capture(module, torch.randn(5, 3))
    assert all(m.training for m in module.modules())


def test_lazy_parameters_are_created() -> None:
    module = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(1)).eval()
    program = capture(module, X)
    assert program.tensor("0.weight").shape == (3, 4)
    check_same(program, module, (X,))


class Counter(Scorer):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))


def count(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.linear(x)


def count_and_use(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.linear(x) + self.calls


def count_in_python(self: Any, x: Tensor) -> Tensor:
    self.seen = getattr(self, "seen", 0) + 1
    return self.linear(x) * self.seen


def test_state_nobody_reads_is_left_alone() -> None:
    module = type("Counting", (Counter,), {"forward": count})().eval()
    program = capture(module, X)
    assert module.calls.item() == 0
    program(X)
    assert module.calls.item() == 0
    assert "copy_" not in str(program.graph)


@pytest.mark.parametrize("forward", [count_and_use, count_in_python])
def test_state_that_is_read_is_told(forward: Forward) -> None:
    module = type("Counting", (Counter,), {"forward": forward})().eval()
    with pytest.raises(CaptureError, match="on randomness, or on state; make it depend"):
        capture(module, X)
    assert module.calls.item() == 0


# --- calls of any form, sizes in Python -----------------------------------------------------------

IDS = torch.arange(5) % 3


class Called(nn.Module):
    """A dense input and ids; how ``forward`` takes them is the test's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = nn.Embedding(3, 4), nn.Linear(4, 1)

    def score(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.linear(x + self.table(ids))  # type: ignore[no-any-return]


CALLS: dict[str, tuple[Forward, Any, tuple[str, ...]]] = {
    "*args": (lambda self, *args: self.score(*args), (X, IDS), ("args_0", "args_1")),
    "both": (lambda self, *a, **k: self.score(*a, **k), {"ids": IDS, "x": X}, ("ids", "x")),
    "both by place": (lambda self, *a, **k: self.score(*a, **k), (X, IDS), ("a_0", "a_1")),
    "**kwargs": (lambda self, **k: self.score(**k), {"x": X, "ids": IDS}, ("x", "ids")),
    "more": (lambda self, x, ids, *a, **k: self.score(x, ids), (X, IDS), ("x", "ids")),
    "rest": (lambda self, x, *rest, flag=1: self.score(x, *rest), (X, IDS), ("x", "rest_0")),
    "place only": (lambda self, x, /, ids: self.score(x, ids), {"ids": IDS, "x": X}, ("x", "ids")),
    "one dict": (lambda self, *a: self.score(**a[0]), ({"x": X, "ids": IDS},), ("x", "ids")),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_any_kind(name: str) -> None:
    forward, inputs, features = CALLS[name]
    module = type("Ranker", (Called,), {"forward": forward})().eval()
    program = capture(module, inputs)
    assert set(program.signature.names) == set(features)
    got = program(**inputs) if isinstance(inputs, dict) else program(*inputs)
    assert torch.allclose(got, module.score(X, IDS), rtol=0.0, atol=1e-6)


def length_of_rows(self: Any, x: Tensor) -> Tensor:
    return self.linear(x).reshape(len(x)) + torch.zeros(len(x))


def half_of_rows(self: Any, x: Tensor) -> Tensor:
    rows = int(x.shape[0] * 1.0)
    assert isinstance(len(self.sizes), int)
    return self.linear(x)[:rows]


def steps_of_a_constant(self: Any, x: Tensor) -> Tensor:
    step = 0
    while step < self.steps.item():
        x, step = x * 0.5, step + 1
    if self.flag:
        x = x * self.flag.item()
    return self.linear(x) * self.weights.tolist()[1] * float(self.scale)


@pytest.mark.parametrize("forward", [length_of_rows, half_of_rows, steps_of_a_constant])
def test_sizes_and_constants_in_python(forward: Forward) -> None:
    module = model(forward)
    module.sizes, module.steps = [1, 2], torch.tensor(3)
    module.weights = nn.Parameter(torch.tensor([0.5, 2.0]))
    module.scale = nn.Parameter(torch.tensor(1.5))
    module.register_buffer("flag", torch.tensor(2.0))
    program = capture(module, X)
    check_same(program, module, (X,))
    check_same(program, module, (X[:1],))


def test_a_model_spread_over_devices_is_captured_by_itself() -> None:
    module = model(lambda self, x: self.linear(x))
    program = capture(nn.DataParallel(module), X)
    assert program.tensor("linear.weight").shape == (1, 4)


# --- what can't be captured, with the line and the remedy -----------------------------------------


def branch(self: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:  # HERE
        return self.linear(x)
    return self.linear(-x)


def branch_in_a_helper(self: Any, x: Tensor) -> Tensor:
    return self.linear(_clip(x))


def _clip(x: Tensor) -> Tensor:
    return x if x.max() < 3 else x / x.max()  # HERE


def use_numpy_values(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) * float(np.median(x.detach().numpy()))


def use_item(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) * int(x[0, 0].item())


def use_item_of_all(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) * x.max().item()


def use_tolist(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) * float(sum(x[:, 0].tolist()))


def loop_over_rows(self: Any, x: Tensor) -> Tensor:
    return torch.stack([self.linear(x[row]) for row in range(len(x))])


def fix_the_batch(self: Any, x: Tensor) -> Tensor:
    return self.linear(x).view(5)  # HERE


def center(self: Any, x: Tensor) -> Tensor:
    return self.linear(x - x.mean(0))


def standardize(self: Any, x: Tensor) -> Tensor:
    return self.linear((x - x.mean(0)) / x.std(0))


def rank_rows(self: Any, x: Tensor) -> Tensor:
    return self.linear(x).softmax(0)


def add_noise(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) + torch.rand_like(x[:, :1])


def python_noise(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) + random.random()


def overflow(self: Any, x: Tensor) -> Tensor:
    return self.linear(x).log()


MIXES = "depends on the other rows"


@pytest.mark.parametrize(
    ("forward", "inputs", "message"),
    [
        (branch, X, "control flow that depends on a tensor's values.*torch.where"),
        (branch_in_a_helper, X, "control flow that depends on a tensor's values.*torch.where"),
        (use_numpy_values, X, "can't be captured"),
        (use_item, X, "makes one Python number of 'x', for all rows"),
        (use_item_of_all, X, "makes one Python number of 'x', for all rows"),
        (use_tolist, X, "can't be captured|" + MIXES),
        (loop_over_rows, X, "an operation that fixes the batch size.*x.shape"),
        (fix_the_batch, X, "fixes the batch size: it runs on the example's 5 rows, but not on 23"),
        (center, X, MIXES),
        (center, X[:1], MIXES),
        (center, torch.ones(4, 4), MIXES),
        (standardize, X, MIXES),
        (rank_rows, X, MIXES),
        (add_noise, X, r"depends on randomness.*aten.rand_like.*if self.training"),
        (python_noise, X, "on randomness"),
        (lambda self, x: self.linear(x).mean(), X, "'score' is a single number, such as a loss"),
        (lambda self, x: self.linear(x).mean(0), X, "'score' has 1 rows for 23 rows of input"),
        (lambda self, x: None, X, "returns no tensor. Return the scores from forward"),
        (lambda self, x: "high", X, "returns no tensor"),
        (lambda self, x: 1.0, X, "returns no tensor"),
        (lambda self, x: object(), X, "returns something that holds more than tensors: score is a"),
        (lambda self, **x: self.linear(x["a"]), X, r"takes \*\*x; its inputs have no names"),
        (lambda self, x: self.linear(x), X[:, :3], "doesn't run on the example .*mat1"),
        (lambda self, x, y: self.linear(x), X, "doesn't run .* missing 1 required positional"),
        (lambda self, x: self.linear(x["user"]), {"item": X}, "doesn't run .* KeyError: 'user'"),
    ],
)  # fmt: skip
def test_what_can_not_be_captured_is_told(forward: Forward, inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=f"(?s){message}") as caught:
        capture(model(forward), inputs)
    source, start = inspect.getsourcelines(_clip if forward is branch_in_a_helper else forward)
    marked = [index for index, line in enumerate(source) if "# HERE" in line]
    if marked:
        assert f"at {__file__}:{start + marked[0]} `" in str(caught.value)
    assert "/torch/" not in str(caught.value).split("(", 1)[0]


def test_torch_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        capture(model(branch), X)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            (X, torch.tensor(2.0)),
            "input 'y' of the example is a single number. Give it as a Python",
        ),
        ((torch.tensor(2.0), X), "input 'x' of the example is a single number"),
        ((X, X[:3]), r"different numbers of rows: \{'x': 5, 'y': 3\}.*belongs in a buffer"),
        ((X[:0], X[:0]), "the example has no rows"),
        ((X, X, X), r"takes 2 arguments \['x', 'y'\], got 3"),
        ((1.0, 2.0), "the example holds no tensors"),
        (({X}, X), "is a set, which is neither a tensor nor"),
    ],
)
def test_bad_examples_are_told(inputs: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        capture(model(lambda self, x, y: self.linear(x) + y), inputs)


def test_scores_out_of_range_are_told() -> None:
    with pytest.raises(DataError, match="output 'score' is NaN or Inf in row"):
        capture(model(overflow), X)


def test_broken_weights_are_named() -> None:
    module = model(lambda self, x: self.linear(x))
    with torch.no_grad():
        module.linear.weight[0, 2] = torch.nan
    with pytest.raises(DataError, match=r"weight 'linear.weight' has 1 NaN or Inf values"):
        capture(module, X)


def test_large_weights_are_not_broken() -> None:
    module = model(lambda self, x: self.linear(x * 0) + 1)
    with torch.no_grad():
        module.linear.weight.fill_(3e38)
    capture(module, torch.zeros(3, 4))


def test_weights_elsewhere_are_named() -> None:
    with pytest.raises(CaptureError, match=r"weight 'weight' is on meta.*model.cpu\(\) first"):
        capture(nn.Linear(4, 1, device="meta"), X)
    with torch.inference_mode():
        made = nn.Linear(4, 1)
    with pytest.raises(CaptureError, match=r"weight 'weight' was made under torch.inference_mode"):
        capture(made, X)


def test_what_is_no_model() -> None:
    with pytest.raises(CaptureError, match=r"a model is a torch.nn.Module, got function"):
        capture(lambda x: x, X)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"Ranker needs an example to be captured: give inputs="):
        capture(model(lambda self, x: self.linear(x)))


# --- signature and outputs ------------------------------------------------------------------------


def heads(self: Any, x: Tensor) -> Any:
    return {"click": self.linear(x), "buy": self.linear(-x)}


def test_outputs_can_be_renamed_and_picked() -> None:
    module = model(heads)
    renamed = capture(module, X, outputs=("a", "b"))
    assert renamed.signature.outputs == ("a", "b")
    assert [task.name for task in renamed.signature.tasks] == ["a", "b"]
    check_same(renamed, module, (X,))
    picked = capture(module, X, outputs=("buy",))
    assert picked.signature.outputs == ("buy",)
    verify(picked)
    assert set(picked(X)) == {"buy"}
    assert torch.allclose(picked(X)["buy"], module(X)["buy"], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("outputs", [(), ("a", "a"), ("a", "b", "c"), ("x", "b")])
def test_outputs_that_name_nothing(outputs: tuple[str, ...]) -> None:
    with pytest.raises(SignatureError, match="outputs="):
        capture(model(heads), X, outputs=outputs)


def test_a_signature_of_ones_own() -> None:
    module = model(heads)
    inferred = capture(module, X).signature
    given = inferred.with_task("buy", auxiliary=True)
    assert capture(module, X, signature=given).signature == given
    with pytest.raises(SignatureError, match=r"features are \['y'\], the model's are \['x'\]"):
        capture(module, X, signature=inferred.with_feature("x", name="y"))
    with pytest.raises(
        SignatureError, match=r"tasks \['buy'\] read outputs the model doesn't have"
    ):
        capture(module, X, signature=inferred.with_task("buy", output="sale"))


def test_nodes_know_where_they_came_from() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) + 1

    nodes = [n for n in capture(Tower().eval(), X).graph.nodes if n.op == "call_function"]
    facts = {str(node.target): facts_of(node) for node in nodes}
    assert facts["aten.linear.default"].site == "model.2"
    assert facts["aten.relu.default"].site == "model.1"
    assert facts["aten.add.Tensor"].site == ""
    assert facts["aten.add.Tensor"].source.startswith(f"{__file__}:")


# --- rows -----------------------------------------------------------------------------------------


def squeeze_all(self: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(self.linear(x).squeeze())


def squeeze_nothing(self: Any, x: Tensor) -> Tensor:
    return self.linear(x.squeeze(1).squeeze(0)).squeeze(1)


@pytest.mark.parametrize("forward", [squeeze_all, squeeze_nothing])
def test_a_batch_of_one_keeps_its_rows(forward: Forward) -> None:
    module = model(forward)
    program = capture(module, X)
    verify(program)
    assert program(X[:1]).shape == (1,)
    assert torch.allclose(program(X)[:1], program(X[:1]), rtol=0.0, atol=1e-6)
    check_same(program, module, (X,))


class BatchStatistics(Scorer):
    """Normalizes by the batch in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.relu()))  # HERE


def test_batch_statistics_are_told() -> None:
    with pytest.raises(CaptureError, match=r"batch_norm.* in 'norm' .*own mean.*track_running"):
        capture(BatchStatistics().eval(), X)


class Centered(Scorer):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(0))


def test_the_operator_that_mixes_rows_is_named() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Centered(), X)
    line = inspect.getsourcelines(Centered)[1] + 2
    assert f"aten.mean.dim (mean) at {__file__}:{line} `return" in str(caught.value)
    assert "reduces over the rows" in str(caught.value)


class DropsAlways(Scorer):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(nn.functional.dropout(x, 0.5))


def test_dropout_in_eval_is_left_out_and_told() -> None:
    module = DropsAlways().eval()
    program = capture(module, X)
    assert torch.equal(program(X), module.linear(X))
    (note,) = program.notes
    assert "F.dropout at" in note
    assert "`return self.linear(nn.functional.dropout(x, 0.5))`" in note
    assert "training=self.training" in note


def test_drawn_numbers_in_eval_are_told() -> None:
    module = model(lambda self, x: self.linear(x + torch.rand_like(x)))
    with pytest.raises(CaptureError, match=r"also in eval mode: .*draw random numbers only in tr"):
        capture(module, X)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.nested.nested_tensor([torch.rand(2, 4), torch.rand(3, 4)], layout=torch.jagged),
            "a NestedTensor.*padded to one length",
        ),
        (torch.rand(2, 4).to_sparse(), "is sparse_coo.*to_dense"),
        (torch.rand(2, 4, device="meta"), "is on meta; models are captured on the CPU"),
    ],
)
def test_tensors_of_other_kinds_are_told(value: Tensor, message: str) -> None:
    with pytest.raises(SignatureError, match=f"input 'x' of the example .*{message}"):
        capture(model(lambda self, x: self.linear(x)), (value,))


def test_a_device_named_in_forward_is_told() -> None:
    module = model(lambda self, x: self.linear(x) + torch.ones(1, device="meta"))
    with pytest.raises(CaptureError, match=r"several devices\. What to change: .*device=x.device"):
        capture(module, X)


def test_a_model_in_training_mode_is_captured_in_eval_and_told() -> None:
    class Noisy(Scorer):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.drop(self.norm(x)))

    module = Noisy().train()
    program = capture(module, X)
    assert module.training
    (note,) = program.notes
    assert "in training mode; captured in eval mode" in note
    assert "(norm, drop)" in note
    check_same(program, module.eval(), (X,))


class WithLoss(Scorer):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        score = self.linear(x)
        return {"ctr": score, "cvr": score * 2, "loss": score.square().mean()}


class PairWithLoss(Scorer):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score = self.linear(x)
        return score, score.square().mean()


def test_a_loss_beside_the_scores_is_left_out_and_told() -> None:
    module = WithLoss().eval()
    program = capture(module, X)
    assert program.signature.outputs == ("ctr", "cvr")
    assert set(program(X)) == {"ctr", "cvr"}
    assert "left out 'loss': a single number" in program.notes[0]
    pair = PairWithLoss().eval()
    assert torch.equal(capture(pair, X)(X), pair(X)[0])


class Virtual(Scorer):
    """Normalizes pieces of 128 rows, as TabNet does; in eval mode pieces make no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.chunk(math.ceil(x.shape[0] / 128))
        return self.linear(torch.cat([self.norm(piece) for piece in pieces]))


def test_pieces_of_a_batch_are_joined() -> None:
    module = Virtual().eval()
    program = capture(module, X)
    for size in (1, 5, 128, 300):
        check_same(program, module, (torch.randn(size, 4),))


def test_a_score_that_changes_with_the_size_of_the_batch_is_told() -> None:
    module = model(lambda self, x: self.linear(x if len(x) <= 128 else 2 * x))
    with pytest.raises(CaptureError, match="fixes the batch size"):
        capture(module, X)


def test_memory_nobody_has_written_is_not_to_blame() -> None:
    def normalize(self: Any, x: Tensor) -> Tensor:
        return self.linear(nn.BatchNorm1d(4)(x))

    with pytest.raises(CaptureError, match=r"batch_norm.*normalizes by the batch's own mean"):
        capture(model(normalize), X)


# --- the second way -------------------------------------------------------------------------------


class ExportShy(Scorer):
    """Refuses torch.export, as models with extensions of their own do."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and type(x) is not Tensor and not self.traced(x):
            raise NotImplementedError("not here")
        return self.linear(x)

    @staticmethod
    def traced(x: Any) -> bool:
        return isinstance(x, torch.fx.Proxy)


def test_tracing_helps_where_export_refuses() -> None:
    module = ExportShy().eval()
    program = capture(module, X)
    assert program.tensor("linear.weight").shape == (1, 4)
    check_same(program, module, (X,))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    assert facts_of(node).site == "linear"


def scale_by_numpy(self: Any, x: Tensor) -> Tensor:
    return self.linear(torch.from_numpy(x.detach().numpy() * 2))


def test_strict_export_understands_numpy() -> None:
    module = model(scale_by_numpy)
    program = capture(module, X)
    assert program.module.meta["route"] == "strict"
    check_same(program, module, (X,))


def test_all_ways_that_fail_tell_the_first_reason() -> None:
    with pytest.raises(CaptureError, match="control flow that depends on a tensor's values"):
        capture(model(branch), {"x": X})
