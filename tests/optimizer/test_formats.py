"""The forms a linear's input can take."""

from __future__ import annotations

import torch
from rankc.optimizer.formats import candidates, insert_qdq
from rankc.optimizer.ir import Precision, Rewriter, sweep
from rankc.optimizer.ir.ops import ROUND_ROWS
from support import canonical
from torch import nn

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(32, 24, generator=GENERATOR)
EVEN = torch.randn(512, 24, generator=GENERATOR)
#: Rows whose sizes differ by a factor of a hundred, as those of users with few and many clicks.
UNEVEN = EVEN * 10.0 ** (2.0 * torch.rand(512, 1, generator=GENERATOR))


def recipes(samples: torch.Tensor, number_format: str, row_wise: bool) -> dict[str, float]:
    found = candidates(samples, WEIGHT, number_format, "int8", row_wise)
    return {precision.recipe: error for precision, error in found}


def test_rows_of_different_sizes_get_a_scale_each() -> None:
    found = recipes(UNEVEN, "int8", row_wise=True)
    assert found["int8 rows"] < 0.7 * found["int8"]
    assert found["int8 rows"] < recipes(UNEVEN, "fp8", row_wise=True)["fp8"]


def test_rows_are_offered_only_where_they_are_taken_and_better() -> None:
    assert "int8 rows" not in recipes(UNEVEN, "int8", row_wise=False)
    assert "fp8 rows" not in recipes(UNEVEN, "fp8", row_wise=True)
    alike = torch.sign(EVEN) * torch.ones_like(EVEN)
    assert "int8 rows" not in recipes(alike, "int8", row_wise=True)


def test_a_linear_with_a_scale_per_row() -> None:
    linear = nn.Linear(24, 32)
    program = canonical(nn.Sequential(linear, nn.ReLU(), nn.Linear(32, 1)), UNEVEN[:4])
    before = program.run({program.signature.names[0]: UNEVEN})
    (node, _) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    insert_qdq(
        Rewriter(program, "test"), node, Precision("int8", 1.0, 0, "int8", "int8", rows=True)
    )
    sweep(program)
    assert len(program.graph.find_nodes(op="call_function", target=ROUND_ROWS.op)) == 1
    after = program.run({program.signature.names[0]: UNEVEN})
    for name, want in before.items():
        assert float((after[name] - want).norm() / want.norm()) < 0.02
    alone = program.run({program.signature.names[0]: UNEVEN[:1]})
    assert all(torch.equal(alone[name], after[name][:1]) for name in alone)
