"""``rankc doctor``: what it prints, and that nothing makes it die."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from rankc.optimizer.cli import main
from rankers import small_inputs

_SOURCE = """
import torch
from rankers import SmallWithExample, small

def model():
    return small(SmallWithExample)

class Branching(SmallWithExample):
    def forward(self, dense, ids):
        if dense.sum() > 0:
            dense = dense * 2
        return super().forward(dense, ids)

def branching():
    return small(Branching)

def raising():
    raise KeyError("checkpoint")

def leaving():
    raise SystemExit(3)

def nothing():
    return None

def needing(config, *, size=3):
    return model()

def with_example():
    return model(), ()

def the_class():
    return SmallWithExample

def giving_up():
    raise BaseException("no more")

def deep():
    return deep()

def printing():
    print("building")
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    return model()

def spread():
    return torch.nn.DataParallel(model())

class Broken(SmallWithExample):
    def example_inputs(self):
        raise RuntimeError("no table")

def broken():
    return small(Broken)

class Plain(SmallWithExample):
    pass

def plain():
    made = small(Plain)
    made.example_inputs = made.example_inputs()
    return made
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "doctor_ranker.py").write_text(_SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    yield
    sys.modules.pop("doctor_ranker", None)


def test_a_healthy_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "doctor_ranker:model"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in ("capture", "exact passes", "rounding passes", "build and parity", "table", "32 ×"):
        assert part in printed.out
    assert "no Loop, Sequence or If nodes" in printed.out
    assert printed.out.endswith("everything would work\n")


def test_json_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, ids = (value.numpy() for value in small_inputs(100, seed=1))
    columns = {"dense": list(dense), "ids": ids, "clicked": np.arange(100) % 2}
    pandas.DataFrame(columns).to_parquet(tmp_path / "rows.parquet")
    data = ["--data", str(tmp_path / "rows.parquet"), "--label", "clicked"]
    assert main(["doctor", "doctor_ranker:model", *data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    stages = {stage["name"]: stage["message"] for stage in found["stages"]}
    assert stages["data"] == "100 rows, labels"
    kinds = {finding["site"]: finding for finding in found["findings"]}
    assert kinds["table"]["format"] == "int8"
    assert kinds["table"]["nbytes"] == 300 * 16 * 4
    assert kinds["last"]["format"] == "float32"
    assert "fewer than 16" in kinds["last"]["reason"]
    assert found["signature"]["features"][0]["name"] == "dense"


def test_data_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path / "gone.parquet")]
    assert main(["doctor", "doctor_ranker:model", *data]) == 1
    printed = capsys.readouterr().out
    assert "gone.parquet is not a file" in printed.replace("\n", "")
    assert "build and parity" in printed


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("nowhere:model", "can't be imported"),
        ("doctor_ranker:gone", "can't be imported"),
        ("doctor_ranker:nothing", "gives a NoneType"),
        ("doctor_ranker:branching", "control flow"),
        ("doctor_ranker:raising", r"doctor_ranker.py:\d+ `raise KeyError\("),
        ("doctor_ranker:raising", "unexpected KeyError: 'checkpoint' at "),
        ("doctor_ranker:leaving", "unexpected SystemExit: 3"),
        ("doctor_ranker:giving_up", "unexpected BaseException: no more"),
        ("doctor_ranker:deep", "unexpected RecursionError: maximum recursion depth"),
        ("doctor_ranker:broken", "at .*`raise RuntimeError"),
        ("doctor_ranker:needing", r"needs arguments \(config\), and is called without any"),
        ("doctor_ranker:with_example", "gives a tuple.* Return the model alone"),
        ("doctor_ranker:the_class", "gives a type.* Return the class's instance"),
        ("model.onnx", "is not a file"),
    ],
)
def test_a_sick_one(model: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", model, "--json"]) == 1
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert (stage["name"], stage["ok"]) == ("capture", False)
    assert re.search(part, stage["message"])


@pytest.mark.parametrize("factory", ["printing", "spread", "plain"])
def test_odd_factories_of_sound_models(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"doctor_ranker:{factory}", "--json"]) == 0
    torch.set_grad_enabled(True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ok"] is True
    assert printed.err == ("building\n" if factory == "printing" else "")


def test_the_traceback_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "doctor_ranker:raising"]) == 1
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    assert "--verbose shows where" in printed
    for arguments in (["--verbose", "doctor"], ["doctor", "--verbose"]):
        assert main([*arguments, "doctor_ranker:raising"]) == 1
        assert "doctor_ranker.py" in capsys.readouterr().out


def test_an_unknown_target_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "doctor_ranker:model", "--target", "cpu-int9"]) == 1
    assert "did you mean cpu-int8" in capsys.readouterr().err


def test_ids_with_offsets_are_checked_at_every_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bagged.py").write_text(
        "import torch\n"
        "from torch import nn\n\n\n"
        "class Bagged(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bag, self.score = nn.EmbeddingBag(50, 8), nn.Linear(8, 1)\n\n"
        "    def forward(self, ids, offsets):\n"
        "        return self.score(self.bag(ids, offsets))\n\n"
        "    def example_inputs(self):\n"
        "        return torch.arange(6), torch.tensor([0, 2, 2])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["doctor", "bagged:Bagged"]) == 0
    assert "everything would work" in capsys.readouterr().out
