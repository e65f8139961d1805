"""The command line: what it prints, where, and what it exits with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas
import pytest
import rankc
import torch
from rankc.optimizer import driver
from rankc.optimizer.cli import main
from rankc.optimizer.pipeline import registry as pass_registry
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.target import TARGETS
from rankers import SmallWithExample, contents, drawn_labels, small, small_inputs

#: What ``rankc optimize`` is given as pkg.module:factory.
MODEL = "cli_ranker:model"
_SOURCE = """
from rankers import SmallWithExample, small

def model():
    return small(SmallWithExample)

def without_example():
    return small()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's module, a parquet file of rows, and an artifact made of both."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "cli_ranker.py").write_text(_SOURCE)
    inputs = small_inputs(3000, seed=1)
    clicks = drawn_labels(small(SmallWithExample), inputs)
    dense, ids = (value.numpy() for value in inputs)
    columns = {
        "dense": list(dense),
        "ids": ids,
        "clicked": clicks.numpy(),
        "user": np.arange(3000) // 3,
        "country": np.where(np.arange(3000) % 2, "nl", "be"),
    }
    pandas.DataFrame(columns).to_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model can be imported, and tables are wide enough to be read."""
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("COLUMNS", "200")
    yield
    sys.modules.pop("cli_ranker", None)


@pytest.fixture(scope="module")
def out(place: Path) -> Path:
    """The artifact of the first test, for the commands that take one."""
    folder = place / "artifact"
    if not folder.exists():
        sys.path.insert(0, str(place))
        try:
            assert main([*optimize(place, folder), "--quiet"]) == 0
        finally:
            sys.path.remove(str(place))
    return folder


def optimize(place: Path, out: Path, *more: str) -> list[str]:
    """``rankc optimize`` with data."""
    data = ["--data", str(place / "rows.parquet"), "--label", "clicked"]
    return ["optimize", MODEL, *data, "--budget", "ne=0.02", "--out", str(out), *more]


# --- optimize -------------------------------------------------------------------------------------


def test_optimize_prints_the_report_and_saves(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--group", "user", "--cohort", "country", "--seed", "5", "--batch", "8,16"]
    assert main(optimize(place, tmp_path / "out", *more)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in ("PASS on 1,680 rows", "quantize-tables", "seconds", "worst cohort country="):
        assert part in printed.out
    assert f"saved to {tmp_path / 'out'}" in printed.out.replace("\n", "")
    loaded = rankc.load(str(tmp_path / "out"))
    assert loaded.verdict.status is rankc.Status.PASS
    assert loaded.verdict.delta_ne["score"].clusters == 560
    assert (loaded.manifest.target, loaded.manifest.seed) == ("cpu-int8", 5)
    assert loaded.manifest.batch_sizes == (8, 16)
    assert loaded(*small_inputs(4, seed=0)).shape == (4,)


def test_optimize_is_what_the_library_does(place: Path, out: Path, tmp_path: Path) -> None:
    rows = rankc.Parquet(place / "rows.parquet", ("clicked",))
    artifact = rankc.optimize(
        small(SmallWithExample), "cpu-int8", data=rows, budget=rankc.Budget(ne=0.02)
    )
    artifact.save(tmp_path / "library")
    assert contents(tmp_path / "library") == contents(out)


def eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds a target, ``quick``, that needs no ONNX export."""
    quick = rankc.Target("quick", TARGETS["cpu-fp32"].device, backends=("eager",))
    monkeypatch.setitem(TARGETS, "quick", quick)


def test_optimize_json_is_one_document(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    eagerly(monkeypatch)
    assert main(optimize(place, tmp_path / "out", "--target", "quick", "--json")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    report = json.loads(printed.out)
    assert report["verdict"]["status"] == "pass"
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())


def test_optimize_quiet_prints_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    eagerly(monkeypatch)
    arguments = ["optimize", MODEL, "--target", "quick", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("UNVERIFIED: no rows to measure on\n")
    assert "passes" not in printed.out
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_optimize_disables_and_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eagerly(monkeypatch)
    more = ["--disable", "fold-constants", "--disable", "eliminate", "--pipeline", "exact"]
    dump = ["--dump", str(tmp_path / "dump"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["optimize", MODEL, "--target", "quick", *more, *dump]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [record["spec"] for record in report["passes"]] == ["canonicalize"]
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names == ["001-canonicalize.diff", "001-canonicalize.txt"]


def test_an_existing_folder_is_refused_before_any_work(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr(driver, "optimize", work)
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file", tmp_path / "file" / "out"):
        assert main(optimize(place, taken)) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: {taken} ")


def test_over_budget_exits_with_2(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = optimize(place, tmp_path / "out", "--target", "cpu-fp32", "--pipeline", "exact")
    arguments[arguments.index("ne=0.02")] = "ne=0"
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no program is within ne=0")
    assert "smallest reachable ΔNE" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["optimize", "nowhere:model"], "'nowhere:model' can't be imported"),
        (["optimize", "cli_ranker:without_example"], "example_inputs()"),
        (["optimize", "model.pt2"], "model.pt2 is not a file"),
        (["optimize", MODEL, "--target", "cpu-int9"], "did you mean cpu-int8"),
        (["optimize", MODEL, "--budget", "nee=1"], "expected limit=value"),
        (["optimize", MODEL, "--batch", "0"], "--batch takes positive numbers"),
        (["optimize", MODEL, "--batch", "a,b"], "--batch takes positive numbers"),
        (["optimize", MODEL, "--pipeline", "defalt"], "did you mean"),
        (["optimize", MODEL, "--data", "gone.parquet"], "gone.parquet is not a file"),
        (["optimize", MODEL, "--data", "ROWS", "--label", "click"], "has no column ['click']"),
        (
            ["optimize", MODEL, "--data", "ROWS", "--label", "a=clicked", "--label", "b=user"],
            "unknown tasks ['a', 'b']",
        ),
        (["inspect", "gone"], "gone is no artifact"),
        (["bench", "gone"], "gone is no artifact"),
        (["bisect", "nowhere:model"], "can't be imported"),
    ],
)
def test_an_error_goes_to_stderr_and_exits_with_1(
    arguments: list[str],
    part: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = str(place / "rows.parquet")
    arguments = [rows if argument == "ROWS" else argument for argument in arguments]
    writes = ["--out", str(tmp_path / "out")] if arguments[0] == "optimize" else []
    assert main([*arguments, *writes]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert part in printed.err
    assert not (tmp_path / "out").exists()


def test_an_error_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", "nowhere:model", "--out", str(tmp_path / "out"), "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    error = json.loads(printed.out)
    assert error["error"] == "CaptureError"
    assert "nowhere:model" in error["message"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["optimise"], ["optimize", MODEL], ["optimize", MODEL, "--out", "o", "--seed", "x"]],
)
def test_a_wrong_command_line_exits_with_1(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with argparse's 2, which says over budget here."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: rankc")


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "2 over budget or inconclusive" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_exits_with_130(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "optimize", work)
    assert main(optimize(place, tmp_path / "out")) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


# --- inspect and bench ----------------------------------------------------------------------------


def test_inspect_an_artifact(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    printed = capsys.readouterr().out
    for part in ("PASS on 1,680 rows", "sha256", "cpu-int8", "ne=0.02", "onnxruntime", "recipe"):
        assert part in printed
    assert main(["inspect", str(out), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    written = json.loads((out / "manifest.json").read_text())
    about_files = ("checksum", "reports")
    assert manifest == {name: value for name, value in written.items() if name not in about_files}


def test_inspect_an_artifact_without_its_report(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text((out / "manifest.json").read_text())
    capsys.readouterr()
    assert main(["inspect", str(tmp_path)]) == 1
    assert "report.txt is missing" in capsys.readouterr().err


def test_inspect_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", MODEL]) == 0
    printed = capsys.readouterr().out
    for part in ("dense", "float32", "ids", "int64", "300", "table.weight", "score", "binary"):
        assert part in printed
    assert main(["inspect", MODEL, "--json"]) == 0
    signature = json.loads(capsys.readouterr().out)
    assert [feature["name"] for feature in signature["features"]] == ["dense", "ids"]


def test_bench(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(out)
    capsys.readouterr()
    assert main(["bench", str(out), "--batch", "1,16"]) == 0
    printed = capsys.readouterr().out
    assert "milliseconds a call, one thread" in " ".join(printed.split())
    lines = [line.strip("│ ").split("│")[0].strip() for line in printed.splitlines()]
    assert [line for line in lines if line in ("1", "16")] == ["1", "16"]
    assert contents(out) == before


def test_bench_against_the_model(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    capsys.readouterr()
    assert main(["bench", str(out), "--batch", "8", "--against", MODEL, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"batch", "artifact", "onnxruntime fp32", "eager", "speedup"}
    assert row["batch"] == 8
    assert all(value > 0 for value in row.values())
    assert row["speedup"] == pytest.approx(row["onnxruntime fp32"] / row["artifact"], abs=1e-3)
    assert torch.get_num_threads() == threads


# --- lists ----------------------------------------------------------------------------------------


def test_consolidate_writes_a_model_that_optimize_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint, place = tmp_path / "joint.pt2", "rankers:small"
    twice = ["rankers:SmallWithExample", "rankers:SmallWithExample"]
    assert main(["consolidate", *twice, "--names", "a,b", "--out", str(joint)]) == 0
    printed = capsys.readouterr().out
    assert "2 models in one (a, b)" in printed
    out = tmp_path / "out"
    command = ["optimize", str(joint), "--target", "cpu-fp32", "--outputs", "b/score"]
    assert main([*command, "--out", str(out), "--quiet"]) == 1
    assert "joint.pt2 may hold code" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--quiet", "--trust-code"]) == 0
    artifact = rankc.load(out)
    assert artifact.signature.outputs == ("b/score",)
    assert list(artifact(*small_inputs(3, 0))) == ["b/score"]
    assert "2 models in one (a, b)" in (out / "report.txt").read_text()
    assert main(["consolidate", place, "--out", str(tmp_path / "joint.onnx")]) == 1
    assert "--out takes a .pt2 file" in capsys.readouterr().err


def test_passes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    printed = capsys.readouterr().out
    for name in pass_registry.pass_names():
        assert name in printed
    for name, text in pass_registry.named_pipelines().items():
        assert f"{name} = {text}" in printed.replace("\n", "")
    for promise in ("exact", "rounding", "lossy"):
        assert promise in printed


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    printed = capsys.readouterr().out
    for name in TARGETS:
        assert name in printed


# --- bisect ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nudge(rankc.Pass):
    """Moves the bias of one layer after another; the second time by too much."""

    name: ClassVar[str] = "nudge"

    def run(self, program: rankc.Program, ctx: PassContext) -> None:
        rw = ctx.rewriter(program)
        linears = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        for node, by in zip(linears, (1e-7, 1.0, 1e-7), strict=True):
            if rw.site(node):
                name = str(node.args[2].target)
                rw.set_parameter(name, program.tensor(name) + by)


@pytest.fixture
def nudge() -> Iterator[None]:
    before = dict(pass_registry._REGISTERED)
    rankc.register(Nudge)
    yield
    pass_registry._REGISTERED.clear()
    pass_registry._REGISTERED.update(before)


@pytest.mark.parametrize("with_data", [True, False])
def test_bisect_finds_the_pass_and_the_rewrite(
    with_data: bool, nudge: None, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(place / "rows.parquet"), "--label", "clicked"] if with_data else []
    assert main(["bisect", MODEL, "--pipeline", "exact,+nudge", *data]) == 2
    printed = capsys.readouterr().out
    assert "first to move a score by more than 0.0001: nudge (pass" in printed
    assert "rewrite 2, at second)" in printed


def test_bisect_finds_lossy_passes_given_data(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(place / "rows.parquet"), "--label", "clicked"]
    pipeline = "exact,place-precision,quantize-tables"
    assert main(["bisect", MODEL, "--pipeline", pipeline, *data]) == 2
    assert "quantize-tables (pass" in capsys.readouterr().out


def test_bisect_that_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", MODEL, "--pipeline", "rounding"]) == 0
    assert capsys.readouterr().out == "no pass moves a score by more than 0.0001\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_a_library_swallows_still_ends_the_command(
    number: int,
    code: int,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*args: object, progress: Callable[[str, float], None], **options: object) -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(60)
        progress("on with it", 0.5)
        raise AssertionError("it went on")

    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(driver, "optimize", work)
    assert main(optimize(place, tmp_path / "out")) == code
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before

    # Swallowed after the last look: what would be saved isn't.
    def finished(*args: object, **options: object) -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(60)

    monkeypatch.setattr(driver, "optimize", finished)
    assert main(optimize(place, tmp_path / "out")) == code
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_after_saving_says_so(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def printed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankc.optimizer.cli.new_console", printed)
    assert main(optimize(place, tmp_path / "out")) == 130
    assert capsys.readouterr().err == f"interrupted; {tmp_path / 'out'} is complete\n"
    assert rankc.load(tmp_path / "out").verdict.status is rankc.Status.PASS


@pytest.mark.parametrize(
    "command",
    [
        *("passes", "targets", "--help", "optimize --help", "inspect OUT", "inspect OUT --json"),
        *("explain OUT", "verify OUT", f"inspect {MODEL}", "bench OUT --batch 1"),
        "optimize nothing:here --json --out /nonexistent",
    ],
)
def test_a_reader_that_goes_away_is_no_error(
    command: str, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([part.replace("OUT", str(out)) for part in command.split()]) == 141
    assert capfd.readouterr().err == ""


def test_a_pass_that_failed_is_told_last(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object) -> None:
        raise ValueError("kernels.json is damaged")

    monkeypatch.setattr("rankc.passes.place_precision.PlacePrecision.run", broken)
    told = "OPTIMIZER ERROR: place-precision failed and did nothing: kernels.json is damaged"
    assert main(optimize(place, tmp_path / "out")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert main(optimize(place, tmp_path / "quiet", "--quiet")) == 0
    assert capsys.readouterr().out.splitlines()[1].strip() == told
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert told in capsys.readouterr().out
    assert main(optimize(place, tmp_path / "strict", "--strict")) == 1
    assert "place-precision failed: kernels.json is damaged" in capsys.readouterr().err


def test_progress_is_shown_in_a_terminal_only(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []

    def work(*args: object, progress: Any, **options: object) -> None:
        progress("place-precision: top.0", 0.4)
        raise KeyboardInterrupt

    def update(bar: object, job: object, *, description: str, **more: object) -> None:
        shown.append(description)

    monkeypatch.setattr(driver, "optimize", work)
    monkeypatch.setattr("rich.progress.Progress.update", update)
    main(optimize(place, tmp_path / "out"))
    assert shown == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for more in ((), ("--quiet",), ("--json",)):
        main(optimize(place, tmp_path / "out", *more))
    assert shown == ["place-precision: top.0"]
    assert capsys.readouterr().out.strip() == ""
