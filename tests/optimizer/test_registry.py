"""Names of passes and backends, ours and plugged in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rankc.optimizer import registry
from rankc.optimizer.errors import PipelineError, TargetError
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline import registry as pass_registry
from rankc.optimizer.pipeline.passbase import Pass, PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline


def make(name: Any, **namespace: Any) -> type[Pass]:
    def run(self: Pass, program: Program, ctx: PassContext) -> None:
        """Does nothing."""

    made = type("Made", (Pass,), {"name": name, "run": run, **namespace})
    return dataclass(frozen=True)(made)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = dict(pass_registry._REGISTERED)
    yield
    pass_registry._REGISTERED.clear()
    pass_registry._REGISTERED.update(before)


def test_a_registered_pass_can_be_named() -> None:
    made = pass_registry.register(make("made"))
    assert pass_registry.pass_class("made") is made
    assert "made" in pass_registry.pass_names()
    assert pass_registry.register(made) is made
    assert Pipeline.parse("exact,+made@after:canonicalize").passes[1] == made()


class NoRun(Pass):
    name: ClassVar[str] = "no-run"


class NoName(Pass):
    def run(self, program: Program, ctx: PassContext) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class NoDefault(Pass):
    name: ClassVar[str] = "no-default"
    size: int

    def run(self, program: Program, ctx: PassContext) -> None:
        """Does nothing."""


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (int, "is no subclass of rankc.Pass"),
        (make("canonicalize"), "a pass called 'canonicalize' exists already"),
        (make("default"), "can't be called 'default'"),
        (make("fixpoint"), "can't be called 'fixpoint'"),
        (make("My_Pass"), "can't be called 'My_Pass': a name is lower-case words"),
        (make(3), "Made has no name"),
        (NoName, "NoName has no name"),
        (NoRun, "NoRun has no run method"),
        (NoDefault, "option 'size' of no-default has no default"),
    ],
)
def test_what_can_not_be_named_is_refused(candidate: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        pass_registry.register(candidate)


def test_a_name_belongs_to_one_pass() -> None:
    pass_registry.register(make("made"))
    with pytest.raises(PipelineError, match="a pass called 'made' exists already"):
        pass_registry.register(make("made"))


def plug(folder: Path, package: str, *lines: str) -> None:
    """A distribution's metadata, and nothing else of it."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[rankc.passes]", *lines]) + "\n")


PLUGGED = """
from dataclasses import dataclass
from typing import ClassVar
import rankc

@dataclass(frozen=True)
class Plugged(rankc.Pass):
    name: ClassVar[str] = "plugged"

    def run(self, program, ctx):
        pass
"""


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rankc_plugged.py").write_text(PLUGGED)
    lines = [
        "plugged = rankc_plugged:Plugged",
        "gone = rankc_plugged:Gone",
        "missing = rankc_no_such_module:Pass",
        "misnamed = rankc_plugged:Plugged",
        "no-pass = rankc_plugged:dataclass",
        "eliminate = rankc_plugged:Plugged",
    ]
    plug(tmp_path, "one", *lines)
    plug(tmp_path, "two", "misnamed = rankc_plugged:Other")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert pass_registry.pass_class("plugged").__module__ == "rankc_plugged"
        assert {"plugged", "gone"} <= set(pass_registry.pass_names())
        # A plug-in can't take the place of one of ours.
        assert pass_registry.pass_class("eliminate").__module__ == "rankc.passes.eliminate"
        for name, message in {
            "gone": "pass 'gone' of the package one can't be loaded from rankc_plugged:Gone",
            "missing": "pass 'missing' of the package one can't be loaded .* No module named",
            "no-pass": "rankc_plugged:dataclass is no subclass of rankc.Pass",
            "misnamed": "two packages announce a pass called 'misnamed': "
            r"two \(rankc_plugged:Other\), one \(rankc_plugged:Plugged\)",
        }.items():
            with pytest.raises(PipelineError, match=message):
                pass_registry.pass_class(name)
        with pytest.raises(PipelineError, match="a pass called 'plugged' exists already"):
            pass_registry.register(make("plugged"))
        plugged = pass_registry.pass_class("plugged")
        assert pass_registry.register(plugged) is plugged
    finally:
        sys.modules.pop("rankc_plugged", None)


def test_every_builtin_loads_under_its_name() -> None:
    for name in pass_registry._builtin():
        assert pass_registry.pass_class(name).name == name


def test_backends() -> None:
    assert registry.backend("eager").name == "eager"
    with pytest.raises(TargetError, match="no backend is called 'tvm'; there are eager"):
        registry.backend("tvm")


def test_a_backend_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankc import backends

    monkeypatch.setitem(backends.BACKENDS, "trt", "no_such_backend:Trt")
    with pytest.raises(
        TargetError,
        match=r"backend 'trt' needs rankc.backends.no_such_backend, which isn't installed",
    ):
        registry.backend("trt")
