from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rankc.backends.openvino import OpenVino
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline import pipeline
from rankc.optimizer.pipeline.instruments import Verify
from rankc.optimizer.pipeline.passbase import Pass, PassContext


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "unverified: runs passes without Verify, to see what happens when it is missing"
    )
    # Tests run one process a core, and threads that wait for each other's cores take far longer.
    torch.set_num_threads(1)
    torch.manual_seed(7_421)  # for what modules draw when they are imported


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Lets a test draw the same weights and rows each time; another stream than seeds like 0."""
    torch.manual_seed(1_913)


_openvino_missing = OpenVino.missing


@pytest.fixture(autouse=True, scope="session")
def one_backend_for_cpus() -> None:
    """Hides OpenVINO, which would be built and timed besides, from tests that aren't about it."""
    OpenVino.missing = lambda self: "pip install openvino"  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def openvino_where_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows it to tests that are marked ``openvino``."""
    if request.node.get_closest_marker("openvino"):
        monkeypatch.setattr(OpenVino, "missing", _openvino_missing)


@pytest.fixture(autouse=True)
def verified_passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs `Verify` around every pass in every test that isn't marked ``unverified``."""
    if request.node.get_closest_marker("unverified"):
        return
    attempt: Callable[..., Any] = pipeline._attempt

    def verified(pass_: Pass, program: Program, snapshot: Program, ctx: PassContext) -> Any:
        given = ctx.instruments
        if not any(isinstance(instrument, Verify) for instrument in given):
            ctx.instruments = (*given, Verify())
        try:
            return attempt(pass_, program, snapshot, ctx)
        finally:
            ctx.instruments = given

    monkeypatch.setattr(pipeline, "_attempt", verified)
