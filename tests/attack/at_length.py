"""``make attack``: every attack at length, with its counts; ``--only kills`` for one kind."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import sanitized

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import onnx
import rankc
from attack import folders, kills, models
from rankers import dlrm_inputs, optimized, small, small_inputs

_BUILD = Path(__file__).parents[2] / "build" / "attack"
#: Seeds a process; they differ from those of the short form.
_FIRST, _SHARE = 10_000, 500


def main() -> int:
    """Runs the attacks; 1 if any found a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=5000, help="plans of native operators")
    parser.add_argument("--folders", type=int, default=400, help="folders that are tampered with")
    parser.add_argument("--every", type=int, default=8, help="one in so many changed fields")
    parser.add_argument("--models", type=int, default=500, help="changed .onnx files")
    parser.add_argument("--kills", type=int, default=500, help="kills of what writes")
    parser.add_argument("--only", choices=_KINDS, help="one kind of attack")
    arguments = parser.parse_args()
    faults = 0
    # Kills come first: what they fork must not have opened a runtime.
    for kind in _KINDS if arguments.only is None else (arguments.only,):
        # Not a TemporaryDirectory: processes that are forked would remove it when they end.
        place = Path(tempfile.mkdtemp(prefix="attack-"))
        faults += _KINDS[kind](place, arguments)
        shutil.rmtree(place)
    print("no fault" if not faults else f"{faults} faults")
    return int(faults > 0)


def _files(scratch: Path, arguments: argparse.Namespace) -> int:
    source = optimized("cpu-int8").save(scratch / "artifact")
    inputs = tuple(value.numpy() for value in dlrm_inputs(16, seed=0))
    made = rankc.optimize(small(), "cpu-fp32", inputs=small_inputs(4, 0), pipeline="exact")
    onnx.save(onnx.load(str(made.onnx_path)), scratch / "model.onnx")
    rankc.capture(small(), small_inputs(4, 0)).save(scratch / "model.pt2")
    return sum(
        _told(what, *found)
        for what, found in (
            ("tampered folders", folders.tampered(source, inputs, scratch, arguments.folders)),
            ("changed fields", folders.forgeries(source, inputs, scratch, arguments.every)),
            ("onnx files", models.onnx_files(scratch / "model.onnx", scratch, 0, arguments.models)),
            ("pt2 files", models.pt2_files(scratch / "model.pt2", scratch, arguments.every)),
        )
    )


def _told(what: str, counts: Any, faults: list[str]) -> int:
    print(f"{sum(counts.values())} {what}: {dict(counts)}", flush=True)
    for fault in faults:
        print(f"  {fault}")
    return len(faults)


def _kills(scratch: Path, arguments: argparse.Namespace) -> int:
    return _told("kills", *kills.killed(scratch, kills.shares(arguments.kills)))


def _plans(scratch: Path, arguments: argparse.Namespace) -> int:
    count = arguments.plans
    library = sanitized.build(_BUILD)
    faults = 0
    for mode in ("honest", "mutated"):
        total: dict[str, int] = {}
        for first in range(_FIRST, _FIRST + count, _SHARE):
            last = min(first + _SHARE, _FIRST + count)
            for name, found in sanitized.fuzz(library, mode, first, last).items():
                total[name] = total.get(name, 0) + found
        print(f"{count} {mode} plans: {total}")
        faults += sum(found for name, found in total.items() if name not in ("ran", "refused"))
    return faults


_KINDS = {"kills": _kills, "plans": _plans, "files": _files}

if __name__ == "__main__":
    sys.exit(main())
