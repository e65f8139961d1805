"""Plug-ins of other packages, installed as users install them: nothing of rankc changes for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = tuple(
    Path(__file__).with_name(f"rankc_example_{kind}") for kind in ("pass", "backend", "measure")
)
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
    # Copies, so that the builds leave nothing in the repository.
    above = tmp_path_factory.mktemp("source")
    copies = [str(shutil.copytree(source, above / source.name)) for source in SOURCES]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(place)]
    done = subprocess.run([*command, *copies], capture_output=True, text=True, check=False)
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


BACKEND = """
import sys
from dataclasses import replace
import rankc, torch
from rankc.optimizer.target import TARGETS
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.hidden = nn.Linear(7, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, item, dense):
        joined = torch.cat([self.table(item), dense], -1)
        return self.last(torch.relu(self.hidden(joined))).squeeze(-1)

torch.manual_seed(0)
model = Small()
inputs = (torch.randint(0, 50, (5,)), torch.randn(5, 3))
target = replace(TARGETS["cpu-fp32"], backends=("example-numpy", "onnxruntime"), measured=False)
strict = sys.argv[1] == "strict"
try:
    artifact = rankc.optimize(model, target, inputs=inputs, pipeline="canonicalize", strict=strict)
except rankc.RankcError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit()
artifact.save(sys.argv[2])
again = rankc.load(sys.argv[2])
with torch.no_grad():
    assert (again(*inputs) - model(*inputs)).abs().max() < 1e-6
print(artifact.manifest.backend, sorted(artifact.manifest.files))
print([note for note in artifact.report.notes if "not served" in note])
"""


def test_a_backend_builds_is_compared_saves_and_loads(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "-c", BACKEND, "strict", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "example-numpy ['program.json', 'weights.npz']"
    assert second == "[]"


def test_a_backend_that_cant_be_loaded_is_named_and_the_others_work(tmp_path: Path) -> None:
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    point = "[rankc.backends]\nexample-numpy = no_such_module:Numpy\n"
    (info / "entry_points.txt").write_text(point)
    said = "backend 'example-numpy' of the package broken can't be loaded from no_such_module:Numpy"
    done = run(tmp_path / "site", "-c", BACKEND, "lenient", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("onnxruntime ['")
    assert said in done.stdout
    done = run(tmp_path / "site", "-c", BACKEND, "strict", str(tmp_path / "other"))
    assert done.stdout.startswith(f"PluginError: {said}")


MEASURE = """
import json, sys
import numpy as np
import rankc, torch
from torch import nn

class Auction(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(300, 8)
        self.hidden = nn.Linear(9, 16)
        self.last = nn.Linear(16, 1)

    def forward(self, item, bid):
        joined = torch.cat([self.table(item), torch.log1p(bid).unsqueeze(-1)], -1)
        return self.last(torch.relu(self.hidden(joined))).squeeze(-1)

torch.manual_seed(0)
model = Auction()
requests, candidates = 600, 10
count = requests * candidates
item, bid = torch.randint(0, 300, (count,)), torch.rand(count) * 5
with torch.no_grad():
    labels = (torch.rand(count) < torch.sigmoid(model(item, bid))).float()
request = torch.arange(count) // candidates
data = [rankc.Batch((item, bid), labels, group=request)]
try:
    budget = rankc.Budget(ne=1e-2, measures=json.loads(sys.argv[1]))
    assert rankc.Budget.parse(budget.spec()) == budget
    assert rankc.Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
    artifact = rankc.optimize(model, "cpu-int8", data=data, budget=budget)
except rankc.RankcError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit()
artifact.save(sys.argv[2])
again = rankc.load(sys.argv[2])
(task,) = again.verdict.tasks
found = [check for check in task.checks if check.name == "revenue-at-3"]
print(json.dumps({
    "status": again.verdict.status.value,
    "check": [[c.measure, c.limit, c.share, c.interval.by, c.interval.low, c.interval.high]
              for c in found],
    "text": str(again.verdict),
    "report": json.loads((artifact.folder / "report.json").read_text())["verdict"]["tasks"][0]
    if (artifact.folder / "report.json").exists() else None,
    "budget": again.manifest.budget,
}))
"""


def test_a_measure_is_limited_judged_and_kept_like_ours(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "-c", MEASURE, '{"revenue-at-3": 0.05}', str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "pass"
    ((name, limit, share, by, low, high),) = found["check"]
    assert (name, limit, share) == ("revenue-at-3", 0.05, True)
    assert "group" in by or "time" in by
    assert low <= high <= 0.05
    assert "revenue-at-3 lost" in found["text"]
    assert "revenue-at-3=0.05" in found["budget"]


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ('{"not-a-number": 0.1}', "DataError: measure 'not-a-number' is nan in row 7"),
        (
            '{"unheard-of": 0.1}',
            "BudgetError: budget 'unheard-of=0.1': expected limit=value with a limit of ne, auc,",
        ),
    ],
)
def test_a_measure_that_cant_be_had_is_named(installed: Path, measures: str, said: str) -> None:
    done = run(installed, "-c", MEASURE, measures, "nowhere")
    assert done.stdout.startswith(said), done.stdout + done.stderr
