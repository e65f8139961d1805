"""The attacks in a short form; ``make attack`` runs them at length."""

from __future__ import annotations

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
