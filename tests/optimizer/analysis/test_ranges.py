"""What values can be at most: known ranges hold for every row, and are no wider than they need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.models import zoo
from rankc.optimizer.analysis.ranges import Range, first_linears, value_ranges
from rankc.optimizer.ir import Program, site_of
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.target import Target
from support import canonical, made_up
from torch import Tensor, fx, nn
from torch.nn import functional


class _Values(fx.Interpreter):
    """What every node gives."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        self.values[n] = super().run_node(n)
        return self.values[n]


def bounded(program: Program, rows: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Every floating-point feature as bounded as these rows have it."""
    return {
        name: (value.min().double(), value.max().double())
        for name, value in rows.items()
        if value.is_floating_point()
    }


def check(program: Program, rows: dict[str, Tensor]) -> dict[fx.Node, Range]:
    """The ranges, after every value was found to be within its own."""
    one = {name: value[:1] for name, value in rows.items()}
    found = value_ranges(program, one, bounded(program, rows))
    runner = _Values(program)
    with torch.no_grad():
        runner.run(*(rows[name] for name in program.signature.names))
    for node, range_ in found.items():
        value = runner.values[node].double()
        if value.dim() != range_.low.dim() or value.isnan().any():
            continue
        slack = 1e-4 * (1.0 + value.abs().max())
        assert bool((value >= range_.low - slack).all()), node.format_node()
        assert bool((value <= range_.high + slack).all()), node.format_node()
    return found


@pytest.mark.parametrize("name", ["dlrm", "dcnv2", "masknet", "din"])
def test_every_value_of_a_ranker_is_within_its_range(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        program = canonical(zoo()[name]().eval(), *zoo()[name]().example_inputs(4))
    Pipeline.parse("rounding,interactions,attention").run(
        program, PassContext(Target.of("h100-fp8"))
    )
    found = check(program, made_up(program, 64, seed=1))
    linears = [node for node in found if "linear" in str(node.target)]
    assert linears
    assert all(abs(end) < float("inf") for node in linears for end in found[node].ends)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "leaky relu": lambda x: functional.leaky_relu(x, 0.2),
    "falling leaky relu": lambda x: functional.leaky_relu(x, -1.0),
    "elu": functional.elu,
    "softplus": functional.softplus,
    "log of a positive": lambda x: (x.abs() + 0.5).log(),
    "square": lambda x: x * x,
    "cube": lambda x: x**3,
    "reciprocal": lambda x: 1.0 / (x.abs() + 0.1),
    "quotient": lambda x: x / (x.abs() + 0.1),
    "rsqrt": lambda x: (x.square() + 0.1).rsqrt(),
    "softmax": lambda x: x.softmax(-1),
    "norm": lambda x: functional.layer_norm(x, (6,)),
    "length": lambda x: x.norm(dim=-1, keepdim=True),
    "difference": lambda x: 2.0 - x,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "where": lambda x: torch.where(x > 0, x, -2.0 * x),
    "maximum": lambda x: torch.maximum(x, -x),
    "sum": lambda x: x.sum(-1, keepdim=True) * torch.ones(6),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "products": lambda x: torch.bmm(x.unsqueeze(2), x.unsqueeze(1)),
    "attention": lambda x: functional.scaled_dot_product_attention(
        x.view(-1, 3, 2), x.view(-1, 3, 2), x.view(-1, 3, 2)
    ),
    "pieces": lambda x: torch.cat([part * k for k, part in enumerate(x.split(2, 1), 1)], 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_rule_holds(name: str) -> None:
    class Applied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FUNCTIONS[name](x)

    program = canonical(Applied(), torch.randn(5, 6))
    x = 3.0 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = x.min(), x.max()
    check(program, {program.signature.names[0]: x})


def test_ranges_of_lookups_are_the_tables_columns() -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return 2.0 * self.table(ids)

    model = Looked()
    program = canonical(model, torch.arange(5))
    one = made_up(program, 1, seed=0)
    last = list(value_ranges(program, one, {}).values())[-1]
    assert torch.allclose(last.low[0], 2.0 * model.table.weight.double().amin(0))
    assert torch.allclose(last.high[0], 2.0 * model.table.weight.double().amax(0))


def test_what_nothing_bounds_is_unbounded_and_what_bounds_it_is_known() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.sigmoid(self.first(x)))

    program = canonical(Net(), torch.randn(3, 4))
    found = value_ranges(program, made_up(program, 1, seed=0), {})
    first, second = (r for n, r in found.items() if "linear" in str(n.target))
    assert first.ends == (-float("inf"), float("inf"))
    assert all(abs(end) < 10.0 for end in second.ends)


class Paths(nn.Module):
    """A feature on its way to several linears."""

    def __init__(self) -> None:
        super().__init__()
        names = ("raw", "joined", "squashed", "clamped", "normed", "second", "looked")
        self.table = nn.Embedding(10, 4)
        self.linears = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        use, rows = self.linears, self.table(ids)
        raw = use["raw"](x)
        return (
            use["second"](torch.relu(raw))
            + use["joined"](torch.cat([x[:, :2] * 2.0, rows[:, :2]], 1).relu())
            + use["squashed"](torch.tanh(x))
            + use["clamped"](x.clamp(-1.0, 1.0))
            + use["normed"](functional.layer_norm(x, (4,)))
            + use["looked"](rows)
        ).sum(1)


def test_first_linears_are_those_that_read_a_feature_as_it_is() -> None:
    program = canonical(Paths(), torch.rand(3, 4), torch.arange(3))
    found = first_linears(program, ["x"])
    assert {site_of(node): names for node, names in found.items()} == {
        "linears.raw": ("x",),
        "linears.joined": ("x",),
    }
    assert first_linears(program, []) == {}
