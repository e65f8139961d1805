"""Everything that only a GPU can show, in one command and ten minutes.

Needs torch and nothing of rankc's other dependencies; what else is missing is skipped and said.
``--dry`` runs every step at toy sizes on the CPU, to see that it would run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 570.0
#: Share of the time left that a section may take; later sections get what earlier ones leave.
SHARES = {"device": 0.1, "tests": 0.15, "gemms": 0.4, "sharing": 0.3, "models": 0.95}


def make_importable() -> None:
    """Makes ``import rankc`` find this tree, where the package isn't installed."""
    if importlib.util.find_spec("rankc") is None:
        link = Path(tempfile.mkdtemp(prefix="rankc-tree-")) / "rankc"
        link.symlink_to(ROOT)
        sys.path.insert(0, str(link.parent))
    sys.path.insert(0, str(Path(__file__).parent))


@dataclass
class Clock:
    """How long a section may go on."""

    end: float

    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() > self.end


@dataclass
class Found:
    """What came of the sections."""

    facts: dict[str, Any]
    sections: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, section: Callable[[Clock, bool], Any], end: float, dry: bool) -> None:
        """Runs one section; what goes wrong in it stays in it."""
        started = time.monotonic()
        share = SHARES[name] * max(end - started, 0.0)
        try:
            self.sections[name] = section(Clock(started + share), dry)
        except Exception as error:  # the next sections still tell something
            self.skipped[name] = f"{type(error).__name__}: {str(error)[:300]}"
            traceback.print_exc()
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def machine() -> dict[str, Any]:
    """What this machine is."""
    import torch

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": None,
    }
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": about.name,
            "sm": 10 * about.major + about.minor,
            "memory_gb": round(about.total_memory / 1e9, 1),
            "multiprocessors": about.multi_processor_count,
        }
    for package in ("triton", "tensorrt", "tensorrt_rtx", "onnxscript", "scipy", "pytest"):
        facts[package] = importlib.util.find_spec(package) is not None
    return facts


def gpu_tests(clock: Clock, dry: bool) -> Any:
    """The tests marked ``gpu``, in a process of their own."""
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest isn't installed")
    paths = os.pathsep.join([*sys.path[:2], str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += [
        "tests/backends/inductor/test_backend.py",
        "tests/backends/tensorrt/test_backend.py",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=max(clock.end - time.monotonic(), 5.0),
        check=False,
    )
    return {"exit": done.returncode, "tail": done.stdout.strip().splitlines()[-8:]}


def main(arguments: list[str] | None = None) -> int:
    """Runs the sections and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])  # type: ignore[union-attr]
    parser.add_argument("--dry", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all (default 570)")
    parser.add_argument("--only", help="sections, such as gemms,models")
    given = parser.parse_args(arguments)
    make_importable()
    found = Found(machine())
    if found.facts["gpu"] is None and not given.dry:
        print("no GPU here: nothing is measured; --dry tries every step at toy sizes on the CPU")
        return 0
    end = time.monotonic() + given.seconds
    sections: dict[str, Callable[[Clock, bool], Any]] = {
        "device": importlib.import_module("gpu_device").section,
        "tests": gpu_tests,
        "gemms": importlib.import_module("gemms").section,
        "sharing": importlib.import_module("sharing").section,
        "models": importlib.import_module("rankers_on_gpu").section,
    }
    wanted = given.only.split(",") if given.only else list(sections)
    for name in wanted:
        found.run(name, sections[name], end, given.dry)
        write(found, given.out, given.dry)
    return 0


def write(found: Found, folder: Path, dry: bool) -> None:
    """``gpu-<name>.json`` and ``.md``, again after every section: a stopped run keeps its share."""
    report = importlib.import_module("written")
    name = "dry" if dry else str(found.facts["gpu"]).lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    data = {"facts": found.facts, "sections": found.sections, "skipped": found.skipped}
    (folder / f"gpu-{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"gpu-{name}.md").write_text(report.markdown(data, name))


if __name__ == "__main__":
    sys.exit(main())
