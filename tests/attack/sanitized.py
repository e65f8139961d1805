"""The native library built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

_SOURCES = Path(__file__).parents[2] / "backends" / "native"
_FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-fno-omit-frame-pointer", "-w"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)


def compiler() -> str | None:
    """The compiler, if there is one."""
    return shutil.which("g++")


def build(folder: Path) -> Path:
    """Compiles the library into a folder, unless it is there and newer than its sources."""
    library = folder / "operators_sanitized.so"
    newest = max(path.stat().st_mtime for path in _SOURCES.iterdir() if path.suffix != ".so")
    if library.exists() and library.stat().st_mtime > newest:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(compiler()), *_FLAGS, *map(str, sorted(_SOURCES.glob("*.cpp"))), "-o"]
    beside = library.with_name(f"{os.getpid()}.so")
    subprocess.run([*command, str(beside)], check=True)
    return beside.replace(library)


def fuzz(library: Path, mode: str, first: int, last: int) -> dict[str, int]:
    """Runs `plans` under the sanitizers, which end a process at the first fault."""
    runtimes = [
        subprocess.run(
            [str(compiler()), f"-print-file-name=lib{name}.so"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Python and ONNX Runtime leave memory to the end of the process; a size that no machine
        # has is an error of the allocator here as it is without the sanitizers.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    script = Path(__file__).with_name("plans.py")
    done = subprocess.run(
        [sys.executable, str(script), str(library), mode, str(first), str(last)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the fuzzer ended with {done.returncode}: {done.stderr[-4000:]}")
    sys.stderr.write(done.stderr[-20_000:])
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts
