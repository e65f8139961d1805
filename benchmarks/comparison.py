"""What comparing every artifact with its model costs; ``make bench-comparison``.

Optimizes the small presets of the zoo for ``cpu-fp32`` without data, and counts the CPU seconds of
finding hostile rows, of scoring them after every pass, and of holding what was built against the
model. Writes ``benchmarks/results/comparison.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rankc
from rankc.models import zoo
from rankc.optimizer import driver
from rankc.optimizer.artifact import pending as finish
from rankc.optimizer.artifact.translation import Sample
from rankc.optimizer.pipeline import pipeline

PAGE = Path(__file__).parent / "results" / "comparison.md"
_HEAD = """\
# What comparing every artifact with its model costs

CPU seconds of `rankc.optimize(model, "cpu-fp32")` without data, all backends of the target, one
thread. *Rows*: finding ordinary and hostile rows that the model scores. *Passes*: scoring the
hostile ones after every pass that promises to change nothing but rounding. *Files*: holding what
each backend built against the model, at batches of one, three and many. `make bench-comparison`
writes this page.

| model | optimize | rows | passes | files | share |
|---|---|---|---|---|---|
"""


class Clock:
    """CPU seconds that were spent inside of some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.process_time() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return timed


def measured(names: list[str]) -> list[str]:
    """A line of the table for each model."""
    clock = Clock()
    driver.ordinary = clock.around("rows", driver.ordinary)  # type: ignore[attr-defined]
    made = clock.around("rows", Sample.of)
    driver.Sample.of = lambda *args: made(*args)  # type: ignore[attr-defined,method-assign]
    pipeline._broken_at_the_edges = clock.around("passes", pipeline._broken_at_the_edges)
    finish.check_artifact = clock.around("files", finish.check_artifact)  # type: ignore[attr-defined]
    lines, total, all_of_it = [], 0.0, 0.0
    for name in names:
        model = zoo()[name]()
        clock.seconds = dict.fromkeys(("rows", "passes", "files"), 0.0)
        started = time.process_time()
        rankc.optimize(model, "cpu-fp32")
        whole = time.process_time() - started
        parts = clock.seconds
        share = sum(parts.values()) / whole
        total, all_of_it = total + sum(parts.values()), all_of_it + whole
        cells = " | ".join(f"{parts[part]:.2f}" for part in ("rows", "passes", "files"))
        lines.append(f"| {name} | {whole:.1f} | {cells} | {share:.1%} |")
        print(lines[-1], flush=True)
    lines.append(f"| all | {all_of_it:.1f} | | | | {total / all_of_it:.1%} |")
    return lines


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of the zoo; all of it when left out")
    chosen = parser.parse_args().models
    rankc.optimize(zoo()["dlrm"](), "cpu-fp32")  # what is imported once isn't counted
    lines = measured(chosen or list(zoo()))
    if not chosen:
        PAGE.write_text(_HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
