"""Opening an artifact is light: where torch can't be imported, all is scored as with it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import opened
import pytest
import rankc
import torch
import two_sided
from rankc.optimizer.errors import ArtifactError, TargetError
from rankers import (
    EAGER_FP32,
    dlrm_inputs,
    optimized,
    small,
    small_inputs,
    two_tasks,
    two_tasks_inputs,
)
from torch import Tensor, nn

FP32 = rankc.Target.of("cpu-fp32")
FILE = dataclasses.replace(FP32, backends=("onnx",))


class Bags(nn.Module):
    """Ids of rows of different lengths, and a dense feature."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 8, mode="sum")
        self.out = nn.Linear(12, 1)

    def forward(self, dense: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.out(torch.cat([dense, self.bag(ids, offsets)], 1)).squeeze(1)


def made() -> dict[str, tuple[rankc.Artifact, tuple[Any, ...]]]:
    """Artifacts of each kind, and a batch of each."""
    sides, rows = two_sided.TwoSides(["concat"], 0).eval(), 9
    request = rankc.Request(two_sided.USER, precompute_items=True)
    user = [value[:1].expand(rows, *value.shape[1:]) for value in two_sided.inputs(rows)[:3]]
    bags = (torch.randn(4, 4), torch.randint(0, 50, (11,)), torch.tensor([0, 3, 3, 7]))
    return {
        "int8": (optimized("cpu-int8"), dlrm_inputs(70, 3)),
        "request": (
            rankc.optimize(sides, FP32, inputs=two_sided.inputs(8), request=request),
            (*user, two_sided.inputs(rows)[3]),
        ),
        "bags": (rankc.optimize(Bags().eval(), FP32, inputs=bags), bags),
        "tasks": (
            rankc.optimize(two_tasks(), FP32, inputs=(two_tasks_inputs(8, 0),)),
            (two_tasks_inputs(9, 1),),
        ),
        "file": (rankc.optimize(small(), FILE, inputs=small_inputs(8, 0)), small_inputs(9, 1)),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    place = tmp_path_factory.mktemp("opened")
    for name, (artifact, inputs) in made().items():
        artifact.save(place / name)
        call = dict(zip(artifact.manifest.arguments, inputs, strict=True))
        leaves = artifact.manifest.inputs.flatten(call)
        np.savez(place / f"{name}.npz", **{n: v.contiguous().numpy() for n, v in leaves.items()})
    return {path.stem: path for path in sorted(place.iterdir()) if path.is_dir()}


@pytest.fixture(scope="module")
def without(folders: Mapping[str, Path]) -> Any:
    """What a process without torch makes of each folder."""
    command = [sys.executable, opened.__file__, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_heavy_is_imported(without: Any) -> None:
    assert without["came"] == []


@pytest.mark.parametrize("name", ["bags", "file", "int8", "request", "tasks"])
def test_all_is_scored_and_told_as_with_torch(
    name: str, folders: Mapping[str, Path], without: Any
) -> None:
    found = without["results"][str(folders[name])]
    assert found == opened.uses(folders[name])
    assert "Error" not in found["called"]
    alike = ("called in order", "strided: called", "swapped: called", "read only: called")
    assert {found[form] for form in alike} == {found["called"]}
    assert found["swapped: run"] == found["swapped: session"] == found["as they are: run"]
    refused = [text for text in found.values() if "Error" in text]
    assert len(refused) > 20
    assert not [text for text in refused if "torch" in text and "Convert it" not in text]


@pytest.mark.parametrize("name", ["bags", "file", "int8", "tasks"])
def test_tensors_in_tensors_out(name: str, folders: Mapping[str, Path]) -> None:
    artifact = rankc.load(folders[name])
    arrays = dict(np.load(folders[name].with_suffix(".npz")))
    nest = artifact.manifest.inputs.unflatten
    scores = artifact(**nest({n: torch.from_numpy(v) for n, v in arrays.items()}))
    numpy = artifact(**nest(arrays))
    flat = artifact.manifest.outputs.flatten
    for given, wanted in zip(flat(scores).values(), flat(numpy).values(), strict=True):
        assert isinstance(given, Tensor)
        assert np.array_equal(given.numpy(), wanted)


def test_what_needs_torch_says_so(folders: Mapping[str, Path], tmp_path: Path) -> None:
    eager = rankc.optimize(small(), EAGER_FP32, inputs=small_inputs(4, 0)).save(tmp_path / "eager")
    shutil.copytree(folders["file"], tmp_path / "file")
    code = (
        "import sys, opened, rankc\n"
        "from rankc.optimizer.errors import ArtifactError, TargetError\n"
        "sys.meta_path.insert(0, opened.Block())\n"
        "for call in (\n"
        f"    lambda: rankc.load({str(eager)!r}, trust_code=True),\n"
        f"    lambda: rankc.load({str(tmp_path / 'file')!r}).benchmark((4,)),\n"
        "):\n"
        "    try:\n"
        "        call()\n"
        f"    except ({ArtifactError.__name__}, {TargetError.__name__}) as error:\n"
        "        print(error)\n"
    )
    here = str(Path(opened.__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "backend 'eager' needs torch, which isn't installed: pip install torch",
        "making rows up needs torch, which isn't installed: pip install torch",
    ]


@pytest.mark.parametrize("command", [["verify"], ["inspect", "--json"], ["explain"]])
def test_commands_that_read_do_not_import_torch(
    command: list[str], folders: Mapping[str, Path]
) -> None:
    code = (
        "import sys\nfrom rankc.optimizer.cli import main\ncode = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    arguments = [sys.executable, "-c", code, *command, str(folders["int8"])]
    subprocess.run(arguments, capture_output=True, check=True)
