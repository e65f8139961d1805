"""Random two-sided models score requests as they score flat rows."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from rankc.backends.onnx.translate import to_onnx
from rankc.optimizer.compare.numerics import divergence, truth
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.promises import ROUNDING_FLOOR, ROUNDING_SLACK
from rankc.optimizer.requests.entry import one_user
from rankc.optimizer.requests.request import as_flat, as_request, replicated
from support import Ran, capture_small, run_passes
from torch import nn
from two_sided import _KINDS, USER, TwoSides, inputs, two_sided

SHARING = "share-user-side,split-sides{min_columns=1},stack-candidates"
PASSES = f"rounding,structure,{SHARING},merge-linears,grouping,eliminate"


@functools.cache
def everything() -> Program:
    """All interactions, one after the other."""
    return capture_small(TwoSides(sorted(_KINDS), 0).eval(), *inputs(6))


@functools.cache
def shared() -> Ran:
    return run_passes(as_request(everything(), USER), f"canonicalize,lower-embedding-bag,{SHARING}")


def test_every_interaction_scores_requests_as_flat_rows() -> None:
    scores_alike(everything(), shared().program)


def test_what_a_user_computes_is_one_row() -> None:
    assert shared().missed("share-user-side") == []
    values = [n.meta["val"] for n in shared().program.graph.nodes if "embedding" in str(n.target)]
    assert {str(v.shape[0]) for v in values if v.dim() > 2} == {"1"}


@pytest.mark.slow
@given(two_sided())
@settings(max_examples=3, deadline=None, derandomize=True)
def test_random_models_score_requests_as_flat_rows(model: nn.Module) -> None:
    program = capture_small(model, *inputs(6))
    scores_alike(program, run_passes(as_request(program, USER), PASSES).program)


@pytest.mark.slow
@given(two_sided())
@settings(max_examples=3, deadline=None, derandomize=True)
def test_requests_are_written_as_onnx(model: nn.Module) -> None:
    program = capture_small(model, *inputs(6))
    onnx = to_onnx(run_passes(as_request(program, USER), PASSES).program)
    assert [value.name for value in onnx.graph.inputs] == list(program.signature.names)
    first = {value.name: value.shape[0] for value in onnx.graph.inputs}
    assert {first[name] for name in USER} == {1}
    assert str(first["item_ids"]) == "batch"


def scores_alike(program: Program, ran: Program) -> None:
    """Requests of one candidate and of more, rows of many users, and the program for these."""
    rows = dict(zip(program.signature.names, inputs(40, seed=1), strict=True))
    for candidates in (1, 2, 40):
        once = one_user({n: v[:candidates] for n, v in rows.items()}, USER)
        holds(program, replicated(once, USER, candidates), ran.run(once))
    holds(program, rows, ran.run(rows))
    holds(program, rows, as_flat(ran, USER).run(rows))


def holds(program: Program, rows: dict, scores: dict) -> None:
    """The error against fp64 is of the original's own size."""
    expected = truth(program, rows)
    own = divergence(expected, program.run(rows)).relative
    assert divergence(expected, scores).relative <= max(ROUNDING_SLACK * own, ROUNDING_FLOOR)
