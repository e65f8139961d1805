"""The attacks in a short form; ``make attack`` runs them at length."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

#: Where the sanitized library is built; it is kept between runs.
_BUILD = Path(__file__).parents[2] / "build" / "attack"


@pytest.fixture(scope="module")
def sanitized() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import sanitized
    finally:
        sys.path.pop(0)
    if sys.platform != "linux" or sanitized.compiler() is None:
        pytest.skip("the sanitizers need Linux and g++")
    return sanitized


@pytest.mark.slow
def test_native_operators_under_the_sanitizers(sanitized: ModuleType) -> None:
    library = sanitized.build(_BUILD)
    for mode in ("honest", "mutated"):
        counts = sanitized.fuzz(library, mode, 0, 200)
        assert counts["ran"] > 20
        assert counts["refused"] > 20
        faults = {name: count for name, count in counts.items() if name not in ("ran", "refused")}
        assert faults == {"crashed": 0}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the attack counts on Linux's signals")
def test_kills_of_what_writes() -> None:
    """In a process of its own: it forks, and so must not have opened a runtime."""
    script = Path(__file__).parent / "at_length.py"
    line = [sys.executable, str(script), "--only", "kills", "--kills", "7"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.match(r"7 kills: .*\nno fault\n", ran.stdout)
