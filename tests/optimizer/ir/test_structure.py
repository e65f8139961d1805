"""Nested inputs and outputs: there and back, and messages that name what is wrong."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from rankc.optimizer.errors import SignatureError
from rankc.optimizer.ir import Structure


class Pair(NamedTuple):
    user: Any
    item: Any


@dataclass
class Request:
    user: Any
    items: list[Any]
    day: str = "mon"


@dataclass(frozen=True)
class Derived:
    score: Any
    doubled: Any = field(init=False, default=None)


class T:
    """Stands for a tensor."""

    def __init__(self, name: str) -> None:
        self.name = name


def of(value: Any, root: str = "input") -> Structure:
    return Structure.of(value, root, lambda v: isinstance(v, T))


A, B, C = T("a"), T("b"), T("c")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (A, ("input",)),
        ([A, B], ("input_0", "input_1")),
        ((A, [B, C]), ("input_0", "input_1_0", "input_1_1")),
        ({"user": A, "item": B}, ("user", "item")),
        ({"f": {"x y": A, "x.y": B}}, ("f_x_y", "f_x_y_2")),
        ({0: A, 1: B}, ("input_0", "input_1")),
        (Pair(A, [B]), ("user", "item_0")),
        (Request(A, [B, C]), ("user", "items_0", "items_1")),
        ((A, None, 3, "mode", True, 0.5), ("input_0",)),
        ({"class": A, "self": B, "1st": C}, ("input_class", "input_self", "input_1st")),
        ({}, ()),
    ],
)
def test_there_and_back(value: Any, names: tuple[str, ...]) -> None:
    structure = of(value)
    assert structure.names == names
    assert all(name.isidentifier() for name in names)
    leaves = structure.flatten(value)
    assert tuple(leaves) == names
    assert structure.unflatten(leaves) == value
    again = Structure.from_json(json.loads(json.dumps(structure.to_json())))
    assert again == structure
    assert again.unflatten(leaves) == value


def test_fields_that_are_no_arguments_are_set_afterwards() -> None:
    value = Derived(A)
    object.__setattr__(value, "doubled", B)
    structure = of(value)
    assert structure.unflatten(structure.flatten(value)) == value


def test_a_class_inside_a_function_is_rebuilt() -> None:
    @dataclass
    class Local:
        x: Any

    structure = of(Local(A))
    assert structure.unflatten({"x": B}) == Local(B)


def test_an_unknown_class_comes_back_as_a_dict() -> None:
    template = of(Pair(A, B)).to_json()
    template["kind"] = "no_such_module:Pair"
    assert Structure.from_json(template).unflatten({"user": 1, "item": 2}) == {"user": 1, "item": 2}
    template["kind"] = f"{__name__}:NoSuchClass"
    assert Structure.from_json(template).unflatten({"user": 1, "item": 2}) == {"user": 1, "item": 2}


def test_the_order_of_keys_does_not_matter() -> None:
    assert of({"x": A, "y": B}).flatten(OrderedDict(y=2, x=1)) == {"x": 1, "y": 2}


def test_renaming_keeps_the_nesting() -> None:
    structure = of({"x": A, "y": [B]}).rename({"y_0": "z"})
    assert structure.names == ("x", "z")
    assert structure.unflatten({"x": 1, "z": 2}) == {"x": 1, "y": [2]}


@pytest.mark.parametrize(
    ("template", "value", "message"),
    [
        ({"x": A, "y": B}, {"x": 1}, r"inputs has the wrong names: missing \['y'\]"),
        ({"x": A}, {"x": 1, "z": 2}, r"unexpected \['z'\]\. Expected \['x'\]"),
        ({"x": A, "y": B}, {"x": 1, "z": 2}, r"missing \['y'\]; unexpected \['z'\]"),
        ({0: A, "y": B}, {}, r"missing \[0, 'y'\]"),
        ({"f": {"x": A}}, {"f": {"w": 1}}, r"inputs\['f'\] has the wrong names"),
        ([A, B], [1], "inputs should have 2 items, got 1"),
        ((A, (B, C)), (1, (2, 3, 4)), r"inputs\[1\] should have 2 items, got 3"),
        ([A], {"x": 1}, "inputs should be a list, got dict"),
        ({"x": A}, 5, "inputs should be a dict, got int"),
        ((A, 3), (1, 4), r"inputs\[1\] was 3 when the model was captured .* got 4"),
        ((A, None), (1, [2]), r"inputs\[1\] was None"),
    ],
)
def test_what_does_not_fit_is_named(template: Any, value: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        of(template).flatten(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": object()}, "x is a object, which is neither a tensor nor a dict"),
        ({A, B}, "input is a set"),
        ({(1, 2): A}, r"keys must be strings or integers, got \(1, 2\)"),
    ],
)
def test_what_holds_no_tensors_is_refused(value: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        of(value)


@pytest.mark.parametrize(
    ("value", "kept", "left"),
    [
        ({"a": A, "aux": {"b": B}}, ("a",), {"a": A}),
        ({"a": {"x": A, "y": B}, "b": C}, ("a_x", "b"), {"a": {"x": A}, "b": C}),
        ((A, B, C), ("input_0", "input_2"), {"input_0": A, "input_2": C}),
        ((A, B), ("input_0",), A),
        ({"a": [A, B]}, ("a_1",), B),
        ((A, B), ("input_0", "input_1"), (A, B)),
    ],
)
def test_keeping_some_leaves(value: Any, kept: tuple[str, ...], left: Any) -> None:
    structure = of(value)
    assert structure.keep(kept).unflatten(structure.flatten(value)) == left


@pytest.mark.parametrize(
    ("value", "more"),
    [
        ({"a": A}, {"a": A, "new": C}),
        ((A, B), (A, B, C)),
        ([A], [A, C]),
        (A, (A, C)),
        (Pair(A, B), {"user": A, "item": B, "new": C}),
    ],
    ids=["dict", "tuple", "list", "leaf", "class"],
)
def test_one_more_output(value: Any, more: Any) -> None:
    structure = of(value)
    assert structure.with_output("new").unflatten({**structure.flatten(value), "new": C}) == more


def test_one_more_input() -> None:
    plain, arguments = of({"a": A, "b": B}).with_input("new", ("a", "b"))
    assert (plain.names, arguments) == (("a", "b", "new"), ("a", "b", "new"))
    nested, arguments = of({"features": {"a": A}}).with_input("new", ("features",))
    assert arguments == ("features",)
    assert nested.flatten({"features": {"a": A, "new": B}}) == {"features_a": A, "new": B}


def test_leaves_that_may_be_missing() -> None:
    structure = of({"a": A, "b": {"c": B, "d": C}})
    assert structure.flatten({"a": A}, optional=("b_c", "b_d")) == {"a": A}
    assert structure.flatten({"a": A, "b": {"c": B}}, optional=("b_d",)) == {"a": A, "b_c": B}
    with pytest.raises(SignatureError, match=r"missing \['b'\]"):
        structure.flatten({"a": A}, optional=("b_d",))
