"""Damages that were measured before: kept on disk, and refused for another model or other rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rankc
import torch
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.errors import CheckpointError
from rankc.optimizer.precision.probe_cache import Knowledge, Subject
from rankc.optimizer.report.records import SiteRecord
from rankers import EAGER, LOOSE, dlrm, dlrm_batches

SUBJECT = Subject("a" * 32, "b" * 32)
FINGERPRINTS = {"captured": SUBJECT.model, "rows": SUBJECT.rows}


def test_what_was_learned_is_there_after_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "new" / "probe.jsonl"
    known = Knowledge.open(path, SUBJECT)
    known.learn("top.0", "int8", {"score": 1e-5})
    known.learn("top.0", "int8-rows", {"score": 1e-6})
    with path.open("a") as file:
        file.write('{"site": "top.2", "reci')  # the run ended here
    again = Knowledge.open(path, SUBJECT)
    assert again.find("top.0", "int8") == {"score": 1e-5}
    assert again.find("top.0", "int8-rows") == {"score": 1e-6}
    assert again.find("top.2", "int8") is None


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject("c" * 32, "b" * 32), "was made with another model"),
        (Subject("a" * 32, "c" * 32), "was made with other rows"),
    ],
)
def test_another_subject_is_refused(subject: Subject, message: str, tmp_path: Path) -> None:
    Knowledge.open(tmp_path / "probe.jsonl", SUBJECT)
    with pytest.raises(CheckpointError, match=message):
        Knowledge.open(tmp_path / "probe.jsonl", subject)
    with pytest.raises(CheckpointError, match=message):
        Knowledge.of_artifact(FINGERPRINTS, (), subject)


@pytest.mark.parametrize("text", ["", "nothing", "{}", '{"model": 1}', "[]"])
def test_a_file_that_is_no_checkpoint_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="is no checkpoint of a probe"):
        Knowledge.open(path, SUBJECT)


IMPOSSIBLE = [
    '{"score": -1e-5}',
    '{"score": NaN}',
    '{"score": Infinity}',
    '{"score": "1e-5"}',
    "[1]",
]


@pytest.mark.parametrize("damage", IMPOSSIBLE)
def test_what_cannot_have_been_measured_is_told_by_its_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    known = Knowledge.open(path, SUBJECT)
    known.learn("top.0", "int8", {"score": 1e-5})
    with path.open("a") as file:
        file.write(f'{{"site": "top.2", "recipe": "int8", "damage": {damage}}}\n')
    known.learn("top.4", "int8", {"score": 0.0})
    with pytest.raises(CheckpointError, match=r"line 3.*Remove line 3: .* measured anew"):
        Knowledge.open(path, SUBJECT)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], *lines[3:], ""]))  # the remedy
    assert set(Knowledge.open(path, SUBJECT).damages) == {("top.0", "int8"), ("top.4", "int8")}


@pytest.mark.parametrize("damage", IMPOSSIBLE)
def test_an_artifact_that_says_what_cannot_be(damage: str) -> None:
    candidates = ({"format": "int8", "damage": json.loads(damage)},)
    site = SiteRecord("top.0", "linear", (8, 4), "int8", candidates)
    with pytest.raises(CheckpointError, match=r"report, site 'top.0'.*Optimize without it"):
        Knowledge.of_artifact(FINGERPRINTS, (site,), SUBJECT)


def test_an_artifact_whose_candidate_has_no_format() -> None:
    site = SiteRecord("top.0", "linear", (8, 4), "int8", ({"damage": {"score": 1e-5}},))
    with pytest.raises(CheckpointError, match=r"recipe is None, expected text"):
        Knowledge.of_artifact(FINGERPRINTS, (site,), SUBJECT)


def test_an_artifacts_damages_are_known() -> None:
    candidates = (
        {"format": "fp32", "damage": {}},
        {"format": "int8", "damage": {"score": 2e-5}},
    )
    site = SiteRecord("top.0", "linear", (8, 4), "int8", candidates)
    known = Knowledge.of_artifact(FINGERPRINTS, (site,), SUBJECT)
    assert known.damages == {("top.0", "int8"): {"score": 2e-5}}


def test_the_subject_is_the_model_and_the_rows() -> None:
    class Program:
        def fingerprint(self) -> str:
            return "model"

    one, other = Rows({"x": torch.arange(3)}), Rows({"x": torch.arange(1, 4)})
    first = Subject.of(Program(), one, other)  # type: ignore[arg-type]
    assert first == Subject.of(Program(), Rows({"x": torch.arange(3)}), other)  # type: ignore[arg-type]
    assert first != Subject.of(Program(), other, one)  # type: ignore[arg-type]


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sites whose damages are measured."""
    sites: list[str] = []
    learn = Knowledge.learn

    def told(known: Knowledge, site: str, *rest: Any) -> None:
        sites.append(site)
        learn(known, site, *rest)

    monkeypatch.setattr(Knowledge, "learn", told)
    return sites


def test_another_budget_measures_nothing_again(learned: list[str]) -> None:
    first = rankc.optimize(dlrm(), EAGER, data=dlrm_batches(), budget=LOOSE)
    assert {"bottom.0", "tables.0"} & set(learned)
    learned.clear()
    wider = rankc.Budget(ne=4e-2)
    again = rankc.replan(first, dlrm(), data=dlrm_batches(), budget=wider, target=EAGER)
    assert learned == []
    assert again.verdict.status is rankc.Status.PASS
    assert "0.04" in again.manifest.budget
    with pytest.raises(CheckpointError, match="made with other rows"):
        rankc.replan(first, dlrm(), data=dlrm_batches()[1:], budget=wider, target=EAGER)


def test_a_checkpoint_is_gone_on_from(learned: list[str], tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    first = rankc.optimize(dlrm(), EAGER, data=dlrm_batches(), budget=LOOSE, checkpoint=path)
    learned.clear()
    again = rankc.optimize(dlrm(), EAGER, data=dlrm_batches(), budget=LOOSE, checkpoint=path)
    assert learned == []
    assert [s.chosen for s in again.sites] == [s.chosen for s in first.sites]
