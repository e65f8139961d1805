"""Operators that nothing of a target has a form for, refused before any work is done."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from ..errors import TargetError, UnsupportedError
from ..ir.alone import alone
from ..ir.facts import facts_of, site_of
from ..ir.program import Program
from ..ir.torchapi import captured_operators, operator_name
from ..registry import backend, backend_names
from ..target import Target

#: Of core ATen, and without a case of their own in the conformance suite or a form by a pass: they
#: are tried where they are met.
_SELDOM = frozenset(
    {
        *("_fft_c2r", "_fft_r2c", "masked_scatter", "nonzero", "rand", "randn", "randperm"),
        *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "avg_pool1d"),
        *("avg_pool2d", "avg_pool3d", "col2im", "conv2d", "grid_sampler_2d"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices", "reflection_pad1d"),
        *("reflection_pad2d", "reflection_pad3d", "replication_pad2d", "replication_pad3d"),
        *("upsample_bilinear2d", "upsample_nearest2d", "_cdist_forward", "_pdist_forward"),
    }
)


def require_forms(program: Program, target: Target) -> None:
    """Raises if an operator has no form with any backend of the target.

    Those of the conformance suite's table are known to have one; each other is tried alone, which
    takes a second.

    Raises:
        UnsupportedError: Its name, the user's line, which backends have it, and what to try.
    """
    tried: set[str] = set()
    for node in _unknown(program):
        name = str(node.target)
        if name in tried:
            continue
        tried.add(name)
        made = alone(node)
        if made is None:
            continue  # whoever builds it says so
        said = {other: _lacks(other, made) for other in target.backends}
        if not said or not all(said.values()):
            continue
        others = [
            other
            for other in backend_names()
            if other not in target.backends and not _lacks(other, made)
        ]
        raise UnsupportedError(_refusal(node, target, others))


def _unknown(program: Program) -> Iterator[fx.Node]:
    known = captured_operators() - _SELDOM
    for node in program.graph.nodes:
        name = operator_name(node.target) if node.op == "call_function" else None
        if name is not None and name not in known:
            yield node


def _lacks(name: str, program: Program) -> str:
    """Why a backend has no form for a program of one operator; empty if it has one."""
    try:
        return str(backend(name).lacks(program))
    except TargetError as error:  # it isn't installed
        return str(error)


def _refusal(node: fx.Node, target: Target, others: list[str]) -> str:
    source = facts_of(node).source
    where = f" ({source})" if source else ""
    by = ", ".join(target.backends)
    text = (
        f"{node.target}, used at {site_of(node)}{where}, has no form with any backend of "
        f"{target.name} ({by}). Compute it of features before the model is called, or write it "
        "with operators of docs/operators.md."
    )
    if "inductor" in others:
        text += (
            f" {' and '.join(others)} can: dataclasses.replace(rankc.Target.of({target.name!r}), "
            "backends=('inductor',)) is a target that takes the model as it is."
        )
    elif others:
        text += f" {' and '.join(others)} can."
    return text
