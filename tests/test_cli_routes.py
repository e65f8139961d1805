"""``--verbose`` prints what each way of capturing a model said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rankc.optimizer.cli import main

_SOURCE = """
import torch
from torch import nn


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x.sum(1)
        return x.mean(1)

    def example_inputs(self):
        return torch.ones(3, 4)
"""


@pytest.mark.parametrize(
    "arguments", [["optimize", "branching_ranker:Branching", "--out", "new"], ["doctor"]]
)
def test_routes_are_shown_when_asked_for(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "branching_ranker.py").write_text(
        _SOURCE + "\n\ndef model():\n    return Branching().eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("branching_ranker", None)
    place = "branching_ranker:model"
    command = [arguments[0], place, *arguments[2:]]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "tried: " not in printed.out + printed.err
    assert main(["--verbose", *command]) == 1
    printed = capsys.readouterr()
    said = printed.out + printed.err
    for route in ("export", "all rows", "strict", "trace"):
        assert f"tried: {route}: " in said
