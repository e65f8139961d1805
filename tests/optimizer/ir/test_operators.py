"""Every operator has its traits, said once."""

from __future__ import annotations

import operator

import pytest
import torch
from rankc.optimizer.ir import ops
from rankc.optimizer.ir.dialect import dialect
from rankc.optimizer.ir.operators import _ATEN, _OTHERS, gives, known, moves, traits_of
from rankc.optimizer.ir.torchapi import captured_operators
from rankc.optimizer.ir.traits import Coded, Flops, Move, OnRows, Values

_aten = torch.ops.aten


@pytest.mark.parametrize("name", sorted(captured_operators()))
def test_every_operator_that_capture_leaves_has_traits(name: str) -> None:
    """A new operator can't be added without saying what it does."""
    assert known(name) is not None


def test_every_operator_of_the_dialect_has_traits() -> None:
    assert {op.op for op in dialect().values()} <= set(_OTHERS)


@pytest.mark.parametrize("name", sorted(_ATEN))
def test_traits_are_of_operators_that_exist(name: str) -> None:
    packet, _, overload = name.partition(".")
    found = getattr(_aten, packet)
    assert not overload or overload in found.overloads()


@pytest.mark.parametrize("name", sorted(_ATEN))
def test_what_is_elementwise_by_torch_is_elementwise_here(name: str) -> None:
    packet, _, overload = name.partition(".")
    found = getattr(_aten, packet)
    overloads = [getattr(found, one) for one in ([overload] if overload else found.overloads())]
    said = {
        traits_of(one)
        for one in overloads
        if torch.Tag.pointwise in one.tags and "out" not in one._overloadname
    }
    followed = {traits.rows for traits in said} - {OnRows.APART}
    assert not followed or all(traits.move is Move.COPY for traits in said)


def test_an_overload_may_differ() -> None:
    assert traits_of(_aten.max.other).rows is OnRows.APART
    assert traits_of(_aten.max.dim).rows is OnRows.ALONG
    assert traits_of(_aten.div.Tensor_mode).values is Values.DIVIDE_ROUNDED


def test_of_what_nobody_knows_nothing_is_said() -> None:
    assert traits_of(_aten.histc.default).rows is OnRows.LOST
    assert traits_of(operator.add).rows is OnRows.LOST
    assert traits_of(_aten.erfc.default).rows is OnRows.APART


def test_traits_are_asked_of_nodes() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    view = graph.call_function(_aten.view.default, (x, [-1]))
    total = graph.call_function(_aten.sum.dim_IntList, (view, [0]))
    assert moves(view, Move.VIEW)
    assert not moves(view, Move.PART)
    assert not moves(x, Move.VIEW)
    assert gives(total, Values.MEAN, Values.SUM)
    assert not gives(total, Values.MEAN)


def test_what_learns_and_what_codes_is_said_of_the_dialect() -> None:
    linear = traits_of(ops.ROWWISE_LINEAR.op)
    assert linear.learned == (1, 3, 6)
    assert linear.coded is Coded.IS
    assert linear.flops is Flops.LINEAR
    assert traits_of(_aten.linear.default).coded is Coded.CAN
