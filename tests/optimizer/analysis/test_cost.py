"""What programs cost by estimate: lower formats cost less, and what kernels fuse costs nothing."""

from __future__ import annotations

import functools

import pytest
import torch
from rankc.optimizer.analysis.cost import estimate, format_of
from rankc.optimizer.analysis.sites import linear_sites, table_sites
from rankc.optimizer.formats import LINEAR_FORMATS, TABLE_FORMATS
from rankc.optimizer.ir import Program, Rewriter, sweep
from rankc.optimizer.precision.candidates import candidates
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.precision.table_formats import realise_table
from rankc.optimizer.target import TARGETS, Target
from support import canonical
from torch import Tensor, nn

BATCH = 512
_HELD = [
    (name, number_format)
    for name, target in TARGETS.items()
    for number_format in LINEAR_FORMATS
    if target.device.peak(number_format) > target.device.peak("fp32")
]


class Ranker(nn.Module):
    """A lookup and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 256)
        self.first, self.second = nn.Linear(256, 256), nn.Linear(256, 256)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.table(ids))))[:, 0]


@functools.cache
def captured() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return canonical(Ranker(), torch.arange(4))


def plain() -> Program:
    return captured().clone()


def in_format(number_format: str, activations: str) -> Program:
    """Both linears in a format."""
    program = plain()
    rw = Rewriter(program, "test")
    for site in linear_sites(program):
        weight = program.tensor(str(site.args[1].target))  # type: ignore[union-attr]
        samples = torch.randn(64, 256)
        (precision, _), *_ = candidates(samples, weight, [number_format], activations)
        realise(rw, site, precision, samples)
    sweep(program)
    return program


@pytest.mark.parametrize(("name", "number_format"), _HELD)
def test_a_linear_in_every_format_a_device_has_costs_less(name: str, number_format: str) -> None:
    target = Target.of(name)
    low = in_format(number_format, target.int8_activations)
    assert {format_of(node) for node in low.graph.nodes} == {"fp32", number_format}
    assert estimate(low, target, BATCH) < estimate(plain(), target, BATCH)


@pytest.mark.parametrize("number_format", TABLE_FORMATS)
@pytest.mark.parametrize("name", ["cpu-int8", "h100-fp8"])
def test_a_table_in_every_format_costs_less(name: str, number_format: str) -> None:
    program, target = plain(), Target.of(name)
    rw = Rewriter(program, "test")
    for lookups in table_sites(program).values():
        realise_table(rw, lookups, number_format)
    sweep(program)
    assert estimate(program, target, BATCH) < estimate(plain(), target, BATCH)


def test_every_format_of_linears_has_a_rate() -> None:
    """On a device that lists what products are in, no format of a linear falls back to fp32's."""
    device = Target.of("b200-fp4").device
    assert all(device.peak(name) > device.peak("fp32") for name in LINEAR_FORMATS)
