"""Programs: copies, fingerprints, text, saving and loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rankc.optimizer.errors import SignatureError
from rankc.optimizer.ir import (
    Form,
    Precision,
    Program,
    Rewriter,
    facts_of,
    set_precision,
    site_of,
    verify,
)
from rankc.optimizer.ir.printer import diff, excerpt, text
from rankc.optimizer.ir.program import content_hash
from torch import fx, nn

aten = torch.ops.aten
INT8 = Precision("int8", 0.02, 117, "uint8", "int8")


def first_linear(program: Program) -> fx.Node:
    return program.graph.find_nodes(op="call_function", target=aten.linear.default)[0]


def test_a_call_is_like_the_models(captured: Program, rows: Any) -> None:
    example = rows(5)
    by_name = captured(**example)
    by_position = captured(example["dense"], example["ids"])
    mixed = captured(example["dense"], ids=example["ids"])
    assert set(by_name) == {"click", "buy"}
    for name, value in by_name.items():
        assert torch.equal(value, by_position[name])
        assert torch.equal(value, mixed[name])


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 2, 3), {}, r"takes 2 arguments \['dense', 'ids'\], got 3"),
        ((1,), {"dense": 2}, "argument 'dense' was given twice"),
        ((1,), {}, r"missing \['ids'\]"),
        ((1, 2), {"mask": 3}, r"unexpected \['mask'\]"),
    ],
)
def test_a_call_that_does_not_fit(
    captured: Program, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(SignatureError, match=message):
        captured(*args, **kwargs)


def test_a_clone_shares_parameters_and_has_its_own_graph(program: Program, rows: Any) -> None:
    copy = program.clone()
    assert copy.fingerprint() == program.fingerprint()
    for (name, left), (other, right) in zip(program.tensors(), copy.tensors(), strict=True):
        assert name == other
        assert left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
    before = program.run(rows(5))
    set_precision(first_linear(copy), INT8)
    relu = next(n for n in copy.graph.nodes if n.target is aten.relu.default)
    Rewriter(copy, "p").replace(relu, relu.args[0])
    verify(copy)
    verify(program)
    assert facts_of(first_linear(program)).precision is None
    assert copy.nbytes == program.nbytes
    after = program.run(rows(5))
    assert all(torch.equal(before[name], after[name]) for name in before)


def write_a_weight(program: Program) -> None:
    program.tensor("click.bias").add_(1)


def assign_a_weight(program: Program) -> None:
    Rewriter(program, "p").set_parameter("click.bias", torch.ones(1))


def place_a_format(program: Program) -> None:
    set_precision(first_linear(program), INT8)


def turn_an_operand(program: Program) -> None:
    relu = next(n for n in program.graph.nodes if n.target is aten.relu.default)
    relu.target = aten.gelu.default


def change_the_signature(program: Program) -> None:
    program.signature = program.signature.with_task("click", auxiliary=True)


def change_the_form(program: Program) -> None:
    program.form = Form.LEGAL


@pytest.mark.parametrize(
    "change",
    [
        write_a_weight,
        assign_a_weight,
        place_a_format,
        turn_an_operand,
        change_the_signature,
        change_the_form,
    ],
)
def test_fingerprints_tell_changes(captured: Program, change: Callable[[Program], None]) -> None:
    # A weight written in place is everyone's, so this test has its own.
    program = captured.clone()
    Rewriter(program, "p").set_parameter("click.bias", captured.tensor("click.bias").clone())
    before = program.fingerprint()
    assert before == captured.fingerprint()
    change(program)
    assert program.fingerprint() != before


def test_fingerprints_ignore_names_of_nodes_and_where_they_came_from(program: Program) -> None:
    before = program.fingerprint()
    for index, node in enumerate(program.graph.nodes):
        node._rename(f"renamed_{index}")
        node.meta["scratch"] = index
    assert program.fingerprint() == before


def test_weights_made_in_inference_mode_have_a_hash() -> None:
    with torch.inference_mode():
        weight = torch.ones(3)
    assert content_hash(weight) == content_hash(weight) == content_hash(torch.ones(3))


@pytest.fixture(scope="module")
def saved(canonical: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = canonical.clone()
    set_precision(first_linear(program), INT8)
    program.recipe = ("canonicalize",)
    path = tmp_path_factory.mktemp("saved") / "model.pt2"
    program.save(path)
    return path


def test_saving_and_loading(saved: Path, canonical: Program, rows: Any) -> None:
    loaded = Program.load(saved, trust_code=True)
    verify(loaded)
    assert loaded.signature == canonical.signature
    assert (loaded.inputs, loaded.outputs) == (canonical.inputs, canonical.outputs)
    assert (loaded.arguments, loaded.form) == (canonical.arguments, canonical.form)
    assert loaded.recipe == ("canonicalize",)
    assert dict(loaded.tensors()).keys() == dict(canonical.tensors()).keys()
    for size in (1, 2, 64):
        want, got = canonical(**rows(size)), loaded(**rows(size))
        assert set(got) == {"click", "buy"}
        assert all(torch.equal(want[name], got[name]) for name in want)
    assert facts_of(first_linear(loaded)).precision == INT8
    assert site_of(first_linear(loaded)) == "deep.0"


def test_a_loaded_program_can_be_saved_again(saved: Path, tmp_path: Path, rows: Any) -> None:
    loaded = Program.load(saved, trust_code=True)
    loaded.save(tmp_path / "again.pt2")
    again = Program.load(tmp_path / "again.pt2", trust_code=True)
    assert again.fingerprint() == loaded.fingerprint()
    assert torch.equal(again(**rows(3))["buy"], loaded(**rows(3))["buy"])


def test_a_foreign_file_is_told(tmp_path: Path) -> None:
    exported = torch.export.export(nn.Linear(2, 1), (torch.zeros(3, 2),))
    torch.export.save(exported, tmp_path / "foreign.pt2")
    with pytest.raises(SignatureError, match="not one that rankc saved"):
        Program.load(tmp_path / "foreign.pt2", trust_code=True)


def test_the_python_text_runs(program: Program, rows: Any) -> None:
    code = program.to_python()
    # print_readable writes a class that needs its own annotations read as text.
    scope: dict[str, Any] = {"torch": torch, "device": torch.device}
    body = "from __future__ import annotations\n" + code.replace("<lambda>", "GraphModule")
    exec(compile(body, "<program>", "exec"), scope)
    (made,) = (v for v in scope.values() if isinstance(v, type) and issubclass(v, nn.Module))
    example = rows(5)
    got = made.forward(program.module, *example.values())
    want = program.run(example)
    assert all(torch.equal(a, b) for a, b in zip(got, want.values(), strict=True))


def test_the_printed_program(program: Program) -> None:
    place_a_format(program)
    shown = text(program)
    assert shown.startswith("program canonical\n  feature dense: dense float32 [batch, 4]\n")
    line = next(line for line in shown.splitlines() if "%linear:" in line)
    assert line.strip().startswith("%linear: float32[")
    assert " = linear(%cat, " in line
    assert line.endswith("# deep.0, int8")
    assert "= parameter table.weight" in shown
    assert shown.rstrip().splitlines()[-1].strip().startswith("return [")
    marked = excerpt(first_linear(program), around=1).splitlines()
    assert [line[:2] for line in marked] == ["  ", ">>", "  "]


def test_the_difference_of_two_programs(program: Program) -> None:
    before = program.clone()
    assert diff(before, program) == ""
    turn_an_operand(program)
    changed = [
        line
        for line in diff(before, program).splitlines()
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]
    assert [line[0] for line in changed] == ["-", "+"]
    assert "= relu(" in changed[0]
    assert "= gelu(" in changed[1]


def test_restoring_takes_everything_back(program: Program) -> None:
    snapshot = program.clone()
    before = program.fingerprint()
    Rewriter(program, "p").drop_outputs(["buy"])
    program.recipe = ("p",)
    program.form = Form.LEGAL
    program.restore(snapshot)
    assert program.fingerprint() == before
    assert (program.recipe, program.form) == (replace(snapshot).recipe, Form.CANONICAL)
