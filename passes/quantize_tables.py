"""quantize-tables: row-wise INT8 tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import mixed_tables, table_sites
from ..optimizer.context import PassContext
from ..optimizer.formats import quantize_rows
from ..optimizer.ir import Program, Rewriter, sweep
from ..optimizer.ir.ops import ROWWISE_EMBEDDING
from ..optimizer.passbase import Exactness, Pass, Skip
from ..optimizer.report import SiteRecord, readable_bytes
from ..optimizer.verdict import Status

_Coded = dict[str, tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class QuantizeTables(Pass):
    """Replaces fp32 tables by uint8 rows with a scale and a floating-point bias each.

    Method: row-wise quantization of 2105.12676 and FBGEMM: x = s·q + b, s = (max − min)/255,
    b = min, so that a constant row, such as padding, is exact.
    Loses: half a step of each row's range; judged under the budget, and when the tables together
    are over it, the one with the largest error goes back to fp32 until they are not.
    Requires: CANONICAL.
    Misses when: a table is read by something else than lookups, or is so small that there is
    nothing to gain: the smallest tables that together hold less than ``small_share`` of the bytes.
    """

    name: ClassVar[str] = "quantize-tables"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    small_share: float = 0.0

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips targets without a table format, and runs without data."""
        if "int8" not in ctx.target.table_formats:
            raise Skip(f"{ctx.target.name} has no table format below fp32")
        if ctx.judge is None:
            raise Skip("there is no data to judge quantized tables on")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Quantizes what is worth it, and backs off while over budget."""
        rw = ctx.rewriter(program)
        for name in mixed_tables(program):
            ctx.missed("is read by something else than lookups", _site(name))
        tables = _worth_it(program, ctx, self.small_share)
        chosen = [name for name in tables if rw.site(tables[name][0])]
        coded = {name: quantize_rows(program.tensor(name)) for name in chosen}
        errors = {name: _error(program.tensor(name), *coded[name]) for name in chosen}
        chosen.sort(key=lambda name: errors[name])
        while chosen and not _within_budget(program, ctx, chosen, coded):
            dropped = chosen.pop()
            ctx.missed("its INT8 rows put the model over budget", _site(dropped))
            _record(program, ctx, dropped, "fp32", errors, "INT8 rows put the model over budget")
        for name in chosen:
            _record(program, ctx, name, "int8", errors, "row-wise INT8 is within budget")
            _quantize(rw, name, tables[name], coded[name])
        if chosen:
            ctx.applied(f"quantized {len(chosen)} tables to INT8 rows", *map(_site, chosen))


def _worth_it(program: Program, ctx: PassContext, small_share: float) -> dict[str, list[fx.Node]]:
    tables = {
        name: nodes
        for name, nodes in table_sites(program).items()
        if program.tensor(name).dtype is torch.float32 and program.tensor(name).dim() == 2
    }
    size = {name: program.tensor(name).nbytes for name in tables}
    total, small = sum(size.values()), 0
    kept = dict(tables)
    for name in sorted(tables, key=lambda n: size[n]):
        small += size[name]
        if small > small_share * total:
            break
        del kept[name]
        reason = f"only {readable_bytes(size[name])}: nothing to gain"
        ctx.report.sites.append(
            SiteRecord(_site(name), "table", tuple(program.tensor(name).shape), "fp32", (), reason)
        )
    return kept


def _error(weight: Tensor, codes: Tensor, scale: Tensor, bias: Tensor) -> float:
    """Relative L2 error of the codes, on up to 65,536 rows."""
    rows = weight[:65536]
    restored = codes[:65536].float() * scale[:65536] + bias[:65536]
    return float((restored - rows).norm() / rows.norm().clamp_min(1e-30))


def _within_budget(program: Program, ctx: PassContext, names: list[str], coded: _Coded) -> bool:
    assert ctx.judge is not None
    trial = program.clone()
    rw = Rewriter(trial, "trial")
    tables = table_sites(trial)
    for name in names:
        _quantize(rw, name, tables[name], coded[name])
    sweep(trial)
    return ctx.judge(trial).status is Status.PASS


def _quantize(
    rw: Rewriter, name: str, lookups: list[fx.Node], coded: tuple[Tensor, Tensor, Tensor]
) -> None:
    base = name.replace(".", "_")
    parts = zip(("codes", "scale", "bias"), coded, strict=True)
    parameters = [rw.parameter(f"{base}_{part}", tensor) for part, tensor in parts]
    for node in lookups:
        with rw.before(node):
            new = rw.emit(ROWWISE_EMBEDDING.op, *parameters, node.args[1], like=node)
        rw.replace(node, new)


def _record(
    program: Program, ctx: PassContext, name: str, chosen: str, errors: dict[str, float], why: str
) -> None:
    shape = tuple(program.tensor(name).shape)
    candidate = {"format": "int8", "relative_error": errors[name]}
    ctx.report.sites.append(SiteRecord(_site(name), "table", shape, chosen, (candidate,), why))


def _site(name: str) -> str:
    return name.removesuffix(".weight")
