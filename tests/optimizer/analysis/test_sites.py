"""Which linears and tables have a format of their own."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.sites import inputs_of, is_plain_linear, linear_sites, table_sites
from rankc.optimizer.ir import Program


def test_every_linear_is_a_site_with_its_input(program: Program) -> None:
    sites = linear_sites(program)
    assert len(sites) == 6
    assert all(map(is_plain_linear, sites))
    assert table_sites(program) == {}
    rows = inputs_of(program, sites, [{"dense": torch.randn(5, 6)}])
    assert {tuple(value.shape) for value in rows.values()} == {(5, 6)}
