"""Which units there are, what goes with each, and that taking one out is zeroing it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from rankc.models import zoo
from rankc.optimizer.compare.numerics import divergence
from rankc.optimizer.ir import Program, Rewriter
from rankc.optimizer.ir.verifier import verify
from rankc.optimizer.pruning.channels import Channels, Group, channels
from rankc.optimizer.pruning.dependence import Closure, Scene
from rankc.optimizer.pruning.removal import Removal, emptied
from rankc.optimizer.pruning.surgery import without
from support import canonical, capture_small, made_up, run_passes
from torch import Tensor, fx, nn

ROWS = torch.linspace(-1.0, 1.0, 72).reshape(4, 18)


class Residual(nn.Module):
    """Two linears whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(18, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.head(hidden + self.second(hidden).relu()).squeeze(1)


class Normed(nn.Module):
    """A LayerNorm between who makes units and who reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(18, 8), nn.LayerNorm(8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)).relu()).squeeze(1)


class Heads(nn.Module):
    """Attention of two heads over three tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.out, self.head = nn.Linear(8, 6), nn.Linear(18, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 3, 6)
        q, k, v = (
            linear(tokens).view(-1, 3, 2, 4).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        read = self.out(read.transpose(1, 2).reshape(-1, 3, 8))
        return self.head(read.flatten(1)).squeeze(1)


class Running(nn.Module):
    """A running sum needs all of what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(18, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cumsum(self.first(x), 1)).squeeze(1)


@cache
def analysed(module: type[nn.Module]) -> Channels:
    torch.manual_seed(0)
    return channels(canonical(module(), ROWS))


def group(found: Channels, name: str) -> Group:
    return next(group for group in found.groups if group.name == name)


def sides(group: Group, unit: int = 0) -> dict[tuple[str, int], list[int]]:
    """Which rows (0) and columns (1) of which weights go with a unit."""
    return {side: mask[unit].nonzero().flatten().tolist() for side, mask in group.sides.items()}


def test_a_residual_ties_the_units_of_both_sides() -> None:
    units = group(analysed(Residual), "outputs of first")
    assert units.units == 8
    assert sides(units, 3) == {
        ("first.weight", 0): [3],
        ("second.weight", 0): [3],
        ("second.weight", 1): [3],
        ("head.weight", 1): [3],
    }


def test_a_norm_loses_what_its_input_loses() -> None:
    units = group(analysed(Normed), "outputs of first")
    assert sides(units, 2) == {("first.weight", 0): [2], ("head.weight", 1): [2]}
    vectors = {key[0] for key in units.masks if isinstance(key, tuple)}
    assert vectors == {"first.bias", "norm.weight", "norm.bias"}
    assert any(exit_.renormalizes for exit_ in units.exits)


def test_a_head_takes_its_rows_of_all_projections() -> None:
    heads = group(analysed(Heads), "parts of reshape_default_1")
    second = [4, 5, 6, 7]
    assert heads.units == 2
    assert sides(heads, 1) == {
        ("query.weight", 0): second,
        ("key.weight", 0): second,
        ("value.weight", 0): second,
        ("out.weight", 1): second,
    }


def test_columns_within_heads_go_from_all_heads_at_once() -> None:
    columns = group(analysed(Heads), "outputs of query")
    assert columns.units == 4
    assert sides(columns, 1) == {("query.weight", 0): [1, 5], ("key.weight", 0): [1, 5]}


def test_what_needs_all_of_a_value_is_named() -> None:
    (refusal,) = analysed(Running).refused
    assert (refusal.site, refusal.what) == ("first", "outputs")
    assert refusal.why == "cumsum reads all of it"


def test_a_part_of_a_row_leaves_a_hole() -> None:
    program = canonical(Heads(), ROWS)
    scene = Scene(program)
    reshape = next(n for n in program.graph.nodes if "reshape" in n.name)
    mask = torch.zeros(1, *scene.row.shape(reshape), dtype=torch.bool)
    mask[..., 0, 0] = True
    closure = Closure(scene, reshape, mask)
    assert closure.live.tolist() == [False]
    assert "hole" in closure.why[0]
    assert isinstance(closure.culprit[0], fx.Node)


@pytest.mark.parametrize("module", [Residual, Normed, Heads])
def test_taking_a_unit_out_is_zeroing_its_weights(module: type[nn.Module]) -> None:
    found = analysed(module)
    assert check_every_group(found) >= 2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("dlrm", "dcnv2", "mmoe") else pytest.mark.slow)
        for name in sorted(zoo())
    ],
)
def test_taking_a_unit_out_is_zeroing_its_weights_all_over_the_zoo(name: str) -> None:
    model = zoo()[name]().eval()
    program = capture_small(model, *model.example_inputs(4))
    found = channels(run_passes(program, "canonicalize").program)
    assert check_every_group(found) >= 2


def check_every_group(found: Channels) -> int:
    """Takes the first and last unit of each group out; how many could be compared."""
    program = found.scene.program
    rows = made_up(program, 16, seed=3)
    compared = 0
    for one in found.groups:
        for unit in {0, one.units - 1}:
            removal = Removal.of([(one, [unit])])
            if emptied(found.scene, removal) is not None:
                continue
            smaller = without(program, found, removal, {})
            verify(smaller)
            if not one.sides or any(is_scaled_anew(exit_.node) for exit_ in one.exits):
                continue
            expected = Zeroed(program, one, unit).outputs(program, rows)
            moved = divergence(expected, smaller.run(rows))
            assert moved.relative < 1e-5, one.name
            compared += 1
    return compared


def is_scaled_anew(node: fx.Node) -> bool:
    return "softmax" in str(node.target)


def without_weights(program: Program, one: Group, unit: int) -> Program:
    copy = program.clone()
    rw = Rewriter(copy, "test")
    for (name, dim), mask in one.sides.items():
        rw.set_value(name, blanked(copy.tensor(name), dim, mask[unit]))
    for key, mask in one.masks.items():
        if isinstance(key, tuple) and len(found_readers(copy, key[0])) == 1:
            rw.set_value(key[0], blanked(copy.tensor(key[0]), 0, mask[unit]))
        elif isinstance(key, str):
            rw.set_value(key, copy.tensor(key).masked_fill(mask[unit], 0.0))
    return copy


class Zeroed(fx.Interpreter):
    """The program with a unit's rows, columns, vectors and whole values at zero."""

    def __init__(self, program: Program, one: Group, unit: int) -> None:
        super().__init__(without_weights(program, one, unit).module)
        self.whole = {
            key.name
            for key, mask in one.masks.items()
            if isinstance(key, fx.Node) and key.op == "call_function" and bool(mask[unit].all())
        }

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return torch.zeros_like(value) if n.name in self.whole else value

    def outputs(self, program: Program, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            scores = self.run(*(rows[name] for name in program.signature.names))
        return dict(zip(program.signature.outputs, scores, strict=True))


def blanked(tensor: Tensor, dim: int, mask: Tensor) -> Tensor:
    copy: Any = tensor.clone()
    copy.movedim(dim, 0)[mask] = 0.0
    return copy


def found_readers(program: Program, name: str) -> list[fx.Node]:
    return [
        user for node in program.graph.find_nodes(op="get_attr", target=name) for user in node.users
    ]
