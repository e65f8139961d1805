"""What every registered pass promises, on every model of the zoo.

A pass that is added to the registry is held to these laws without a line of test of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from interactions import Interactions
from rankc import models
from rankc.backends.onnx.translate import to_onnx
from rankc.frontends.export import capture
from rankc.optimizer.compare.numerics import divergence, truth
from rankc.optimizer.errors import PassError, PreconditionError
from rankc.optimizer.ir import Form, Program, verify
from rankc.optimizer.pipeline.passbase import Exactness, Pass, PassContext
from rankc.optimizer.pipeline.pipeline import run_pass
from rankc.optimizer.pipeline.promises import ROUNDING_FLOOR, ROUNDING_SLACK
from rankc.optimizer.pipeline.registry import pass_class, pass_names
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.report.records import Outcome
from rankc.optimizer.requests.request import as_request
from support import (
    EAGER_INT8,
    Ran,
    made_up,
    made_up_recovery,
    permissive_judge,
    quantized_linears,
    run_passes,
    with_auxiliary,
)
from torch import Tensor, nn

#: What has to run before a pass so that it has something to do; canonicalize where nothing is said.
_BEFORE = {
    "canonicalize": "",
    "collapse-slices": "canonicalize,eliminate,group-tables",
    "factor-mixtures": "canonicalize,fold-constants,raise-linears,sink-unsqueezes,fold-affine",
    "finetune": "canonicalize,place-precision,insert-quantize",
    "lower-convolution": "canonicalize,mix-tokens",
    "sink-transposes": "canonicalize,flatten-cin",
    "sink-unsqueezes": "canonicalize,raise-linears",
    "insert-quantize": "canonicalize,place-precision",
    "quantize-tables": "canonicalize,place-precision",
    "share-user-side": "request,canonicalize",
    "split-sides": "request,canonicalize,share-user-side",
    "stack-candidates": "request,canonicalize,share-user-side",
}
_ON_REQUESTS = frozenset(name for name, passes in _BEFORE.items() if "request" in passes)
#: What the candidates of a request share; in other models the first input, if there are more.
_SHARED = {
    "din": ("dense", "ids", "history", "mask"),
    "early-stage": ("user_dense", "user_ids", "user_history"),
    "two-sided": ("user_dense", "user_ids", "user_history"),
    "two-tower": ("user_dense", "user_ids"),
}
#: What the models bring that the passes look at: bags, crosses, sequences, several tasks. The laws
#: hold for the whole zoo; the others take minutes and are marked slow.
_QUICK = frozenset({"dlrm", "dlrm-multihot", "dcnv2", "mmoe", "everything", "interactions"})
#: They take away what a budget as loose as the tests' allows, not what 8-bit codes would.
_REMOVING = frozenset({"factorize-linear", "prune-and-distill", "prune-channels", "prune-tables"})
#: They try many smaller programs, which takes seconds: two models are enough for every run.
_TRYING, _QUICKEST = _REMOVING | {"finetune"}, frozenset({"dlrm", "mmoe"})
#: INT8 pays on every linear that isn't tiny.
_TARGET = dataclasses.replace(EAGER_INT8, min_linear=12)


class Everything(nn.Module):
    """Something for every pass: the zoo alone has no BatchNorm, no affine and no duplicates."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table, self.twin = nn.Embedding(300, 16), nn.Embedding(300, 16)
        self.twin.weight.data = self.table.weight * 1.005  # trained on a little
        self.bag = nn.EmbeddingBag(200, 16, mode="mean", padding_idx=0)
        self.hashed = nn.Embedding(90, 16)
        self.first = nn.Linear(40, 24)
        self.norm = nn.BatchNorm1d(24)
        self.second, self.aux = nn.Linear(24, 1), nn.Linear(24, 1)
        self.early, self.middle, self.late = (nn.Linear(24, 1) for _ in range(3))
        self.middle.weight.data = (self.early.weight + self.late.weight) / 2
        self.gate = nn.Parameter(torch.rand(8, generator=generator))
        self.fields = nn.Linear(40, 24 * 16)
        self.projection = nn.Parameter(torch.randn(24, 4, generator=generator))
        self.norm.running_mean.copy_(torch.randn(24, generator=generator))
        self.norm.running_var.copy_(torch.rand(24, generator=generator) + 0.5)

    def forward(self, dense: Tensor, ids: Tensor, history: Tensor) -> dict[str, Tensor]:
        gated = dense * (self.gate * 2.0).sigmoid()
        table = self.table(ids) + self.table(ids) + 0.01 * self.twin(ids) + self.hashed(ids % 60)
        features = torch.cat([gated, table.contiguous(), self.bag(history)], dim=1)
        fields = self.fields(features).view(-1, 24, 16)
        order = (fields @ fields.transpose(1, 2) @ self.projection).mean((1, 2))
        hidden = torch.relu(self.norm(self.first(features)))
        score = (self.second(hidden) * 0.5 + 0.25).squeeze(1) + order
        heads = {"buy_1d": self.early, "buy_7d": self.middle, "buy_28d": self.late}
        bought = {name: head(hidden).squeeze(1) for name, head in heads.items()}
        return {"score": score, "auxiliary": self.aux(hidden).squeeze(1), **bought}

    def example_inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(4)
        return (
            torch.randn(6, 8, generator=generator),
            torch.randint(300, (6,), generator=generator),
            torch.randint(200, (6, 5), generator=generator),
        )


_MODELS: dict[str, Callable[[], nn.Module]] = {
    **models.zoo(),
    "everything": Everything,
    "interactions": Interactions,
}
#: Heads that are only learned.
_LEARNED = {
    "early-stage": ("aux_final_click", "aux_final_quality"),
    "everything": ("auxiliary",),
}
every_pass = pytest.mark.parametrize("name", pass_names())
every_model = pytest.mark.parametrize(
    "model",
    [
        name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(_MODELS)
    ],
)
every_pass_and_model = pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param(name, model, marks=() if quick else pytest.mark.slow)
        for name in pass_names()
        for model in sorted(_MODELS)
        for quick in [model in (_QUICKEST if name in _TRYING else _QUICK)]
    ],
)


# Programs are captured once a session; whoever runs passes on them works on a copy.


@cache
def _captured(model: str) -> Program:
    torch.manual_seed(0)
    return with_auxiliary(capture(_MODELS[model]()), *_LEARNED.get(model, ()))


@cache
def _original(name: str, model: str) -> Program:
    """The captured model, for one user a call where a pass is about requests."""
    program = _captured(model)
    if name not in _ON_REQUESTS:
        return program
    names = program.signature.names
    return as_request(program, _SHARED.get(model, names[:1] if len(names) > 1 else ()))


@cache
def _judge(model: str) -> Any:
    return permissive_judge(_captured(model), 256)


@cache
def _recovery(model: str) -> Any:
    return made_up_recovery(_captured(model), epochs=4, batch_size=128, lr=1e-4, rounds=2)


def _ready(name: str, model: str) -> Program:
    """The model's program in the state in which the pass runs."""
    return _prepared(_BEFORE.get(name, "canonicalize"), model)


@cache
def _prepared(passes: str, model: str) -> Program:
    if passes in ("", "request"):
        return _original("share-user-side" if passes else "", model)
    earlier, _, last = passes.rpartition(",")
    if earlier == "canonicalize":
        return _ran(last, model).program
    return _run(_prepared(earlier, model), last, model).program


def _run(program: Program, passes: str, model: str) -> Ran:
    return run_passes(
        program,
        passes,
        target=_TARGET,
        judge=_judge(model),
        calibration=[made_up(program, 128, seed=5)],
        recovery=_recovery(model) if _trains(passes) else None,
    )


def _trains(passes: str) -> bool:
    return any(pass_class(n).exactness is Exactness.TRAINED for n in pass_names() if n == passes)


@cache
def _ran(name: str, model: str) -> Ran:
    return _run(_ready(name, model), name, model)


def _other_options(pass_: Pass) -> dict[str, Any]:
    """Another value for every option of a pass."""
    other: dict[type, Callable[[Any], Any]] = {
        bool: lambda value: not value,
        int: lambda value: value + 1,
        float: lambda value: value + 0.125,
        str: lambda value: f"{value}, {{other}}",
        tuple: lambda value: (*value, "other"),
    }
    fields = {item.name: getattr(pass_, item.name) for item in dataclasses.fields(pass_)}
    return {name: other[type(value)](value) for name, value in fields.items()}


@every_pass
def test_spec_and_parse_round_trip(name: str) -> None:
    kind = pass_class(name)
    default = kind()
    assert default.spec() == name == kind.name
    assert kind.parse(name) == default

    options = _other_options(default)
    changed = dataclasses.replace(default, **options)
    assert kind.parse(changed.spec()) == changed
    for option, value in options.items():
        single = dataclasses.replace(default, **{option: value})
        assert single != default
        assert kind.parse(single.spec()) == single


@every_pass
def test_requires_the_form_it_says(name: str) -> None:
    program = _captured("everything")
    kind = pass_class(name)
    if kind.requires is Form.CAPTURED:
        _run(program, name, "everything")
        return
    with pytest.raises(PreconditionError, match=f"{name} requires a program that is canonical"):
        run_pass(kind(), program.clone(), PassContext(target=EAGER_INT8))


@every_pass
def test_is_not_vacuous(name: str) -> None:
    """Each pass changes at least one of the models, or the laws below say nothing about it."""
    models = {*_QUICK, "din"} if name in _ON_REQUESTS else _QUICK
    assert any(_ran(name, model).outcomes == [Outcome.CHANGED] for model in sorted(models))


@every_pass_and_model
def test_keeps_the_laws(name: str, model: str) -> None:
    """All laws of a pass on a model, in one test: they look at the same run."""
    _leaves_a_valid_program(name, model)
    _keeps_the_contract(name, model)
    _explains_every_change(name, model)
    _is_deterministic_and_leaves_the_original_alone(name, model)
    if _ran(name, model).program.fingerprint() == _ready(name, model).fingerprint():
        return  # what is left compares a program with itself
    _changes_nothing_the_second_time(name, model)
    _keeps_its_promise_about_the_numbers(name, model)


def _leaves_a_valid_program(name: str, model: str) -> None:
    verify(_ran(name, model).program)


def _changes_nothing_the_second_time(name: str, model: str) -> None:
    if not pass_class(name).idempotent:
        return
    again = _run(_ran(name, model).program, name, model)
    assert again.outcomes in ([Outcome.UNCHANGED], [Outcome.SKIPPED])
    assert again.program.fingerprint() == _ran(name, model).program.fingerprint()


def _keeps_its_promise_about_the_numbers(name: str, model: str) -> None:
    before, after = _ready(name, model), _ran(name, model).program
    rows = made_up(before, 200, seed=6)
    moved = divergence(before.run(rows), after.run(rows))
    exactness = pass_class(name).exactness
    if exactness is Exactness.EXACT:
        assert moved.bit_equal
    elif exactness is Exactness.ROUNDING:
        original = _original(name, model)
        expected = truth(original, rows)
        own = divergence(expected, original.run(rows)).relative
        error = divergence(expected, after.run(rows)).relative
        assert error <= max(ROUNDING_SLACK * own, ROUNDING_FLOOR)
    else:
        assert _judge(model)(after).status is Status.PASS
        moves = moved.relative < 0.25 or name in _REMOVING
        assert moves, "8-bit formats moved a small model by a quarter"


def _keeps_the_contract(name: str, model: str) -> None:
    before, after = _ready(name, model), _ran(name, model).program
    assert after.form.includes(before.form)
    if pass_class(name).keeps_contract:
        assert after.signature == before.signature
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
        assert after.arguments == before.arguments
        return
    # Whoever calls it as before is served as before: what is new may be left out.
    assert after.signature.served == before.signature.served
    names = after.signature.names
    assert names[: len(before.signature.names)] == before.signature.names
    assert set(names[len(before.signature.names) :]) <= set(after.signature.optional)
    assert set(after.inputs.names) == set(names)
    assert after.arguments[: len(before.arguments)] == before.arguments
    assert set(after.outputs.names) == set(after.signature.outputs)


def _is_deterministic_and_leaves_the_original_alone(name: str, model: str) -> None:
    """Copies share parameters: a pass that wrote into one would change the original."""
    program = _ready(name, model)
    before = {key: value.clone() for key, value in program.tensors()}
    fingerprint = program.fingerprint()

    again = _run(program, name, model)
    assert again.program.fingerprint() == _ran(name, model).program.fingerprint()
    assert again.report.to_json() == _ran(name, model).report.to_json()

    assert program.fingerprint() == fingerprint
    assert all(torch.equal(value, before[key]) for key, value in program.tensors())


def _explains_every_change(name: str, model: str) -> None:
    ran = _ran(name, model)
    changed = ran.outcomes == [Outcome.CHANGED]
    assert bool(ran.applied(name)) == changed
    assert ran.program.recipe == (
        (*_ready(name, model).recipe, name) if changed else _ready(name, model).recipe
    )


@every_model
def test_is_exportable_after_all_rounding_passes(model: str) -> None:
    ran = _run(_captured(model), "rounding", model)
    onnx = to_onnx(ran.program)
    _has_the_contract(onnx, ran.program)


@every_model
def test_is_exportable_with_tables_and_linears_quantized(model: str) -> None:
    passes = "rounding,place-precision,quantize-tables,insert-quantize,eliminate"
    ran = _run(_captured(model), passes, model)
    onnx = to_onnx(ran.program)
    _has_the_contract(onnx, ran.program)
    kinds = {node.op_type for node in onnx.graph.all_nodes()}
    assert ("QuantizeLinear" in kinds) == bool(quantized_linears(ran.program))
    assert ("QuantizeLinear" in kinds) or model not in _QUICK


def _has_the_contract(onnx: Any, program: Program) -> None:
    assert tuple(value.name for value in onnx.graph.inputs) == program.signature.names
    assert tuple(value.name for value in onnx.graph.outputs) == program.signature.outputs


class Breaks(Pass):
    """Claims a dtype for the output that its operator doesn't give."""

    name = "breaks"

    def run(self, program: Program, ctx: PassContext) -> None:
        (output,) = program.graph.find_nodes(op="output")
        score = output.args[0][0]
        score.meta["val"] = score.meta["val"].double()
        program.signature = program.signature.with_task("score", auxiliary=True)


def test_the_tests_verify_programs_after_every_pass() -> None:
    context = PassContext(target=EAGER_INT8, strict=True)
    with pytest.raises(PassError, match="says float64"):
        run_pass(Breaks(), _prepared("canonicalize", "everything").clone(), context)


@pytest.mark.unverified
def test_unless_a_test_is_marked_unverified() -> None:
    context = PassContext(target=EAGER_INT8, strict=True)
    run_pass(Breaks(), _prepared("canonicalize", "everything").clone(), context)
