"""Defining an operator of the dialect.

A dialect op is a schema and *one* reference function, registered ``CompositeImplicitAutograd``.
That one function is the eager kernel, the autograd formula, the shape rule, the fallback lowering
(every backend may decompose it) and the search pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import torchapi
from .operators import give
from .traits import Coded, Flops, NotFinite, OnRows, Rounding, Traits, Values

_LIBRARY = torch.library.Library("rankc", "DEF")


@dataclass(frozen=True)
class DialectOp:
    """A dialect op: ``op`` goes into graphs, ``reference`` says what it means."""

    name: str
    op: torchapi.OpOverload
    reference: Callable[..., Any]


_OPS: dict[str, DialectOp] = {}


def define_op(
    schema: str,
    reference: Callable[..., Any],
    shape: Callable[..., Any] | None = None,
    *,
    rows: OnRows,
    flops: Flops,
    values: Values = Values.ANY,
    learned: tuple[int, ...] = (),
    tables: tuple[int, ...] = (),
    coded: Coded = Coded.NO,
    lookup: tuple[int, int] | None = None,
    not_finite: NotFinite = NotFinite.DROPPED,
    rounding: Rounding = Rounding.ANY,
) -> DialectOp:
    """Defines ``rankc::<schema>`` by its reference.

    Args:
        schema: Such as ``"quantize(Tensor x, Tensor scale) -> Tensor"``.
        reference: A function of the same arguments, written in ATen only.
        shape: Of the same arguments, an empty result of the right shape and dtype, for a reference
            that looks at values: the op then stays whole wherever it is traced.
        rows: The op's traits, as `Traits` says: what it does to the rows of a batch.
        flops: How its operations are counted.
        values: How its values follow from its operands'.
        learned: The places of arguments that training moves.
        tables: Those that it moves if tables are learned too.
        coded: Whether codes may hold what it reads.
        lookup: The places of the table and of the ids.
        not_finite: What becomes of NaN and infinity.
        rounding: Whether its result depends on how it is computed.

    Raises:
        ValueError: The name is taken.
    """
    name = schema.split("(", 1)[0].strip()
    if name in _OPS:
        raise ValueError(f"the dialect has an op called {name!r} already")
    _LIBRARY.define(schema)
    if shape is None:
        _LIBRARY.impl(name, reference, "CompositeImplicitAutograd")
    else:
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rankc::{name}", shape, lib=_LIBRARY)
    made = DialectOp(name, getattr(torch.ops.rankc, name).default, reference)
    _OPS[name] = made
    traits = Traits(
        rows=rows,
        values=values,
        flops=flops,
        learned=learned,
        tables=tables,
        coded=coded,
        lookup=lookup,
        not_finite=not_finite,
        rounding=rounding,
    )
    give(made.op, traits)
    return made


def dialect() -> dict[str, DialectOp]:
    """Every op of the dialect, by name."""
    return dict(_OPS)
