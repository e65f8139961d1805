"""Every operator on every backend that is installed, at length: ``docs/operators.md``.

``make conformance``. Batches are drawn by hypothesis: of no row, one, a few and hundreds, each with
values of its own. ``--only onnxruntime,openvino`` tries some backends and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

import torch  # noqa: E402
from conformance.comparing import (  # noqa: E402
    Alone,
    Found,
    Outcome,
    arranged,
    compare,
    every_case,
    is_right,
)
from conformance.known import (  # noqa: E402
    DEPENDS_ON_ORDER,
    DIFFERS,
    OPENVINO_AT_THE_EDGE,
    WITHOUT_CASE,
)
from conformance.values import Values  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from rankc.backends.onnx.translate import own_forms  # noqa: E402
from rankc.optimizer.registry import backend  # noqa: E402
from rankc.optimizer.target import Target  # noqa: E402

PAGE = ROOT / "docs" / "operators.md"


@dataclass(frozen=True)
class Tried:
    """A backend, and on what it is tried.

    Attributes:
        name: The backend's.
        target: What it builds for.
        values: Which values rows have.
    """

    name: str
    target: str
    values: Values

    def __str__(self) -> str:
        return f"{self.name}, {self.values.value} values"


#: What fills a column each; OpenVINO has one for each kind of values.
COLUMNS = (
    Tried("onnxruntime", "cpu-fp32", Values.HOSTILE),
    Tried("onnx", "cpu-fp32", Values.HOSTILE),
    Tried("openvino", "cpu-fp32", Values.ORDINARY),
)


@dataclass
class Table:
    """What was found, column by column."""

    columns: dict[Tried, dict[Alone, Outcome]] = field(default_factory=dict)
    batches: int = 0

    def wrong(self) -> Iterator[str]:
        """What differs and isn't known to."""
        known = {*DIFFERS, *DEPENDS_ON_ORDER}
        for tried, found in self.columns.items():
            for one, outcome in found.items():
                if not is_right(one, outcome.found) and str(one) not in known:
                    yield f"{tried.name}: {one}: {outcome.why}"


def drawn(count: int, start: int) -> tuple[tuple[int, int], ...]:
    """How many rows, and the seed they are drawn by, so many times."""
    found = [(0, 1), (1, 2)]

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(st.integers(2, 400), st.integers(0, 2**31 - 1)))
    def collect(batch: tuple[int, int]) -> None:
        found.append(batch)

    collect()
    return tuple(found)


def run(columns: Sequence[Tried], batches: tuple[tuple[int, int], ...]) -> Table:
    """Tries every case on every column whose backend is installed, and says how it goes."""
    table = Table(batches=len(batches))
    for tried in columns:
        builder = backend(tried.name)
        if builder.missing():
            print(f"{tried}: not installed ({builder.missing()})", flush=True)
            continue
        started, found = time.perf_counter(), {}
        for some in arranged(every_case()).values():
            target = Target.of(tried.target)
            found |= compare(some, builder, target, batches, tried.values)
        table.columns[tried] = found
        counts = Counter(outcome.found.value for outcome in found.values())
        said = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        values = sum(outcome.values for outcome in found.values())
        seconds = time.perf_counter() - started
        print(
            f"{tried}: {len(found)} cases, {values:,} values: {said}; {seconds:.0f} s", flush=True
        )
    return table


def _cell(found: Mapping[Alone, Outcome]) -> str:
    """What came of an operator: the worst, and of how many cases what is refused."""
    order = [Found.EXACT, Found.ROUNDING, Found.DIFFERS]
    taken = [outcome for outcome in found.values() if outcome.found is not Found.REFUSED]
    refused = len(found) - len(taken)
    if not taken:
        return "refused"
    worst = max((outcome.found for outcome in taken), key=order.index)
    said = "known" if worst is Found.DIFFERS else worst.value
    return said if not refused else f"{said}; refused {refused} of {len(found)}"


def page(table: Table) -> str:
    """The page."""
    cases = every_case()
    own = own_forms()
    operators = sorted({one.operator for one in cases})
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in cases})
    lines = [
        "# Operators",
        "",
        "Every operator that a captured program may hold is tried alone: what a backend runs "
        "against eager PyTorch, bit by bit for integers and truths, to rounding for floats. "
        "Generated by `make conformance`; the tests run a short form of it.",
        "",
        f"{len(operators)} operators in {len(cases)} cases (operator, arguments, dtype) of "
        f"{', '.join(dtypes)}, {table.batches} batches each, of 0 to 400 rows.",
        "",
        "| backend | values | cases | values compared | exact | rounding | refused | known |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tried, found in table.columns.items():
        counts = Counter(outcome.found for outcome in found.values())
        values = sum(outcome.values for outcome in found.values())
        lines.append(
            f"| {tried.name} | {tried.values.value} | {len(found)} | {values:,} | "
            + " | ".join(
                str(counts[kind])
                for kind in (Found.EXACT, Found.ROUNDING, Found.REFUSED, Found.DIFFERS)
            )
            + " |"
        )
    lines += [
        "",
        "*Hostile* values have NaN, infinity, denormals, zeros of both signs, the ends of each "
        "dtype, integers beyond 2²⁴ and 2⁵³; *ordinary* ones are finite, integers within bounds "
        "that the signature says. Sums are compared relative to the largest number that goes in. "
        f"OpenVINO differs on hostile floats: {OPENVINO_AT_THE_EDGE}. Every artifact is compared "
        "with its model on such rows before it is handed over, and OpenVINO is out of the race "
        "where they tell.",
        "",
        "## What differed at first",
        "",
        f"{len(own)} of the exporter's forms aren't what PyTorch computes somewhere (or lose it on "
        "ONNX Runtime, or take a trace of the whole program) and are written by rankc instead: "
        "*lowered* below. They are: " + ", ".join(f"`{name}`" for name in own) + ".",
        "",
        "What still differs is of numbers near the largest there is:",
        "",
        *[f"- `{name}`: {why}" for name, why in (DIFFERS | DEPENDS_ON_ORDER).items()],
        "",
        "What a backend can't compute as PyTorch does, it refuses, by the operator's name and the "
        "user's line:",
        "",
        *_refusals(table),
        "",
        "An operator that isn't below is tried alone when a model has it: if no backend of the "
        "target has a form, `optimize` refuses it before any pass and says which backends do.",
        "",
        "## By operator",
        "",
        "| operator | dtypes | cases | form | " + " | ".join(map(_title, COLUMNS)) + " |",
        "|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for operator in operators:
        of = [one for one in cases if one.operator == operator]
        kinds = sorted({str(one.dtype).removeprefix("torch.") for one in of})
        cells = [
            _cell({one: table.columns[tried][one] for one in of})
            if tried in table.columns
            else "not installed"
            for tried in COLUMNS
        ]
        form = "lowered" if operator in own else ""
        lines.append(
            f"| `{operator}` | {', '.join(kinds)} | {len(of)} | {form} | {' | '.join(cells)} |"
        )
    lines += ["", "## Without a case", "", "| operators | why |", "|---|---|"]
    for why in dict.fromkeys(WITHOUT_CASE.values()):
        names = sorted(name for name, said in WITHOUT_CASE.items() if said == why)
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {why} |")
    return "\n".join(lines) + "\n"


def _title(tried: Tried) -> str:
    return tried.name if tried.values is Values.HOSTILE else f"{tried.name} (ordinary)"


def _refusals(table: Table) -> Iterator[str]:
    for tried, found in table.columns.items():
        reasons: dict[str, list[str]] = {}
        for one, outcome in found.items():
            if outcome.found is Found.REFUSED:
                reasons.setdefault(_kind_of(outcome.why), []).append(one.operator)
        for why, operators in reasons.items():
            names = ", ".join(f"`{name}`" for name in sorted(set(operators)))
            yield f"- {tried.name}: {why}: {names}"


def _kind_of(why: str) -> str:
    """A refusal without the operator that it names."""
    return "no kernel of float64" if "of float64; compute it" in why else why.split(";")[0]


def main() -> int:
    """Tries all, writes the page, and fails if something differs that isn't known to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=24, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="backends, comma-separated")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    only = {name for name in arguments.only.split(",") if name}
    columns = [one for one in COLUMNS if not only or one.name in only]
    table = run(columns, drawn(arguments.batches, arguments.seed))
    wrong = list(table.wrong())
    for line in wrong:
        print(f"WRONG: {line}")
    if not only and not wrong:
        PAGE.write_text(page(table))
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
