"""Passes as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankc.optimizer.errors import PipelineError
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.passbase import Pass, PassContext
from rankc.optimizer.pipeline.spec import split_spec, split_top_level


@dataclass(frozen=True)
class Sample(Pass):
    name: ClassVar[str] = "sample"
    count: int = 2
    ratio: float = 0.5
    flag: bool = False
    mode: str = "sum"
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()

    def run(self, program: Program, ctx: PassContext) -> None:
        """Does nothing."""


@pytest.mark.parametrize(
    ("made", "spec"),
    [
        (Sample(), "sample"),
        (Sample(count=3), "sample{count=3}"),
        (Sample(ratio=1e-9, flag=True), "sample{ratio=1e-09,flag=True}"),
        (Sample(mode="it's, {odd}"), 'sample{mode="it\'s, {odd}"}'),
        (Sample(sizes=(7,), names=("a,b", "}")), "sample{sizes=(7,),names=('a,b', '}')}"),
    ],
)
def test_specs(made: Sample, spec: str) -> None:
    assert made.spec() == spec
    assert Sample.parse(spec) == made


@given(
    st.builds(
        Sample,
        count=st.integers(),
        ratio=st.floats(allow_nan=False),
        flag=st.booleans(),
        mode=st.text(),
        sizes=st.lists(st.integers()).map(tuple),
        names=st.lists(st.text()).map(tuple),
    )
)
def test_every_option_survives_text(made: Sample) -> None:
    assert Sample.parse(made.spec()) == made
    assert split_top_level(f"first,{made.spec()},last") == ["first", made.spec(), "last"]


def test_lenient_spellings() -> None:
    assert Sample.parse("sample{ mode = mean , count=3 }") == Sample(mode="mean", count=3)
    assert Sample.parse("sample{ratio=1}") == Sample(ratio=1.0)
    assert Sample.parse("sample{sizes=4}") == Sample(sizes=(4,))
    assert Sample.parse("sample{sizes=[4, 5]}") == Sample(sizes=(4, 5))
    assert Sample.parse("sample{}") == Sample()
    assert math.isnan(Sample.parse("sample{ratio=nan}").ratio)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "'other' names 'other', not 'sample'"),
        ("Sample", "'Sample' is no pass; write it as name or name{option=value}"),
        ("sample{count=3", "is no pass"),
        ("sample{depth=3}", r"sample has no option 'depth'; it has \['count', 'flag'"),
        ("sample{count}", "option 'count' of sample has no value"),
        ("sample{count=3.5}", "option count of sample is a int such as 2, got 3.5"),
        ("sample{count=True}", "option count of sample is a int such as 2, got True"),
        ("sample{flag=1}", "option flag of sample is a bool such as False, got 1"),
        ("sample{ratio=high}", "option ratio of sample is a float such as 0.5, got 'high'"),
        ("sample{mode=3}", "option mode of sample is a str such as 'sum', got 3"),
        ("sample{count=1,count=2}", "option 'count' of sample is given twice"),
    ],
)
def test_bad_text_is_told(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Sample.parse(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ("a,fixpoint(b,c),d", ["a", "fixpoint(b,c)", "d"]),
        ("a{x=(1,2),y=[3,4]},b", ["a{x=(1,2),y=[3,4]}", "b"]),
        ("a{x=','},b", ["a{x=','}", "b"]),
        ("a{x=')'},b", ["a{x=')'}", "b"]),
        (r"a{x='\',('},b", [r"a{x='\',('}", "b"]),
        ("""a{x="',"},b""", ["""a{x="',"}""", "b"]),
    ],
)
def test_splitting_at_the_top(text: str, parts: list[str]) -> None:
    assert split_top_level(text) == parts


def test_literals_and_words() -> None:
    assert split_spec("p{a=1,b='x',c=x,d=None}") == ("p", {"a": 1, "b": "x", "c": "x", "d": None})
