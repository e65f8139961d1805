"""Random models that compare ids and walk along histories: flat and request scores are eager's."""

from __future__ import annotations

from pathlib import Path

import pytest
import rankc
import torch
from compared import TERMS, USER, Compared, compared, inputs
from hypothesis import given, settings
from rankc.optimizer.errors import VerifyError
from rankc.optimizer.ir import Program, verify
from rankc.optimizer.requests.request import as_request
from support import capture_small
from torch import Tensor, nn

#: Of a score near 1: sums in another order.
ROUNDING = 2e-6
#: Lowered by themselves, each in another way than the rest.
_RECURRENT = ("gru", "deep gru", "both ways", "lstm", "rnn", "steps of a gru", "gru from item")


def served(model: nn.Module) -> rankc.Artifact:
    return rankc.optimize(model, "cpu-fp32", inputs=inputs(6), request=rankc.Request(USER), seed=0)


def scores_as_eager(artifact: rankc.Artifact, model: nn.Module) -> None:
    """Rows of many users, and one user with many candidates, one of them in the history or none."""
    for count in (1, 3, 64):
        history, country, item, shop = inputs(count, seed=count)
        once = history[:1], country[:1]
        repeated = tuple(value.expand(count, *value.shape[1:]).contiguous() for value in once)
        with torch.no_grad():
            flat, request = model(history, country, item, shop), model(*repeated, item, shop)
        close(artifact(history, country, item, shop), flat)
        close(artifact.request(*once, item, shop), request)
        close(artifact(*repeated, item, shop), request)


def close(found: Tensor, wanted: Tensor) -> None:
    worst = float((found - wanted).abs().max())
    assert worst <= ROUNDING * max(1.0, float(wanted.abs().max())), worst


@pytest.mark.parametrize("part", ["compared", "recurrent"])
def test_every_term_is_served_as_a_request(part: str, tmp_path: Path) -> None:
    terms = [name for name in TERMS if (name in _RECURRENT) == (part == "recurrent")]
    model = Compared(terms).eval()
    scores_as_eager(rankc.load(served(model).save(tmp_path / "saved")), model)


@pytest.mark.slow
@given(compared())
@settings(max_examples=3, deadline=None, derandomize=True)
def test_random_models_are_served_as_requests(model: nn.Module) -> None:
    scores_as_eager(served(model), model)


@pytest.mark.parametrize("term", _RECURRENT)
def test_the_batch_of_a_request_stays_open(term: str) -> None:
    program = as_request(capture_small(Compared([term]).eval(), *inputs(6)), USER)
    verify(program)
    assert {str(n.meta["val"].shape[0]) for n in candidates(program)} == {"s0"}


def test_a_batch_that_became_a_number_is_found() -> None:
    program = capture_small(Compared(["contains"]).eval(), *inputs(6))
    for node in candidates(program):
        node.meta["val"] = node.meta["val"].new_empty(23)
    with pytest.raises(VerifyError, match="'item' has batch rows, the graph fixes them to 23"):
        verify(program)


def candidates(program: Program) -> list:
    placeholders = program.graph.find_nodes(op="placeholder")
    return [node for node in placeholders if str(node.target) in ("item", "shop")]
