"""`make gpu-check` runs every step at toy sizes on the CPU, with torch alone of rankc's needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
CHECK = ROOT / "benchmarks" / "gpu" / "check.py"
#: Hides what a GPU machine may not have, then runs the command.
_LEAN = """
import runpy, sys

for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "scipy", "rich"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_every_step_runs_dry_with_torch_alone(tmp_path: Path) -> None:
    sections = ["device", "gemms", "sharing", "models"]
    arguments = ["--dry", "--out", str(tmp_path), "--only", ",".join(sections)]
    done = subprocess.run(
        [sys.executable, "-c", _LEAN, str(CHECK), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu-dry.json").read_text())
    assert list(found["sections"]) == sections
    assert found["skipped"] == {}
    assert {row["model"] for row in found["sections"]["models"]} == {
        "dhen",
        "dlrm-dcnv2",
        "wukong",
    }
    for row in found["sections"]["models"]:
        assert {"bf16", "mixed", "fp8-tensor", "int8-rows"} <= set(row["seconds"])
    for row in found["sections"]["gemms"]:
        assert row["refused"] == {}
    assert max(found["sections"]["sharing"]["off"].values()) <= 1e-5
    assert "shows that the steps run, and no speed" in (tmp_path / "gpu-dry.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CHECK), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0
    assert "no GPU here" in done.stdout
    assert list(tmp_path.iterdir()) == []
