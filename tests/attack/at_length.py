"""``make attack``: every attack at length, with its counts; ``--plans N`` sets how many plans."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sanitized

_BUILD = Path(__file__).parents[2] / "build" / "attack"
#: Seeds a process; they differ from those of the short form.
_FIRST, _SHARE = 10_000, 500


def main() -> int:
    """Runs the attacks; 1 if any found a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=5000, help="plans of native operators")
    arguments = parser.parse_args()
    faults = _plans(arguments.plans)
    print("no fault" if not faults else f"{faults} faults")
    return int(faults > 0)


def _plans(count: int) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
