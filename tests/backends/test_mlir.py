"""MLIR: four dialects as text, and IREE's scores beside the program's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from placed import coded, optimized, with_coded_tables
from rankc import models
from rankc.backends import mlir
from rankc.backends.mlir import Mlir
from rankc.frontends.export import capture
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import ArtifactError, TargetError, UnsupportedError
from rankc.optimizer.ir import Program
from rankc.optimizer.target import Target
from torch import Tensor, nn

pytest.importorskip("torch_mlir")
pytest.importorskip("iree.compiler")
TARGET = Target.of("mlir-cpu")
PARITY = 1e-5
#: One model in the quick tests; the others take 2 to 12 seconds each.
QUICK = "dlrm"


def worst(program: Program, folder: Path) -> float:
    """The largest difference of a score from the program's, over several batches."""
    run = Mlir().open(folder, 1)
    found = []
    for rows in (1, 7, 64):
        features = synthesize(program.signature, rows, rows).features
        want = program.run(features)
        got = run({key: value.numpy() for key, value in features.items()})
        assert tuple(got) == program.signature.outputs
        found += [float(abs(got[key] - value.numpy()).max()) for key, value in want.items()]
    return max(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.zoo() if name != QUICK])
def test_parity_on_the_zoo(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = optimized(name)

    def compiled_only(program: Program, names: tuple[str, ...], fixed: int) -> Any:
        lifted = mlir._lifted(program, names, None, bits=True)
        return {"torch": mlir._text(lifted, "torch", program)}, []

    monkeypatch.setattr(mlir, "_texts", compiled_only)
    Mlir().build(program, TARGET, tmp_path, {})
    assert worst(program, tmp_path) <= PARITY


def test_parity_and_what_is_written(tmp_path: Path) -> None:
    program = with_coded_tables(optimized(QUICK))
    built = Mlir().build(program, TARGET, tmp_path, {"rankc.batch_sizes": "8,32"})
    assert worst(program, tmp_path) <= PARITY
    assert sorted(built.files) == sorted(path.name for path in tmp_path.iterdir())
    for name in ("torch", "linalg", "stablehlo", "tosa"):
        text = (tmp_path / f"model.{name}.mlir").read_text()
        assert "rankc" not in text.replace("rankc-", "")
        assert "dense_resource" not in text
        assert len(text) < 200_000
    assert "batch of 32" in "".join(built.notes)
    assert built.versions["torch-mlir"] == "20261001"


def test_weights_are_arguments_in_a_file_of_their_own(tmp_path: Path) -> None:
    program = optimized(QUICK)
    Mlir().build(program, TARGET, tmp_path, {})
    contract = json.loads((tmp_path / "arguments.json").read_text())
    assert [a["name"] for a in contract["arguments"]] == [name for name, _ in program.tensors()]
    assert contract["features"] == list(program.signature.names)
    assert (tmp_path / "model.vmfb").stat().st_size < program.nbytes + 500_000


@pytest.mark.parametrize("number_format", ["fp8", "int8"])
def test_codes_are_carried(number_format: str, tmp_path: Path) -> None:
    program, planned = coded(optimized(QUICK), number_format)
    assert planned
    Mlir().build(program, TARGET, tmp_path, {})
    # A value within a rounding of half a step may take the other code; none does here.
    assert worst(program, tmp_path) <= PARITY
    text = (tmp_path / "model.linalg.mlir").read_text()
    assert ("f8E4M3FN" if number_format == "fp8" else "i8") in text


class Refused(nn.Module):
    """Uses an operator no dialect has."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(4, 3)
        self.special = _Bessel()

    def forward(self, x: Tensor) -> Tensor:
        return self.special(self.tower(x)).sum(1)


class _Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_without_a_form_is_named(tmp_path: Path) -> None:
    program = capture(Refused().eval(), torch.zeros(2, 4))
    with pytest.raises(
        UnsupportedError,
        match=r"torch has no form for aten.special_bessel_j0.default, used at special",
    ):
        Mlir().build(program, TARGET, tmp_path, {})


def test_missing_packages_are_told_by_their_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Mlir().missing() == 'pip install "rankc[mlir]"'
    with pytest.raises(TargetError, match="pip install"):
        Mlir().build(optimized(QUICK), TARGET, tmp_path, {})
    with pytest.raises(ArtifactError, match="needs IREE: pip install"):
        Mlir().open(tmp_path)


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "arguments.json").write_text("{}")
    (tmp_path / "model.vmfb").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"model.vmfb can't be opened"):
        Mlir().open(tmp_path)
