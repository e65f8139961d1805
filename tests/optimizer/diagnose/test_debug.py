"""`rankc.debug`: a model against its artifact, from memory, from a folder, from the shell."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import rankc
import torch
from rankc.optimizer.cli import main
from rankc.optimizer.errors import ArtifactError, DataError
from rankers import EAGER, dlrm, dlrm_batches, optimized, two_tasks, two_tasks_inputs
from torch import Tensor, nn


def test_an_artifact_in_memory() -> None:
    found = rankc.debug(dlrm(), optimized(EAGER), dlrm_batches(), rows=200)
    assert found.rows == 200
    assert 0.0 < found.shift["score"] < 0.1
    assert found.runtime == {"score": 0.0}
    assert found.worst is not None
    assert found.worst.formats


def test_a_folder_of_onnx(tmp_path: Path) -> None:
    folder = optimized("cpu-int8").save(tmp_path / "out")
    found = rankc.debug(dlrm(), folder, dlrm_batches())
    assert found.rows == 512
    assert found.worst is not None
    assert found.worst.site in {"bottom.0", "bottom.2", "top.0", "top.2"}
    assert found.runtime["score"] < found.shift["score"]
    assert "the runtime itself shifts them by" in found.summary


def test_a_program_and_made_up_rows() -> None:
    program = rankc.capture(dlrm(), dlrm_batches()[0].inputs)
    found = rankc.debug(program, program.clone(), rows=16)
    assert (found.rows, found.worst, found.runtime) == (16, None, {})


def test_from_the_shell(tmp_path: Path, capsys: Any) -> None:
    optimized(EAGER).save(tmp_path / "out")
    line = ["debug", str(tmp_path / "out"), "--against", "rankers:dlrm"]
    assert main([*line, "--rows", "64"]) == 1
    assert "holds code, which opening it would run" in capsys.readouterr().err
    line.append("--trust-code")
    assert main([*line, "--rows", "64"]) == 0
    said = capsys.readouterr().out
    assert "64 rows in lock-step" in said
    assert "scores shift by" in said
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 512
    assert main([*line, "--rows", "1"]) == 1
    assert "--rows takes a number of at least 2" in capsys.readouterr().err


def test_two_models_without_an_output_in_common() -> None:
    other = rankc.capture(two_tasks(), (two_tasks_inputs(4, 0),))
    with pytest.raises(DataError, match="no output in common"):
        rankc.debug(dlrm(), other, dlrm_batches())


class OneTable(nn.Module):
    """A ranker of some size, to be held against one of another."""

    def __init__(
        self, ids: int = 50, dense: int = 6, lists: bool = False, wide: bool = False
    ) -> None:
        super().__init__()
        self.table, self.over = nn.Embedding(ids, 4), nn.Linear(dense + 4, 1)
        self.lists, self.wide = lists, wide

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        looked_up = self.table(ids).mean(1) if self.lists else self.table(ids)
        found: Tensor = self.over(torch.cat([dense, looked_up], -1))
        return found if self.wide else found.squeeze(-1)


class DenseOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Linear(6, 1)

    def forward(self, dense: Tensor) -> Tensor:
        found: Tensor = self.over(dense)
        return found.squeeze(-1)


DENSE, IDS = torch.arange(24.0).reshape(4, 6) % 5, torch.arange(4)
FIRST = rankc.capture(OneTable().eval(), (DENSE, IDS))


@pytest.mark.parametrize(
    ("second", "inputs", "said"),
    [
        (OneTable(ids=20), (DENSE, IDS), "'ids' has ids beyond its table of 20 rows in .* rows"),
        (
            OneTable(dense=4),
            (DENSE[:, :4], IDS),
            r"has shape \[512, 6\], expected \[batch, 4",
        ),
        (OneTable(lists=True), (DENSE, IDS.expand(3, 4).T), r"'ids' has shape \[512\], expected"),
        (OneTable().double(), (DENSE.double(), IDS), "'dense' is float32, expected float64"),
        (
            OneTable(wide=True),
            (DENSE, IDS),
            r"compared: score \[512\] of the first, score \[",
        ),
    ],
)
def test_models_that_take_or_give_other_shapes(
    second: nn.Module, inputs: tuple[Tensor, ...], said: str
) -> None:
    other = rankc.capture(second.eval(), inputs)
    with pytest.raises(DataError, match=said):
        rankc.debug(FIRST, other)


def test_a_feature_that_only_the_second_model_takes() -> None:
    dense_only = rankc.capture(DenseOnly().eval(), (DENSE,))
    with pytest.raises(DataError, match=r"it takes \['ids'\], which the first doesn't have"):
        rankc.debug(dense_only, FIRST)
    assert rankc.debug(FIRST, dense_only).rows == 512


def test_rows_that_both_models_take_are_compared() -> None:
    smaller = rankc.capture(OneTable(ids=20).eval(), (DENSE, IDS))
    with pytest.raises(DataError, match="data= may give rows that both take"):
        rankc.debug(FIRST, smaller)
    assert rankc.debug(FIRST, smaller, [((DENSE, IDS), None)]).rows == 4


def test_other_weights_are_told() -> None:
    other = copy.deepcopy(dlrm())
    with torch.no_grad():
        other.top[0].weight.mul_(1.5)
    found = rankc.debug(other, optimized(EAGER), dlrm_batches(), rows=64)
    assert "made from another program: are these the weights" in found.summary
    assert "another program" not in str(rankc.debug(dlrm(), optimized(EAGER), dlrm_batches()))


def test_an_artifact_without_a_graph(tmp_path: Path) -> None:
    artifact = optimized(EAGER)
    folder = artifact.save(tmp_path / "out")
    loaded = rankc.load(str(folder), trust_code=True)
    (folder / "model.pt2").unlink()
    with pytest.raises(ArtifactError, match="writes no graph that can be read back"):
        rankc.debug(dlrm(), loaded, dlrm_batches())
