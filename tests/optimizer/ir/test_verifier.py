"""One planted violation per rule of the verifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from rankc.optimizer.errors import VerifyError
from rankc.optimizer.ir import Form, Program, verify
from torch import fx

aten = torch.ops.aten


def node_of(program: Program, target: object) -> fx.Node:
    return next(node for node in program.graph.nodes if node.target == target)


def lose_a_parameter(program: Program) -> None:
    del program.module.click.weight


def swap_a_parameter(program: Program) -> None:
    program.module.click.weight = torch.zeros(1, 5)


def retype_a_parameter(program: Program) -> None:
    program.module.click.weight = torch.zeros(1, 6, dtype=torch.float64)


def lose_a_value(program: Program) -> None:
    del node_of(program, aten.cat.default).meta["val"]


def falsify_a_value(program: Program) -> None:
    node = node_of(program, aten.relu.default)
    node.meta["val"] = node.meta["val"].new_empty(3, 5)


def falsify_a_dtype(program: Program) -> None:
    node = node_of(program, aten.relu.default)
    node.meta["val"] = node.meta["val"].to(torch.float16)


def freeze_the_batch(program: Program) -> None:
    node = node_of(program, aten.relu.default)
    node.meta["val"] = node.meta["val"].new_empty(23, 6)


def break_an_operator(program: Program) -> None:
    node = node_of(program, aten.linear.default)
    node.args = (node.args[0], node.args[0], *node.args[2:])


def write_in_place(program: Program) -> None:
    node_of(program, aten.relu.default).target = aten.relu_.default


def add_noise(program: Program) -> None:
    relu = node_of(program, aten.relu.default)
    with program.graph.inserting_after(relu):
        made = program.graph.call_function(aten.clone.default, (relu,))
    made.meta["val"] = relu.meta["val"]


def call_a_method(program: Program) -> None:
    relu = node_of(program, aten.relu.default)
    with program.graph.inserting_after(relu):
        program.graph.call_method("relu", (relu,))


def rename_a_feature(program: Program) -> None:
    program.signature = program.signature.with_feature("dense", name="other")


def forget_an_output(program: Program) -> None:
    (output,) = program.graph.find_nodes(op="output")
    output.args = (output.args[0][:1],)


def return_a_bare_tensor(program: Program) -> None:
    (output,) = program.graph.find_nodes(op="output")
    output.args = (output.args[0][0],)


def forget_a_task_output(program: Program) -> None:
    program.signature = program.signature.with_task("buy", output="sale")


def break_the_order(program: Program) -> None:
    relu, cat = node_of(program, aten.relu.default), node_of(program, aten.cat.default)
    cat.append(relu)


def garble_the_facts(program: Program) -> None:
    node_of(program, aten.relu.default).meta["custom"] = {"rankc": {"origin": 3}}


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lose_a_parameter, "click.weight"),
        (
            swap_a_parameter,
            r"parameter click.weight is float32\['1', '5'\], its node says float32\['1', '6'\]",
        ),
        (retype_a_parameter, "parameter click.weight is float64.*its node says float32"),
        (lose_a_value, "cat has no value; make nodes with Rewriter.emit"),
        (falsify_a_value, r"relu says float32\['3', '5'\], its operator gives"),
        (falsify_a_dtype, "relu says float16.*its operator gives float32"),
        (freeze_the_batch, r"relu says float32\['23', '6'\], its operator gives"),
        (break_an_operator, "linear can't be computed"),
        (write_in_place, "not canonical: aten.relu_.default writes into its input"),
        (add_noise, "not canonical: aten.clone.default is noise that canonicalize removes"),
        (call_a_method, "call_method nodes aren't allowed"),
        (rename_a_feature, r"inputs \('dense', 'ids'\) don't match the features"),
        (forget_an_output, r"the graph returns .* the signature says \('click', 'buy'\)"),
        (return_a_bare_tensor, "the graph returns"),
        (forget_a_task_output, r"tasks read outputs that don't exist: \['sale'\]"),
        (break_the_order, "the graph is malformed"),
        (garble_the_facts, "node relu has malformed facts"),
    ],
)
def test_each_violation_is_named(
    program: Program, plant: Callable[[Program], None], message: str
) -> None:
    verify(program)
    plant(program)
    with pytest.raises(VerifyError, match=message):
        verify(program)


def test_a_message_shows_the_graph_around(program: Program) -> None:
    falsify_a_value(program)
    with pytest.raises(VerifyError) as caught:
        verify(program)
    marked = [line for line in str(caught.value).splitlines() if line.startswith(">>")]
    assert len(marked) == 1
    assert "relu" in marked[0]
    assert "deep.1" in marked[0]


def test_noise_is_allowed_before_canonicalize(program: Program) -> None:
    program.form = Form.CAPTURED
    add_noise(program)
    write_in_place(program)
    verify(program)


def test_forms_are_ordered() -> None:
    assert Form.LEGAL.includes(Form.CAPTURED)
    assert Form.CANONICAL.includes(Form.CANONICAL)
    assert not Form.CAPTURED.includes(Form.CANONICAL)


def test_what_was_checked_is_checked_again_when_it_changes(program: Program) -> None:
    verify(program)
    falsify_a_value(program)
    with pytest.raises(VerifyError):
        verify(program)
    program.signature = replace(program.signature)
    with pytest.raises(VerifyError):
        verify(program)
