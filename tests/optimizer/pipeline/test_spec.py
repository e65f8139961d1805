"""Passes as text."""

from __future__ import annotations

import pytest
from rankc.optimizer.errors import PipelineError
from rankc.optimizer.pipeline.spec import is_name, split_spec, split_top_level


def test_a_spec_is_a_name_and_options() -> None:
    assert split_spec("prune{flops=0.5,kind=all}") == ("prune", {"flops": 0.5, "kind": "all"})
    assert split_spec("eliminate") == ("eliminate", {})
    assert is_name("fold-affine")
    assert not is_name("fold affine")


def test_commas_within_braces_do_not_split() -> None:
    assert split_top_level("a{x=1,y=2},b") == ["a{x=1,y=2}", "b"]


def test_what_is_no_spec_is_said() -> None:
    with pytest.raises(PipelineError):
        split_spec("a{x")
