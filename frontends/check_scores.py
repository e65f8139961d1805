"""Checks that a captured program scores like its model, and each row by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..optimizer.compare.numerics import truth
from ..optimizer.data.delimiters import ragged_of, row_count
from ..optimizer.data.ragged import take
from ..optimizer.errors import CaptureError
from ..optimizer.ir import FeatureKind, Program, Signature
from .failures import mixed_rows, randomness
from .rounding import SAME, in_fp64, is_rounding, largest_difference, same_scores
from .widen import coarsest, widen

Leaves = Mapping[str, Tensor]
Scores = tuple[Tensor, ...]
#: Rows scored apart from the others; the last ones because a score may depend on the first row.
_SLICES = (slice(0, 1), slice(0, 2), slice(-3, None))
#: Rows of a large batch: more than the 128 at which models begin to cut batches into pieces.
_MANY = 276
#: Steps of half precision that kernels of its operators may differ by.
_HALF_STEPS = 8


class DiffersError(CaptureError):
    """The program scores differently from the model on the example itself."""


def check_agreement(
    program: Program, leaves: Leaves, expected: Scores, model: Callable[[Leaves], Scores]
) -> tuple[str, ...]:
    """The program must score like the model, all rows together and each alone.

    What it computes in half precision is computed in float32 from here on.

    Args:
        program: What was captured.
        leaves: The example's rows.
        expected: What the model gives for them.
        model: The model.

    Returns:
        What the user should know: of scores that rounding moves, and of half precision.

    Raises:
        CaptureError: It doesn't; which output, and the operator to blame where it is known.
    """
    # Operators in half precision round as their kernels do, which change with the batch.
    same = max(SAME, _HALF_STEPS * coarsest(program))
    said = [_check_model(program, leaves, expected, model, same, "the example")]
    said.append(_check_many(program, leaves, model, same))
    said.append(widen(program, leaves))
    said.append(_check_rows(program, leaves))
    return tuple(dict.fromkeys(filter(None, said)))


def _check_model(
    program: Program,
    leaves: Leaves,
    expected: Scores,
    model: Callable[[Leaves], Scores],
    same: float,
    where: str,
) -> str:
    said = ""
    for place, (name, got) in enumerate(program.run(leaves).items()):
        want = expected[place]
        moved = largest_difference(got, want)
        if moved <= same:
            continue
        again = model(leaves)
        random = not all(
            largest_difference(a, b) <= same for a, b in zip(again, expected, strict=True)
        )
        if random and (reason := randomness(program.graph, name)):
            raise CaptureError(reason)
        exact = in_fp64(model, leaves)
        if random or exact is None or moved == math.inf:
            raise DiffersError(_difference(name, got, want, where, "the model"))
        apart = largest_difference(truth(program, leaves)[name], exact[place])
        if not is_rounding(moved, apart):
            raise DiffersError(_difference(name, got, want, where, "the model"))
        said = _ill_conditioned(name, moved)
    return said


def _check_many(
    program: Program, leaves: Leaves, model: Callable[[Leaves], Scores], same: float
) -> str:
    """A batch larger than the example's must score as in the model, if the model takes it."""
    ragged = ragged_of(program.signature)
    many = take(leaves, ragged, torch.arange(_MANY) % row_count(leaves, ragged))
    try:
        expected = model(many)
    except Exception:  # whatever it is: there is nothing to compare with
        return ""
    try:
        program.run(many)
    except Exception as error:
        raise _does_not_run(_MANY, error) from error
    return _check_model(program, many, expected, model, same, f"batch {_MANY}")


def _check_rows(program: Program, leaves: Leaves) -> str:
    """Rows must score alike with fewer rows around them."""
    said = ""
    # An example of equal rows can't show that rows mix, so no two rows are scored alike here.
    varied = _varied(leaves, program.signature)
    ragged = ragged_of(program.signature)
    try:
        whole = program.run(varied)
    except IndexError:  # ids that one table has, and another behind arithmetic hasn't
        varied = dict(leaves)
        whole = program.run(varied)
    for rows in _SLICES:
        few = take(varied, ragged, rows)
        size = row_count(few, ragged)
        try:
            scores = program.run(few)
        except Exception as error:
            raise _does_not_run(size, error) from error
        for name in program.signature.outputs:
            got, want = scores[name], whole[name][rows]
            moved = largest_difference(got, want)
            if moved <= SAME:
                continue
            if not same_scores(program.run(varied)[name], whole[name]):
                reason = randomness(program.graph, name)
            elif is_rounding(
                moved,
                largest_difference(truth(program, few)[name], truth(program, varied)[name][rows]),
            ):
                said = _ill_conditioned(name, moved)
                continue
            else:
                # Values of ids have other sizes, which tell nothing of the rows.
                culprit = None if ragged else _mixing(program, varied, few, rows)
                reason = mixed_rows(culprit, name) if culprit is not None else ""
            raise CaptureError(
                reason or _difference(name, got, want, f"batch {size}", "a larger batch")
            )
    return said


def _does_not_run(size: int, error: Exception) -> CaptureError:
    return CaptureError(
        f"the captured program doesn't run at batch {size}: {error}. "
        "Something in forward depends on the example's batch size."
    )


def _ill_conditioned(name: str, moved: float) -> str:
    return (
        f"output {name!r} is ill-conditioned: float32's rounding alone, which changes from batch "
        f"to batch, moves it by {moved:.1g} of its largest value. Compute it in float64, "
        "model.double(), or without the difference of large numbers"
    )


def _varied(leaves: Leaves, signature: Signature) -> dict[str, Tensor]:
    """The example with every two rows different.

    Dense values become a little smaller from row to row. Ids stay as they are unless all rows hold
    the same: then they count up within their table.
    """
    varied = {}
    for feature in signature:
        leaf = leaves[feature.name]
        if feature.kind in (FeatureKind.OFFSETS, FeatureKind.LENGTHS):
            varied[feature.name] = leaf
            continue
        rows = torch.arange(len(leaf)).reshape(-1, *(1 for _ in leaf.shape[1:]))
        if leaf.is_floating_point():
            leaf = leaf * (1 - rows.to(leaf.dtype) / (4 * len(leaf)))
        elif (
            len(feature.cardinalities) == 1
            and feature.cardinalities[0] > 0
            and bool((leaf == leaf[:1]).all())
        ):
            (low,), (high,) = feature.least, feature.cardinalities
            leaf = (low + (leaf - low + rows) % (high - low)).to(leaf.dtype)
        varied[feature.name] = leaf
    return varied


def _mixing(program: Program, whole: Leaves, few: Leaves, rows: slice) -> fx.Node | None:
    """The first node whose values for some rows change with the rows around them."""
    together, alone = _values(program, whole), _values(program, few)
    unwritten: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or _agree(together[node], alone[node], rows):
            continue
        # What memory holds that nobody has written differs as well, and so do views of it.
        empty = str(node.target).startswith("aten.empty")
        if empty or (node.all_input_nodes and unwritten.issuperset(node.all_input_nodes)):
            unwritten.add(node)
            continue
        return node  # type: ignore[no-any-return]
    return None


def _values(program: Program, leaves: Leaves) -> dict[fx.Node, Any]:
    recorder = _Recorder(program.module)
    with torch.no_grad():
        recorder.run(*(leaves[name] for name in program.signature.names))
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = self.values[n] = super().run_node(n)
        return value


def _agree(together: Any, alone: Any, rows: slice) -> bool:
    if isinstance(together, (tuple, list)):
        return all(_agree(a, b, rows) for a, b in zip(together, alone, strict=True))
    if not isinstance(together, Tensor):
        return isinstance(together, torch.SymInt | int) or bool(together == alone)
    if together.dim() != alone.dim():
        return False
    for dim, size in enumerate(alone.shape):
        start = together.shape[dim] - size if rows.stop is None else 0
        if start < 0 or size > together.shape[dim]:
            return False
        together = together.narrow(dim, start, size)
    return same_scores(together, alone)


def _difference(name: str, got: Tensor, want: Tensor, where: str, reference: str) -> str:
    return (
        f"the captured program scores differently from the model at {where}: output {name!r} "
        f"is {got.flatten()[:3].tolist()}, {reference} gives {want.flatten()[:3].tolist()}. "
        "Something in forward depends on the other rows, on the batch size, on randomness, or "
        "on state; make it depend on its inputs alone."
    )
