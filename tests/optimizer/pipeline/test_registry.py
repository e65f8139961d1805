"""Passes by name."""

from __future__ import annotations

import pytest
from rankc.optimizer.errors import PipelineError
from rankc.optimizer.pipeline.registry import named_pipelines, pass_class, pass_names


def test_every_name_is_a_pass_and_pipelines_are_made_of_them() -> None:
    names = pass_names()
    assert "canonicalize" in names
    assert pass_class("canonicalize").name == "canonicalize"
    assert "default" in named_pipelines()


def test_an_unknown_pass_is_named() -> None:
    with pytest.raises(PipelineError, match="canonicalise"):
        pass_class("canonicalise")
