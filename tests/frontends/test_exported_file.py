""".pt2 files as models: ours, and anyone's ``torch.export.save``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rankc
import torch
from rankc import models
from rankc.optimizer.errors import CaptureError, SignatureError
from rankc.optimizer.ir import verify
from support import run_passes
from torch import Tensor, nn

BATCH = torch.export.Dim("batch", min=1)


class Nested(nn.Module):
    """Takes a tensor, a dict and a flag; returns a dict with a list and None in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 2)
        self.table = nn.Embedding(10, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, ids: dict[str, Tensor], *, double: bool = True) -> dict[str, Any]:
        hidden = self.drop(self.first(x) + self.table(ids["user"]))
        score = hidden.sum(1)
        if double:
            score = score * 2
        return {"click": torch.sigmoid(score), "nothing": None, "hidden": [hidden]}


def inputs(size: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(10, (size,), generator=generator)
    return torch.randn(size, 3, generator=generator), {"user": ids}


def saved(folder: Path, model: nn.Module, dynamic: bool = True) -> Path:
    shapes = {"x": {0: BATCH}, "ids": {"user": {0: BATCH}}, "double": None}
    exported = torch.export.export(
        model, inputs(5), {"double": False}, dynamic_shapes=shapes if dynamic else None
    )
    torch.export.save(exported, folder / "foreign.pt2")
    return folder / "foreign.pt2"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pt2"), Nested().eval())


def test_anyones_program_is_called_as_it_was(foreign: Path) -> None:
    program = rankc.capture(foreign, trust_code=True)
    verify(program)
    assert program.arguments == ("x", "ids", "double")
    assert program.signature.names == ("x", "ids_user")
    assert program.signature.outputs == ("click", "hidden_0")
    assert program.signature.feature("ids_user").cardinalities == (10,)
    model = Nested().eval()
    for size in (1, 3, 64):
        got, want = program(*inputs(size), double=False), model(*inputs(size), double=False)
        assert got.keys() == want.keys()
        assert got["nothing"] is None
        torch.testing.assert_close(got["click"], want["click"])
        torch.testing.assert_close(got["hidden"][0], want["hidden"][0])
    with pytest.raises(SignatureError, match="part of the program"):
        program(*inputs(3), double=True)


def test_its_parameters_keep_their_names_and_passes_run(foreign: Path) -> None:
    program = rankc.capture(foreign, trust_code=True)
    assert {name for name, _ in program.tensors()} == {
        "first.weight",
        "first.bias",
        "table.weight",
    }
    rounded = run_passes(program, "rounding").program
    torch.testing.assert_close(
        rounded(*inputs(7), double=False)["click"], program(*inputs(7), double=False)["click"]
    )


def test_a_model_of_the_zoo_is_optimized(tmp_path: Path) -> None:
    model = models.zoo()["dlrm"]().eval()
    shapes = tuple({0: BATCH} for _ in model.example_inputs())
    exported = torch.export.export(model, model.example_inputs(), dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "dlrm.pt2")
    artifact = rankc.optimize(str(tmp_path / "dlrm.pt2"), "cpu-fp32", trust_code=True)
    example = model.example_inputs(9)
    with torch.no_grad():
        torch.testing.assert_close(artifact(*example), model(*example), atol=1e-5, rtol=0)


def test_what_rankc_saved_comes_back(foreign: Path, tmp_path: Path) -> None:
    program = rankc.capture(foreign, trust_code=True)
    program.save(tmp_path / "own.pt2")
    again = rankc.capture(tmp_path / "own.pt2", trust_code=True)
    assert again.signature == program.signature
    renamed = rankc.capture(tmp_path / "own.pt2", outputs=("ctr", "inner"), trust_code=True)
    assert renamed.signature.outputs == ("ctr", "inner")


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"fixed batch: input 'x' is \[5, 3\].*dynamic_shapes"):
        rankc.capture(saved(tmp_path, Nested().eval(), dynamic=False), trust_code=True)


def test_training_mode_is_told(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"training mode.*model\.eval\(\)"):
        rankc.capture(saved(tmp_path, Nested().train()), trust_code=True)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_text("x = 1")
    with pytest.raises(CaptureError, match="is damaged"):
        rankc.capture(tmp_path / "model.pt2")
