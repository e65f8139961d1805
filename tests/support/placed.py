"""Programs of the zoo with every linear in one format, as the tests of GPU backends need them."""

from __future__ import annotations

import torch
from rankc import models
from rankc.frontends.export import capture
from rankc.optimizer.analysis.sites import inputs_of, linear_sites
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Program, Rewriter, sweep
from rankc.optimizer.ir.ops import ROWWISE_EMBEDDING
from rankc.optimizer.ir.pattern import shape_of
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.precision.candidates import choose_input
from rankc.optimizer.precision.codes import quantize_rows
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.target import Target
from torch import fx

_aten = torch.ops.aten
_SMALLEST = 16


def optimized(name: str) -> Program:
    """A model of the zoo after the passes that aren't lossy."""
    torch.manual_seed(0)
    program = capture(models.zoo()[name]().eval())
    context = PassContext(target=Target.of("cpu-fp32"), strict=True)
    Pipeline.parse("rounding,structure,grouping").run(program, context)
    return program


def coded(program: Program, number_format: str) -> tuple[Program, list[str]]:
    """A copy with Q/DQ around every linear that is large enough, and those linears' nodes."""
    copy = program.clone()
    rw = Rewriter(copy, "test")
    rows = synthesize(copy.signature, 256, 0).features
    sites = [n for n in linear_sites(copy) if min(shape_of(n.args[1])) >= _SMALLEST]
    samples = inputs_of(copy, sites, [rows])
    done = []
    for node in sites:
        if not bool((samples[node] != 0).any()):
            continue
        assert isinstance(node.args[1], fx.Node)
        weight = copy.tensor(str(node.args[1].target))
        realise(rw, node, choose_input(samples[node], weight, number_format, "int8")[0])
        done.append(node.name)
    sweep(copy)
    return copy, done


def halved(program: Program, dtype: torch.dtype) -> Program:
    """A copy whose linears multiply in ``dtype``."""
    copy = program.clone()
    rw = Rewriter(copy, "test")
    for node in linear_sites(copy):
        with rw.before(node):
            low = [
                rw.emit(_aten._to_copy.default, value, dtype=dtype, like=node)
                for value in node.args
                if isinstance(value, fx.Node)
            ]
            product = rw.emit(_aten.linear.default, *low, like=node)
            whole = rw.emit(_aten._to_copy.default, product, dtype=torch.float32, like=node)
        rw.replace(node, whole)
    sweep(copy)
    return copy


def with_coded_tables(program: Program) -> Program:
    """A copy whose lookups read row-wise INT8 tables."""
    copy = program.clone()
    rw = Rewriter(copy, "test")
    for node in list(copy.graph.find_nodes(op="call_function", target=_aten.embedding.default)):
        table = node.args[0]
        assert isinstance(table, fx.Node)
        name = str(table.target).replace(".", "_")
        parts = zip(
            ("codes", "scale", "bias"), quantize_rows(copy.tensor(str(table.target))), strict=True
        )
        stored = [rw.parameter(f"{name}_{part}", tensor) for part, tensor in parts]
        with rw.before(node):
            new = rw.emit(ROWWISE_EMBEDDING.op, *stored, node.args[1], like=node)
        rw.replace(node, new)
    sweep(copy)
    return copy
