"""A pass from another package, installed as users install it: nothing of rankc changes for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("rankc_example_pass")
SCRIPT = """
import json, sys
import rankc, rankc.models, torch
torch.manual_seed(0)
model = rankc.models.zoo()["dcnv2"]().eval()
pipeline = rankc.Pipeline.parse(sys.argv[1])
artifact = rankc.optimize(model, "cpu-fp32", pipeline=pipeline, strict=True)
report = artifact.report.to_json()
print(json.dumps({"spec": pipeline.spec(), **report}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    # A copy, so that the build leaves nothing in the repository.
    copy = shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "package")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(place)]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_it_runs_under_the_same_protocol_as_ours(installed: Path) -> None:
    done = run(installed, "-c", SCRIPT, "default,+example{max_sites=1}@after:canonicalize")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "canonicalize,example{max_sites=1},fixpoint(" in found["spec"]
    specs = [entry["spec"] for entry in found["passes"]]
    first, second = found["passes"][specs.index("canonicalize") :][:2]
    assert first["spec"] == "canonicalize"
    assert (second["spec"], second["outcome"]) == ("example{max_sites=1}", "changed")
    assert second["exactness"] == "exact"
    assert second["divergence"]["bit_equal"] is True
    said = [remark for remark in found["remarks"] if remark["pass_name"] == "example"]
    assert [(remark["kind"], remark["message"]) for remark in said] == [
        ("missed", "max_sites are done"),
        ("applied", "clamped 1 relus"),
    ]
    assert all(remark["sites"][0].startswith("deep.") for remark in said)


def test_without_it_the_name_is_unknown(tmp_path: Path) -> None:
    code = "import rankc; rankc.Pipeline.parse('default,+example@after:canonicalize')"
    done = run(tmp_path, "-c", code)
    assert done.returncode == 1
    assert "PipelineError: no pass is called 'example'; did you mean" in done.stderr
