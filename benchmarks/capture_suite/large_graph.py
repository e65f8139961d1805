"""How long capture and canonicalization take: a DLRM, and a model of very many fields.

Times are seconds of one core, so that other work on the machine doesn't count.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time

import torch
from rankc.frontends.export import capture
from rankc.models import DLRM, DLRMConfig
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
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


def measure(name: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Captures and canonicalizes, and prints the times."""
    start = time.process_time()
    program = capture(model, inputs)
    captured = time.process_time()
    count = len(program.graph.nodes)
    Pipeline.parse("canonicalize").run(program, PassContext(target=Target.of("cpu-fp32")))
    done = time.process_time()
    sys.stdout.write(
        f"{name}: {count} nodes, capture {captured - start:.1f} s, canonicalize "
        f"{done - captured:.1f} s, {len(program.graph.nodes)} nodes left\n"
    )


def main() -> None:
    """Prints the times; ``--profile`` prints where they go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=333)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    config = DLRMConfig((1000,) * 26, dense_features=13, bottom=(512, 256), top=(512, 256))
    dlrm = DLRM(config).eval()
    rows = torch.rand(4, 13), torch.randint(0, 1000, (4, 26))
    measure("DLRM, the first capture of the process", dlrm, rows)
    measure("DLRM again", dlrm, rows)
    model = ManyFields(options.fields).eval()
    ids = torch.randint(0, 20, (4, options.fields))
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    measure(f"{options.fields} fields", model, (ids,))
    profile.disable()
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
