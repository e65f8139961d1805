"""`rankc.optimize(request=…)` end to end: one artifact for requests and for flat batches."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import rankc
import torch
from rankc.models import zoo
from rankc.optimizer.cli import _parser, main
from rankc.optimizer.cli_arguments import request_of
from rankc.optimizer.errors import (
    ArtifactError,
    DataError,
    RankcError,
    SignatureError,
    TranslationError,
)
from rankc.optimizer.report.records import Kind
from rankc.optimizer.requests.entry import Entry
from rankers import EAGER, EAGER_FP32, LOOSE
from torch import Tensor, nn

FP32 = dataclasses.replace(rankc.Target.of("cpu-fp32"), backends=("onnxruntime",))
SHARED = ("user_dense", "user_ids", "user_history")
#: What the scores of both entries may differ by.
EQUAL = 1e-5


@functools.cache
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = zoo()["two-sided"]().eval()
        for table in made.item_tables:
            table.weight.data *= 10.0  # so that candidates differ
        return made


@functools.cache
def program() -> rankc.Program:
    return rankc.capture(model())


@functools.cache
def artifact() -> rankc.Artifact:
    return rankc.optimize(program(), FP32, request=rankc.Request())


def flat_inputs(count: int) -> dict[str, Tensor]:
    """Candidates of one user, who is given once for each."""
    (inputs,) = model().example_inputs(count)
    return {k: v[:1].expand_as(v).contiguous() if k in SHARED else v for k, v in inputs.items()}


def request_inputs(count: int) -> dict[str, Tensor]:
    """The same with the user given once."""
    return {k: v[:1] if k in SHARED else v for k, v in flat_inputs(count).items()}


@pytest.mark.parametrize("candidates", [1, 2, 65])
def test_a_request_is_scored_as_the_original_scores_it(candidates: int) -> None:
    with torch.no_grad():
        want = model()(flat_inputs(candidates))
    assert (artifact().request(request_inputs(candidates)) - want).abs().max() <= EQUAL
    assert (artifact().request(flat_inputs(candidates)) - want).abs().max() <= EQUAL
    assert (artifact()(flat_inputs(candidates)) - want).abs().max() <= EQUAL


def test_a_flat_batch_has_rows_of_many_users() -> None:
    (inputs,) = model().example_inputs(9)
    with torch.no_grad():
        want = model()(inputs)
    assert (artifact()(inputs) - want).abs().max() <= EQUAL


def test_saved_and_loaded_it_still_takes_requests(tmp_path: Path) -> None:
    loaded = rankc.load(artifact().save(tmp_path / "made"))
    want = artifact().request(request_inputs(5))
    assert torch.equal(loaded.request(request_inputs(5)), want)
    assert loaded.manifest.request == artifact().manifest.request
    arrays = {name: value.numpy() for name, value in request_inputs(5).items()}
    assert loaded.request(arrays).tolist() == want.tolist()
    assert loaded.run_request(arrays)["score"].tolist() == want.tolist()
    assert loaded.benchmark((4,), requests=True)[4].median > 0.0


def test_both_entries_read_their_tensors_from_one_file() -> None:
    files = artifact().manifest.files
    assert {"model.onnx", "model.onnx.data", "request.onnx"} <= set(files)
    tables = sum(t.weight.nbytes for t in model().modules() if isinstance(t, nn.Embedding))
    request = sum(f["bytes"] for name, f in files.items() if name.startswith("request.onnx.data"))
    assert request < 0.1 * tables


def test_the_report_says_what_is_shared_and_how_well_the_entries_agree() -> None:
    report = artifact().report
    assert isinstance(report, rankc.Report)
    assert any("they share user_dense, user_ids, user_history" in note for note in report.notes)
    said = [remark.message for remark in report.said(Kind.APPLIED, "share-user-side")]
    assert re.match(r"computed \d\d operators once a request", said[0])


def test_bad_requests_are_told() -> None:
    (inputs,) = model().example_inputs(4)
    with pytest.raises(DataError, match=r"'user_dense' is shared.*row 1 differs from row 0"):
        artifact().request(inputs)
    none = {k: v[:0] if k not in SHARED else v for k, v in request_inputs(4).items()}
    with pytest.raises(DataError, match="without candidates"):
        artifact().request(none)
    two = {**request_inputs(4), "user_dense": torch.zeros(2, 4)}
    with pytest.raises(SignatureError, match=r"'user_dense' has shape \[2, 4\], expected \[1, 4\]"):
        artifact().request(two)
    beyond = {**request_inputs(4), "user_ids": torch.full((1, 2), 99)}
    with pytest.raises(SignatureError, match="beyond its table"):
        artifact().request(beyond)


def test_an_artifact_for_flat_batches_says_how_to_get_requests() -> None:
    flat = rankc.optimize(program(), EAGER_FP32, pipeline="canonicalize")
    for call in (flat.request, flat.run_request):
        with pytest.raises(ArtifactError, match=r"rankc\.Request"):
            call(request_inputs(2))
    with pytest.raises(ArtifactError, match=r"rankc\.Request"):
        flat.benchmark((2,), requests=True)


def test_an_unknown_feature_is_told_before_anything_is_built() -> None:
    with pytest.raises(SignatureError, match=r"'user\.age'"):
        rankc.optimize(program(), FP32, request=rankc.Request(["user.age"]))


# --- candidates computed ahead --------------------------------------------------------------------


@functools.cache
def ahead() -> rankc.Artifact:
    request = rankc.Request(SHARED, precompute_items=True)
    return rankc.optimize(program(), FP32, request=request)


def test_what_is_computed_ahead_gives_the_same_scores(tmp_path: Path) -> None:
    inputs = request_inputs(7)
    user = {name: inputs[name] for name in SHARED}
    items = {name: inputs[name] for name in inputs if name not in SHARED}
    loaded = rankc.load(ahead().save(tmp_path / "made"))
    with torch.no_grad():
        want = model()(flat_inputs(7)).numpy()
    for made in (ahead(), loaded):
        vectors = made.precompute(items)
        assert all(len(vector) == 7 for vector in vectors.values())
        kept = {name: vector[[4, 0]] for name, vector in vectors.items()}
        assert abs(made.run_request({**user, **kept})["score"] - want[[4, 0]]).max() <= EQUAL
        assert abs(made.request(inputs).numpy() - want).max() <= EQUAL
    assert loaded.benchmark((4,), requests=True)[4].median > 0.0


def test_requests_compute_nothing_of_the_candidates_alone() -> None:
    assert ahead().manifest.request.ahead
    request = onnx.load(ahead().folder / "request.onnx", load_external_data=False)
    assert not {value.name for value in request.graph.input} & {"item_dense", "item_ids"}
    items = onnx.load(ahead().folder / "items.onnx", load_external_data=False)
    assert [value.name for value in items.graph.input] == ["item_dense", "item_ids"]
    assert {value.name for value in items.graph.output} == set(ahead().manifest.request.ahead)


def test_bad_candidates_are_told() -> None:
    with pytest.raises(SignatureError, match=r"\['item_dense'\] of the candidates are missing"):
        ahead().precompute({"item_ids": torch.zeros(2, 2, dtype=torch.int64)})
    beyond = {"item_ids": torch.full((2, 2), 999), "item_dense": torch.zeros(2, 3)}
    with pytest.raises(SignatureError, match="beyond its table"):
        ahead().precompute(beyond)
    with pytest.raises(ArtifactError, match="precompute_items=True"):
        artifact().precompute(beyond)


class OnlyProducts(nn.Module):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (user * item).sum(1)


def test_nothing_to_compute_ahead_is_told() -> None:
    request = rankc.Request(["user"], precompute_items=True)
    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    with pytest.raises(SignatureError, match="nothing to precompute"):
        rankc.optimize(
            OnlyProducts(), EAGER_FP32, inputs=inputs, request=request, pipeline="canonicalize"
        )


# --- with data ------------------------------------------------------------------------------------


def traffic(per_request: int = 20, requests: int = 100) -> list[rankc.Batch]:
    """Requests of some candidates each, with labels drawn from the model's scores."""
    count = per_request * requests
    (inputs,) = model().example_inputs(count)
    first = torch.arange(count) // per_request * per_request
    inputs = {k: v[first] if k in SHARED else v for k, v in inputs.items()}
    with torch.no_grad():
        labels = torch.rand(count, generator=torch.Generator().manual_seed(1))
        labels = (labels < torch.sigmoid(model()(inputs))).float()
    return [rankc.Batch(inputs, labels, group=first // per_request)]


def test_the_verdict_covers_requests_and_low_formats() -> None:
    found = rankc.optimize(
        program(),
        EAGER,
        data=traffic(requests=300),
        budget=LOOSE,
        request=rankc.Request(SHARED),
    )
    assert found.verdict.status is rankc.Status.PASS
    assert {site.chosen for site in found.report.sites} >= {"int8"}
    assert any("requests are scored as flat batches are" in note for note in found.report.notes)
    inputs = request_inputs(30)
    moved = (found.request(inputs) - found(flat_inputs(30))).abs().max()
    assert moved <= EQUAL


def test_a_shared_feature_that_varies_within_a_group_is_told_before_anything_is_built() -> None:
    (batch,) = traffic()
    batch.inputs["user_ids"][41, 1] += 1
    with pytest.raises(DataError, match=r"'user_ids' is called shared.*group\) 2: rows 4[0-2] and"):
        rankc.optimize(program(), EAGER, data=[batch], request=rankc.Request())


class WrongRequests:
    """Scores requests a little otherwise than flat rows."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, features: Any) -> Any:
        return {name: value * 1.05 for name, value in self._run(features).items()}


def test_entries_that_disagree_are_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = rankc.Artifact.open_request
    monkeypatch.setattr(
        rankc.Artifact, "open_request", lambda self, threads=None: WrongRequests(opened(self))
    )
    request, passes = rankc.Request(), "canonicalize"
    with pytest.raises(TranslationError, match="in a request of 49 candidates"):
        rankc.optimize(program(), EAGER_FP32, request=request, pipeline=passes)
    with pytest.raises(TranslationError, match="in a request of 49 candidates"):
        rankc.optimize(program(), EAGER_FP32, data=traffic(), request=request, pipeline=passes)


# --- the command line -----------------------------------------------------------------------------

MODEL = "rankc.models.two_sided:TwoSided.small"


def test_the_command_line_builds_shows_and_times_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = str(tmp_path / "out")
    more = ["--target", "cpu-fp32", "--pipeline", "canonicalize", "--out", out, "--quiet"]
    names = "user.dense, user_ids,user.history"
    assert main(["optimize", MODEL, "--request", names, *more]) == 0
    assert rankc.load(out).manifest.request == Entry(SHARED)
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    assert "user_dense, user_ids, user_history" in capsys.readouterr().out
    assert main(["bench", out, "--batch", "4", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"batch", "artifact", "request"}


def test_the_command_line_tells_an_unknown_feature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["optimize", MODEL, "--request", "user.age", "--out", str(out)]) == 1
    assert "no feature is called 'user.age'" in capsys.readouterr().err
    assert not out.exists()


def test_a_bare_request_shares_what_is_known_to_be_the_users() -> None:
    arguments = _parser().parse_args(["optimize", MODEL, "--out", "out", "--request"])
    assert request_of(arguments) == rankc.Request()
    assert request_of(_parser().parse_args(["optimize", MODEL, "--out", "out"])) is None
    more = ["optimize", MODEL, "--out", "out", "--precompute-items"]
    assert request_of(_parser().parse_args([*more, "--request"])) == rankc.Request(None, True)
    with pytest.raises(RankcError, match="give --request as well"):
        request_of(_parser().parse_args(more))
