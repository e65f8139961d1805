"""What formats of tables lose: whole tables, few bits, and the hottest rows kept wider.

``make bench-tables`` writes ``benchmarks/results/table_formats.md``. DLRMs with tables of width 64
are trained on three data sets; their tables are replaced by what they are once coded, and the
damage is what that costs in NE on soft labels. Hot rows are those that calibration looks up most;
a mix pays four bytes a row for where to find it. What 2 and 3 bits would give is computed here
alone: no table takes them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import rankc
import torch
from rankc.models import DLRM, DLRMConfig
from rankc.models.data import RankingData, load_census, load_flights, load_movielens
from rankc.models.train import train
from rankc.optimizer.analysis.sites import rows_read, table_sites
from rankc.optimizer.data.rows import collect, split
from rankc.optimizer.formats import TABLE
from rankc.optimizer.ir import Program, Rewriter
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.precision.codes import round_trip_rows
from rankc.optimizer.precision.table_formats import table_bytes, table_format
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.registry import served
from rankc.optimizer.target import Target
from torch import Tensor

WIDTH = 64
DATA: Mapping[str, tuple[Callable[[], RankingData], str]] = {
    "flights": (load_flights, "late_arr"),
    "census": (load_census, "income"),
    "MovieLens-100K": (load_movielens, "liked"),
}
#: Bits of all rows, of the hottest, and how large a share of the rows these are.
FORMS = (
    *((bits, bits, 0.0) for bits in (8, 4, 3, 2)),
    *((4, 8, share) for share in (0.05, 0.1, 0.3)),
    *((2, 8, 0.1), (2, 4, 0.1), (2, 4, 0.3)),
)
#: Shares of a row's range that are tried for clipping at either end.
CLIPS = (0.0, 0.04, 0.08, 0.12, 0.18, 0.25, 0.3)


def main() -> None:
    """Trains, codes, judges and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/table_formats.md"))
    arguments = parser.parse_args()
    lines = [
        "# Formats of tables",
        "",
        f"DLRMs with tables of width {WIDTH}, all tables in one form, and placed table by table. "
        "Damage is ΔNE on soft labels, in units of what a plan within ΔNE of 0.02 % may cost on "
        "the rows at hand: what is over 1 can't be taken. Bytes are of fp32. `make bench-tables` "
        "writes this page.",
        "",
        "| data | form | bytes | damage, of what is allowed |",
        "|---|---|---:|---:|",
    ]
    for name in DATA:
        for form, (nbytes, damage) in judged(name).items():
            lines.append(f"| {name} | {form} | {nbytes:.1%} | {damage:.3g} |")
            print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


def judged(name: str) -> dict[str, tuple[float, float]]:
    """By form: the share of the bytes, and the damage over what is allowed."""
    load, task = DATA[name]
    data = load()
    torch.manual_seed(0)
    config = DLRMConfig(data.cardinalities, data.train.dense.shape[1], WIDTH, (256,), (256, 128))
    model = DLRM(config)
    train(model, data.train, task=task)
    batches = []
    for start in range(0, len(data.test), 2048):
        part = data.test.take(slice(start, start + 2048))
        inputs = torch.from_numpy(part.dense), torch.from_numpy(part.ids)
        batches.append(rankc.Batch(inputs, part.labels[task], part.group))
    program = rankc.capture(model.eval(), batches[0].inputs)
    rows = split(collect(batches, program))
    judge = Judge.of(program, rows.choice, rankc.Budget(ne=2e-4, cohorts=False))
    judge = replace(judge, proof_rows=len(rows.proof))
    (allowed,) = judge.allowances().values()
    context = PassContext(
        target=placing(),
        calibration=tuple(rows.calibration.batches()),
        judge=judge,
    )
    sites = table_sites(program)
    read = rows_read(program, [n for nodes in sites.values() for n in nodes], context.calibration)
    lookups = {
        table: torch.cat([read[node].flatten() for node in nodes if node in read])
        for table, nodes in sites.items()
    }
    found = {}
    for low, high, share in FORMS:
        form = f"{low} bits"
        if share:
            form += f", the hottest {share:.0%} of the rows {high} bits"
        tables = {t: mixed(program.tensor(t), ids, low, high, share) for t, ids in lookups.items()}
        found[form] = told(program, judge, tables, allowed)
    placed = program.clone()
    Pipeline.parse("canonicalize,place-precision").run(placed, context)
    chosen = {site.site: site.chosen for site in context.report.sites}
    tables = {}
    for table in sites:
        weight, number_format = program.tensor(table), chosen[table.removesuffix(".weight")]
        coded = (
            table_format(number_format).imitate(weight)
            if number_format in TABLE
            else weight.clone()
        )
        tables[table] = coded, table_bytes(*weight.shape, number_format)
    counts = [list(chosen.values()).count(name) for name in ("fp32", "int8", "int4")]
    named = ", ".join(f"{n} in {f}" for n, f in zip(counts, ("fp32", "8", "4"), strict=True) if n)
    found[f"placed table by table: {named}"] = told(program, judge, tables, allowed)
    return found


def placing() -> Target:
    """Tables alone are placed, for their bytes."""
    target = replace(served(Target.of("cpu-int8"), "onnxruntime"), formats=())
    return replace(target, table_formats=("int8", "int4"), memory_weight=100.0)


def mixed(weight: Tensor, ids: Tensor, low: int, high: int, share: float) -> tuple[Tensor, float]:
    """A table as it is once coded, and its bytes."""
    made, rows = coded(weight, low), len(weight)
    nbytes = bytes_of(rows, low)
    if share:
        hot = torch.bincount(ids, minlength=rows).topk(max(1, round(share * rows))).indices
        made[hot] = coded(weight[hot], high)
        nbytes = bytes_of(rows - len(hot), low) + bytes_of(len(hot), high) + 4.0 * rows
    return made, nbytes


def coded(rows: Tensor, bits: int) -> Tensor:
    """Rows once coded, their range searched below 8 bits."""
    if bits == 8:
        return round_trip_rows(rows, 8)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    span, largest = high - low, 2**bits - 1
    least, best = torch.full_like(low, float("inf")), rows.clone()
    for below, above in itertools.product(CLIPS, repeat=2):
        start = (low + below * span).half().float()
        step = ((high - above * span - start) / largest).half().float()
        step = torch.where(step > 0.0, step, torch.ones_like(step))
        made = ((rows - start) / step).round().clamp(0, largest) * step + start
        error = torch.linalg.vector_norm(made - rows, dim=1, keepdim=True)
        best, least = torch.where(error < least, made, best), torch.minimum(error, least)
    return best


def bytes_of(rows: int, bits: int) -> float:
    """Codes, and scale and bias: fp32 at 8 bits, fp16 below."""
    return rows * (WIDTH * bits / 8 + (8.0 if bits == 8 else 4.0))


def told(
    program: Program,
    judge: Judge,
    tables: Mapping[str, tuple[Tensor, float]],
    allowed: float,
) -> tuple[float, float]:
    """The share of the bytes, and the damage over what is allowed."""
    copy = program.clone()
    rw = Rewriter(copy, "table_formats")
    whole = 0.0
    for table, (values, _) in tables.items():
        rw.set_value(table, values)
        whole += 4.0 * values.numel()
    (damage,) = judge.damages(copy).values()
    return sum(nbytes for _, nbytes in tables.values()) / whole, damage / allowed


if __name__ == "__main__":
    main()
