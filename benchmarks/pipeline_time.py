"""How long the structural pipeline takes; ``make bench-pipeline``.

Runs `rounding`, `structure` and `grouping` with all their checks on every zoo model's small preset
and on graphs of some 3,000 nodes, and writes ``benchmarks/results/pipeline_time.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rankc import Target, capture
from rankc.models import zoo
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from torch import Tensor, nn

PAGE = Path(__file__).parent / "results" / "pipeline_time.md"
_PIPELINE = "rounding,structure,grouping"


class ManyFields(nn.Module):
    """One table, one projection and one gate per field, written as a loop over fields."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(fields))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(fields))
        self.head = nn.Linear(8 * fields, 1)

    def forward(self, ids: Tensor) -> Tensor:
        parts = []
        for field, (table, layer) in enumerate(zip(self.tables, self.layers, strict=True)):
            embedded = table(ids[:, field])
            parts.append(torch.relu(layer(embedded)) * embedded.sigmoid())
        return torch.sigmoid(self.head(torch.cat(parts, dim=1))).squeeze(1)

    def example_inputs(self) -> tuple[Tensor, ...]:
        return (torch.randint(0, 20, (4, len(self.tables))),)


class ManyPairs(nn.Module):
    """A bilinear product for each pair of fields, written as a loop over pairs."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.fields = fields
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(fields))
        count = fields * (fields - 1) // 2
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(count))
        self.head = nn.Linear(8 * count, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [table(ids[:, field]) for field, table in enumerate(self.tables)]
        pairs = [(i, j) for i in range(self.fields) for j in range(i + 1, self.fields)]
        products = [
            layer(rows[i]) * rows[j] for layer, (i, j) in zip(self.layers, pairs, strict=True)
        ]
        return torch.sigmoid(self.head(torch.stack(products, 1).flatten(1))).squeeze(1)

    def example_inputs(self) -> tuple[Tensor, ...]:
        return (torch.randint(0, 20, (4, self.fields)),)


def timed(name: str, build: Callable[[], nn.Module]) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    program = capture(build().eval())
    context = PassContext(
        target=Target.of("cpu-fp32"),
        rows=synthesize(program.signature, 256, seed=1).features,
        original=program,
        strict=True,
    )
    nodes = len(program.graph.nodes)
    result = program.clone()
    start = time.process_time()
    Pipeline.parse(_PIPELINE).run(result, context)
    seconds = time.process_time() - start
    slowest = max(context.report.records, key=lambda record: record.seconds)
    line = f"| {name} | {nodes} | {len(result.graph.nodes)} | {seconds:.1f} | {slowest.spec} |"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return line


def main() -> None:
    """Times all and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a model's name; writes no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed("first", partial(ManyFields, 4))
    models: dict[str, Callable[[], nn.Module]] = {
        **zoo(),
        "330 fields, a linear and a gate each": partial(ManyFields, 330),
        "45 fields, a bilinear product per pair": partial(ManyPairs, 45),
    }
    lines = [timed(name, build) for name, build in models.items() if options.only in name]
    if options.only:
        return
    page = [
        "# The structural pipeline's time",
        "",
        f"`{_PIPELINE}` for cpu-fp32, with every pass verified and compared on 256 rows. Small "
        "presets of the zoo, and two graphs of some 3,000 nodes. Seconds of one thread's CPU time, "
        "nodes before and after.",
        "",
        "| model | nodes | nodes after | seconds | slowest pass |",
        "| --- | ---: | ---: | ---: | --- |",
        *lines,
    ]
    PAGE.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
