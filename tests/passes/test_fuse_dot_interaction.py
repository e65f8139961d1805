from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import Ran, canonical, capture_small, operators, run_passes
from torch import Tensor, nn

X = torch.randn(6, 5, 8)
LOW = torch.tril_indices(5, 5, -1)
MASK = torch.ones(5, 5).tril(-1).bool()
FLAT = LOW[0] * 5 + LOW[1]
PAIRS = list(zip(LOW[0].tolist(), LOW[1].tolist(), strict=True))
#: However few pairs there are.
PASS = "fuse-dot-interaction{min_pairs=3,min_products=1}"
OP = "rankc.dot_interaction.default"


class Pairs(nn.Module):
    """A linear over the dot products that ``body`` makes of ``x``."""

    def __init__(self, body: Callable[..., Tensor], width: int = 10) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(width, 1)
        self.register_buffer("rows", LOW[0].clone())
        self.register_buffer("columns", LOW[1].clone())
        self.register_buffer("flat", FLAT.clone())
        self.register_buffer("mask", MASK.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(self, x)).squeeze(1)


def every(x: Tensor) -> Tensor:
    return torch.bmm(x, x.transpose(1, 2))


def fused(body: Callable[..., Tensor], width: int = 10) -> tuple[Pairs, Ran]:
    torch.manual_seed(0)
    module = Pairs(body, width)
    return module, run_passes(capture_small(module, X), f"canonicalize,fold-constants,{PASS}")


FORMS: dict[str, Callable[..., Tensor]] = {
    "index": lambda m, x: every(x)[:, m.rows, m.columns],
    "lists": lambda m, x: every(x)[:, LOW[0].tolist(), LOW[1].tolist()],
    "indices": lambda m, x: every(x)[:, *torch.tril_indices(5, 5, -1)],
    "matmul": lambda m, x: (x @ x.transpose(-1, -2))[:, m.rows, m.columns],
    "permute": lambda m, x: (x @ x.permute(0, 2, 1))[:, m.rows, m.columns],
    "flat index": lambda m, x: every(x).flatten(1)[:, m.flat],
    "index_select": lambda m, x: every(x).view(-1, 25).index_select(1, m.flat),
    "gather": lambda m, x: every(x).flatten(1).gather(1, m.flat.expand(x.shape[0], -1)),
    "repeated": lambda m, x: (
        every(x).flatten(1).gather(1, m.flat.unsqueeze(0).repeat(x.shape[0], 1))
    ),
    "mask": lambda m, x: every(x)[:, m.mask],
    "masked_select": lambda m, x: torch.masked_select(every(x), m.mask).view(-1, 10),
    "einsum": lambda m, x: torch.einsum("bid,bjd->bij", x, x)[:, m.rows, m.columns],
    "rows": lambda m, x: torch.cat([every(x)[:, i, :i] for i in range(1, 5)], 1),
    "product": lambda m, x: (x[:, m.rows] * x[:, m.columns]).sum(2),
    "outer": lambda m, x: (x.unsqueeze(2) * x.unsqueeze(1)).sum(-1)[:, m.rows, m.columns],
    "selected": lambda m, x: (x.index_select(1, m.rows) * x.index_select(1, m.columns)).sum(-1),
    "loop": lambda m, x: torch.stack([(x[:, i] * x[:, j]).sum(-1) for i, j in PAIRS], 1),
    "joined": lambda m, x: torch.cat([(x[:, i] * x[:, j]).sum(1, True) for i, j in PAIRS], 1),
    "split": lambda m, x: torch.cat(
        [(x.split(1, 1)[i] * x.split(1, 1)[j]).sum(-1) for i, j in PAIRS], 1
    ),
    "unbound": lambda m, x: torch.stack(
        [(x.unbind(1)[i] * x.unbind(1)[j]).sum(1) for i, j in PAIRS], -1
    ),
    "lists of rows": lambda m, x: (
        torch.cat([x[:, i : i + 1] for i, _ in PAIRS], 1)
        * torch.cat([x[:, j : j + 1] for _, j in PAIRS], 1)
    ).sum(2),
}


@pytest.mark.parametrize("form", FORMS)
def test_finds_every_form(form: str) -> None:
    module, ran = fused(FORMS[form])
    assert operators(ran.program) == [OP, "linear", "squeeze"]
    (node,) = [n for n in ran.program.graph.nodes if OP in str(n.target)]
    rows, columns = (ran.program.tensor(str(index.target)) for index in node.args[1:])
    found = {tuple(sorted(pair)) for pair in zip(rows.tolist(), columns.tolist(), strict=True)}
    assert found == {tuple(sorted(pair)) for pair in PAIRS}
    assert torch.allclose(ran.program(X), module(X), atol=1e-5)
    assert ran.applied("fuse-dot-interaction") == ["made 10 pairs of 5 rows one interaction"]
    again = run_passes(ran.program, PASS)
    assert again.outcomes == [Outcome.UNCHANGED]


def test_rows_of_several_values_are_joined() -> None:
    def body(m: Pairs, x: Tensor) -> Tensor:
        rows = [x[:, i].relu() for i in range(5)]
        return torch.stack([(rows[i] * rows[j]).sum(1) for i, j in PAIRS], 1)

    module, ran = fused(body)
    assert operators(ran.program)[-4:] == ["stack", OP, "linear", "squeeze"]
    assert torch.allclose(ran.program(X), module(X), atol=1e-5)


def test_a_run_in_a_concatenation() -> None:
    def body(m: Pairs, x: Tensor) -> Tensor:
        dots = [(x[:, i] * x[:, j]).sum(1, keepdim=True) for i, j in PAIRS]
        return torch.cat([x[:, 0], *dots, x[:, 1]], 1)

    module, ran = fused(body, 26)
    assert operators(ran.program).count(OP) == 1
    assert "mul" not in operators(ran.program)
    assert torch.allclose(ran.program(X), module(X), atol=1e-5)


def test_a_masked_batch_stays_dynamic() -> None:
    module, ran = fused(FORMS["masked_select"])
    other = torch.randn(9, 5, 8)
    assert torch.allclose(ran.program(other), module(other), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "width", "reason"),
    [
        (
            lambda m, x: torch.cat([every(x)[:, m.rows, m.columns], every(x).sum(2)], 1),
            15,
            [],
        ),
        (
            lambda m, x: (lambda g: torch.cat([g[:, m.rows, m.columns], g.relu().sum(2)], 1))(
                every(x)
            ),
            15,
            ["the products of its pairs are used elsewhere too"],
        ),
        (
            lambda m, x: (lambda p: torch.cat([p.sum(2), p.sum(1)], 1))(
                x[:, m.rows] * x[:, m.columns]
            ),
            18,
            ["the products of its pairs are used elsewhere too"],
        ),
        (
            lambda m, x: (x[:, m.rows[:4]] * x[:, m.columns[:4]]).sum(2),
            4,
            ["its pairs are too few for a product of all"],
        ),
        (
            lambda m, x: (x[:, m.rows] * x[:, m.columns].flip(2)).sum(2),
            10,
            ["its pairs are too few for a product of all"],
        ),
    ],
    ids=["two products", "product used", "elements used", "few pairs", "others' rows"],
)
def test_near_misses(body: Callable[..., Tensor], width: int, reason: list[str]) -> None:
    _, ran = fused(body, width)
    assert ran.missed("fuse-dot-interaction") == reason
    assert (OP in operators(ran.program)) == (not reason)


@pytest.mark.parametrize(
    ("body", "width"),
    [
        (lambda m, x: every(x).flatten(1), 25),
        (lambda m, x: (x * x).sum(2), 5),
        (lambda m, x: (x[:, m.rows] * x[:, m.columns]).sum(1), 8),
        (lambda m, x: torch.bmm(x, x.relu().transpose(1, 2))[:, m.rows, m.columns], 10),
        (lambda m, x: (x[:, m.rows, :4] * x[:, m.columns, 4:]).sum(2), 10),
        (lambda m, x: torch.bmm(x.view(-1, 8, 5), x)[:, m.rows, m.columns], 10),
        (lambda m, x: every(x).softmax(-1)[:, m.rows, m.columns], 10),
    ],
    ids=["whole", "squares", "other sum", "other side", "halves", "view", "softmax"],
)
def test_leaves_what_is_no_pair_of_rows(body: Callable[..., Tensor], width: int) -> None:
    _, ran = fused(body, width)
    assert ran.outcomes[-1] is Outcome.UNCHANGED
    assert ran.missed("fuse-dot-interaction") == []


def test_canonical_form_of_dlrm_is_bit_equal() -> None:
    program = canonical(Pairs(FORMS["index"]), X)
    ran = run_passes(program, "fuse-dot-interaction")
    assert torch.equal(ran.program(X), program(X))


@pytest.mark.parametrize(
    ("n", "d", "pays"),
    [(4, 64, False), (5, 16, False), (7, 8, False), (7, 16, True), (8, 32, True), (27, 64, True)],
)
def test_gathers_rows_where_that_was_measured_to_be_faster(n: int, d: int, pays: bool) -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows, columns = torch.triu_indices(n, n, 1)
            return (x[:, rows] * x[:, columns]).sum(2).relu().sum(1)

    program = canonical(Products(), torch.randn(6, n, d))
    ran = run_passes(program, "fold-constants,fuse-dot-interaction")
    reasons = [] if pays else ["its pairs are too few for a product of all"]
    assert ran.missed("fuse-dot-interaction") == reasons
    assert (OP in operators(ran.program)) == pays


def test_a_small_product_that_is_there_becomes_an_interaction() -> None:
    program = canonical(Pairs(FORMS["mask"]), X)
    assert OP in operators(run_passes(program, "fuse-dot-interaction").program)
