"""The rewriter, rules and the sweep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import VerifyError
from rankc.optimizer.ir import (
    Miss,
    Precision,
    Program,
    Rewriter,
    Rule,
    apply_rules,
    facts_of,
    set_precision,
    site_of,
    sweep,
    verify,
)
from rankc.optimizer.ir.pattern import is_op, shape_of
from torch import Tensor, fx, nn

aten = torch.ops.aten


def linear(program: Program, site: str) -> fx.Node:
    calls = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    return next(node for node in calls if site_of(node) == site)


def test_emitted_nodes_have_shape_and_provenance(program: Program) -> None:
    first, second = linear(program, "deep.0"), linear(program, "deep.2")
    rw = Rewriter(program, "my-pass")
    with rw.before(second):
        made = rw.emit(aten.relu.default, first, like=(first, second))
    assert shape_of(made) == shape_of(first)
    facts = facts_of(made)
    assert facts.origin == ("deep.0", "deep.2")
    assert facts.made_by == "my-pass"
    assert facts.source.split(":")[0].endswith(".py")
    verify(program)


def test_emitting_needs_a_place(program: Program) -> None:
    rw = Rewriter(program, "p")
    node = linear(program, "deep.0")
    with pytest.raises(VerifyError, match="needs a place"):
        rw.emit(aten.relu.default, node)
    with rw.before(node), rw.before(linear(program, "deep.2")):
        pass
    with pytest.raises(VerifyError, match="needs a place"):
        rw.emit(aten.relu.default, node)


@pytest.mark.parametrize(
    "make",
    [
        lambda rw, node: rw.emit(aten.sum.dim_IntList, node, [1]),
        lambda rw, node: rw.emit(aten.sum.dim_IntList, node, [1], True),
        lambda rw, node: rw.emit(aten.to.dtype, node, torch.float64),
        lambda rw, node: rw.emit(aten.slice.Tensor, node, 0, 0, 1),
    ],
)
def test_a_replacement_has_the_same_shape_and_dtype(program: Program, make: Any) -> None:
    node = linear(program, "deep.0")
    rw = Rewriter(program, "clumsy")
    with rw.before(next(iter(node.users))):
        other = make(rw, node)
    with pytest.raises(VerifyError, match="clumsy would replace linear by a value of another"):
        rw.replace(node, other)


def test_a_new_parameter_has_a_name_of_its_own(program: Program) -> None:
    rw = Rewriter(program, "p")
    names = [str(rw.parameter("deep.0.weight", torch.zeros(2)).target) for _ in range(2)]
    assert names == ["deep.0.weight_2", "deep.0.weight_3"]
    assert str(rw.parameter("click", torch.zeros(2)).target) == "click_2"
    assert program.tensor("deep.0.weight").shape == (6, 8)
    assert program.tensor("deep.0.weight_2").shape == (2,)
    verify(program)


def test_reassigned_parameters_refresh_what_follows(program: Program, rows: Any) -> None:
    rw = Rewriter(program, "prune")
    weight, bias = program.tensor("deep.0.weight"), program.tensor("deep.0.bias")
    after = program.tensor("deep.2.weight")
    rw.set_parameters(
        {"deep.0.weight": weight[:4], "deep.0.bias": bias[:4], "deep.2.weight": after[:, :4]}
    )
    assert shape_of(linear(program, "deep.0"))[1] == 4
    (relu,) = linear(program, "deep.0").users
    assert shape_of(relu)[1] == 4
    verify(program)
    program.run(rows(3))


def test_setting_a_parameter_leaves_the_shared_tensor_alone(program: Program) -> None:
    other = program.clone()
    before = other.tensor("click.bias").clone()
    Rewriter(program, "p").set_parameter("click.bias", before + 1)
    assert torch.equal(other.tensor("click.bias"), before)
    assert torch.equal(program.tensor("click.bias"), before + 1)


def test_an_argument_is_replaced_and_the_format_kept(program: Program) -> None:
    node = linear(program, "deep.2")
    (relu,) = (n for n in program.graph.nodes if is_op(n, aten.relu.default))
    precision = Precision("int8", 0.1, 0, "int8", "int8")
    set_precision(node, precision)
    rw = Rewriter(program, "skip-relu")
    rw.set_argument(node, 0, relu.args[0])
    assert not relu.users
    assert facts_of(node).precision == precision
    assert facts_of(node).made_by == "skip-relu"
    assert facts_of(node).origin == ("deep.2",)
    verify(program)


def test_a_deferred_node_takes_what_needs_it_along() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()) * self.c(x)

    program = capture(Two().eval(), (torch.randn(6, 4),))
    x = {"x": torch.randn(5, 4)}
    before = program.run(x)["score"]
    first, last = linear(program, "a"), linear(program, "c")
    rw = Rewriter(program, "p")
    rw.defer(first, last)
    order = [site_of(n) for n in program.graph.nodes if is_op(n, aten.linear.default)]
    assert order == ["c", "a", "b"]
    rw.defer(first, last)  # stands behind it already
    verify(program)
    program.module.recompile()
    assert torch.equal(program.run(x)["score"], before)
    with pytest.raises(VerifyError, match=r"p: linear_1 needs"):
        rw.defer(first, linear(program, "b"))


def test_dropped_outputs_take_their_tasks_and_parameters_along(program: Program, rows: Any) -> None:
    want = program.run(rows(5))["click"]
    Rewriter(program, "p").drop_outputs(["buy"])
    assert program.signature.outputs == ("click",)
    assert [task.name for task in program.signature.tasks] == ["click"]
    assert sweep(program) > 0
    verify(program)
    assert not [name for name, _ in program.tensors() if name.startswith("buy")]
    assert not hasattr(program.module, "buy")
    assert torch.equal(program.run(rows(5))["click"], want)


def test_sweeping_drops_dead_nodes_but_no_inputs(program: Program) -> None:
    rw = Rewriter(program, "p")
    node = linear(program, "deep.0")
    before = len(program.graph.nodes)
    with rw.before(node):
        dead = rw.emit(aten.relu.default, node.args[0])
        rw.emit(aten.neg.default, dead)
    rw.parameter("unread", torch.zeros(3))
    assert sweep(program) == 3
    assert sweep(program) == 0
    assert len(program.graph.nodes) == before
    assert not hasattr(program.module, "unread")
    Rewriter(program, "p").drop_outputs(["click", "buy"])
    sweep(program)
    assert [node.op for node in program.graph.nodes] == ["placeholder", "placeholder", "output"]


def test_random_numbers_are_not_swept(program: Program) -> None:
    rw = Rewriter(program, "p")
    node = linear(program, "deep.0")
    with rw.before(node):
        rw.emit(aten.rand.default, [2])
    assert sweep(program) == 0


class ReluOfLinear(Rule):
    """Replaces a relu of a linear by its gelu, and erases what follows it."""

    roots = (aten.relu.default, aten.linear.default)

    def __init__(self, follow: bool) -> None:
        self.follow = follow
        self.tried: list[str] = []

    def match(self, node: fx.Node) -> Any:
        self.tried.append(site_of(node))
        if node.target is aten.linear.default:
            return Miss("it is a linear", (node,)) if site_of(node) == "click" else None
        return node

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        made = rw.emit(aten.gelu.default, node.args[0], like=node)
        if not self.follow:
            return made
        (follower,) = node.users
        rw.replace(follower, made)
        rw.replace(node, made)
        return None


def test_a_rule_may_erase_a_later_match(program: Program) -> None:
    rule, misses = ReluOfLinear(follow=True), []
    count = apply_rules([rule], Rewriter(program, "p"), lambda *miss: misses.append(miss))
    assert count == 1
    assert "deep.2" not in rule.tried
    assert [(node.name, miss.reason) for _, node, miss in misses] == [
        ("linear_2", "it is a linear")
    ]
    verify(program)


def test_only_the_first_rule_that_applies_does(program: Program) -> None:
    first, second = ReluOfLinear(follow=False), ReluOfLinear(follow=False)
    assert apply_rules([first, second], Rewriter(program, "p"), lambda *miss: None) == 1
    assert len(first.tried) == len(second.tried) + 1
    sweep(program)
    verify(program)


def test_a_held_back_site_is_left_alone(program: Program) -> None:
    asked: list[str] = []

    def hold(where: str) -> bool:
        asked.append(where)
        return False

    before = program.fingerprint()
    rule = ReluOfLinear(follow=False)
    assert apply_rules([rule], Rewriter(program, "p", hold), lambda *miss: None) == 0
    assert asked == ["deep.1"]
    assert program.fingerprint() == before
