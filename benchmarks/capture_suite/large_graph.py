"""How long capture and canonicalization of a large graph take: a model of many fields."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time

import torch
from rankc.frontends.export import capture
from rankc.optimizer.context import PassContext
from rankc.optimizer.pipeline import Pipeline
from rankc.optimizer.target import Target
from torch import Tensor, nn


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
            embedded = table(ids[:, field].long())
            parts.append(torch.relu(layer(embedded)) * embedded.sigmoid())
        return torch.sigmoid(self.head(torch.cat(parts, dim=1))).squeeze(1)


def main() -> None:
    """Prints the times; ``--profile`` prints where they go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=333)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    model = ManyFields(options.fields).eval()
    ids = torch.randint(0, 20, (4, options.fields))
    capture(ManyFields(2).eval(), ids[:, :2])
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    start = time.perf_counter()
    program = capture(model, ids)
    captured = time.perf_counter()
    count = len(program.graph.nodes)
    Pipeline.parse("canonicalize").run(program, PassContext(target=Target.of("cpu-fp32")))
    done = time.perf_counter()
    profile.disable()
    sys.stdout.write(
        f"{count} nodes: capture {captured - start:.1f} s, canonicalize {done - captured:.1f} s, "
        f"{len(program.graph.nodes)} nodes left\n"
    )
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
