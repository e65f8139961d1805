"""Every artifact is compared with the model before it is handed over.

On the user's rows and on hostile ones, row by row, at batches of one, three and many: what was
built against the program it was built of, and that program against the captured one. What differs
is an error that names the site, the row and both values; it is never a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..compare.differences import Difference, Reference, completed, joined
from ..compare.domain import picked
from ..compare.hostile import hostile
from ..compare.lockstep import compare
from ..compare.numerics import truth
from ..compare.sensitivity import spreads
from ..data.rows import Rows
from ..errors import TranslationError
from ..ir.facts import facts_of, site_of
from ..ir.program import Program
from ..ir.scratch import Scratch
from ..ir.signature import Signature
from ..ir.structure import Branch, Leaf, Structure
from ..registry import backend
from ..requests.entry import one_user
from ..requests.request import replicated
from ..target import Target

Arrays = dict[str, np.ndarray[Any, Any]]
Runner = Callable[[Mapping[str, Any]], Arrays]

#: Rows that are scored alone, and in threes; all are scored together.
_ALONE, _THREES = 40, 60
#: Ordinary rows beside the hostile ones.
_ORDINARY = 256
#: Real rows of those that prove, of which the comparison takes so many.
_REAL = 2048
#: Candidates of a request that is compared.
_CANDIDATES = 48
#: A lossy program may move a hostile row's score by as much as this many times the range of scores.
_RANGES = 4.0


@dataclass(frozen=True)
class Sample:
    """Rows that programs and artifacts are compared on.

    Attributes:
        rows: Ordinary rows, then hostile ones.
        what: Of each row, what it is.
        ordinary: How many rows are ordinary ones.
        refused: What the original can't score, and what it raises.
    """

    rows: Rows
    what: tuple[str, ...]
    ordinary: int
    refused: tuple[str, ...] = ()

    @classmethod
    def of(cls, program: Program, rows: Rows, seed: int = 0) -> Sample:
        """Some of the rows, and hostile ones made of them.

        Args:
            program: The original, as it was captured.
            rows: Rows it scores.
            seed: For what is drawn.
        """
        some = completed(rows.spread(_ORDINARY), program)
        found = hostile(program, some, seed=seed)
        kind = "made-up row" if rows.synthetic else "row"
        what = tuple(
            f"{kind} {rows.first + place * len(rows) // len(some)}" for place in range(len(some))
        )
        said = tuple(f"hostile row {i} ({text})" for i, text in enumerate(found.what))
        together = joined(some, found.rows) if len(found.rows) else some
        return cls(together, (*what, *said), len(some), found.refused)

    @property
    def plain(self) -> Rows:
        """The ordinary rows alone."""
        return self.rows.part(0, self.ordinary)

    @property
    def hostile(self) -> Rows:
        """The hostile rows alone."""
        return self.rows.part(self.ordinary, len(self.rows))


def check_artifact(
    captured: Program,
    program: Program,
    built: Any,
    sample: Sample,
    target: Target,
    batch_sizes: Sequence[int],
    *,
    lossy: bool,
) -> str:
    """Raises unless an artifact scores rows like the model, as flat rows and as requests.

    Args:
        captured: The model.
        program: What was built, as flat rows are scored.
        built: The artifact.
        sample: The rows.
        target: What it was built for, by the one backend that built it.
        batch_sizes: The batch sizes that will be served.
        lossy: Whether formats were lowered.

    Returns:
        What was compared, for the report.

    Raises:
        TranslationError: Which row differs, where and how.
    """
    (name,) = target.backends
    check_program(captured, program, sample, lossy=lossy)
    check_built(program, built.run, sample, batch_sizes, name, target)
    entry = built.manifest.request
    if entry is not None:
        ahead = built.precompute if entry.ahead else None
        check_requests(program, built.run_request, sample, entry.shared, name, ahead)
    few = len(sample.rows) - sample.ordinary
    left = f"; left out, since the model raises: {sample.refused[0]}" if sample.refused else ""
    others = f" and {len(sample.refused) - 1} more" if len(sample.refused) > 1 else ""
    return (
        f"compared with the model on {sample.ordinary:,} ordinary and {few:,} hostile rows, at "
        f"batches of 1, 3 and up to {max(*batch_sizes, len(sample.rows) - 1) + 1:,}{left}{others}"
    )


def unlike(program: Program, run: Runner, rows: Rows, made_by: str) -> str:
    """Where what was built scores real rows otherwise than its program; empty where it doesn't.

    Args:
        program: What was built, as flat rows are scored.
        run: Scores flat rows.
        rows: Real rows; up to 2,048 are scored, from all over them.
        made_by: The backend.
    """
    some = rows.spread(_REAL)
    found = _compared(Reference(program, some), run, list(range(len(some))))
    if found is None:
        return ""
    place = rows.first + found.row * len(rows) // len(some)
    return f"{made_by} scores row {place} otherwise than the program it was built of: {found}"


def check_program(captured: Program, optimized: Program, sample: Sample, *, lossy: bool) -> None:
    """Raises unless an optimized program scores rows like the captured one.

    Args:
        captured: What is right.
        optimized: What the passes made of it, as flat rows are scored.
        sample: The rows.
        lossy: Whether formats were lowered: then scores may move, but neither become NaN or Inf nor
            cease to be, nor leave the range they have.

    Raises:
        TranslationError: Which row differs.
    """
    reference = Reference(captured, sample.rows, reordered=True)
    got = _run_or_raise(optimized, sample)
    found = _moved(reference, got) if lossy else reference.difference(got, other=optimized)
    if found is not None:
        features = picked(sample.rows, [found.row, *range(min(8, sample.ordinary))])
        site = _parted(captured, optimized, features)
        raise _error("the optimized program", "rankc's passes", found, sample, site)


def check_built(
    program: Program,
    run: Runner,
    sample: Sample,
    batch_sizes: Sequence[int],
    made_by: str,
    target: Target | None = None,
) -> None:
    """Raises unless what was built scores rows like the program it was built of.

    Args:
        program: What is right, of flat rows.
        run: What was built.
        sample: The rows.
        batch_sizes: The batch sizes that will be served.
        made_by: The backend, for messages.
        target: What it was built for, to find the site where scores part.

    Raises:
        TranslationError: Which row differs at which batch size.
    """
    reference = Reference(program, sample.rows)
    for places in _batches(len(sample.rows), sample.ordinary, max(batch_sizes, default=1)):
        found = _compared(reference, run, places)
        if found is None:
            continue
        row = places[found.row]
        site = _site(program, picked(sample.rows, [row]), target) if target else ""
        raise _error(
            f"{made_by} at batch {len(places)}",
            f"the translation for {made_by}",
            replace(found, row=row),
            sample,
            site,
        )


def check_requests(
    program: Program,
    run: Runner,
    sample: Sample,
    shared: Sequence[str],
    made_by: str,
    ahead: Callable[[Mapping[str, Any]], Arrays] | None = None,
) -> None:
    """Raises unless requests are scored as the model scores the same rows flat.

    Args:
        program: What is right, of flat rows.
        run: Scores one request.
        sample: The rows; some become the candidates of one user.
        shared: The features of which a request has one row.
        made_by: The backend, for messages.
        ahead: What is computed of candidates ahead, where that is asked for.

    Raises:
        TranslationError: Which row differs.
    """
    own = [name for name in program.signature.names if name not in shared]
    last = len(sample.rows) - 1
    for first in dict.fromkeys((0, sample.ordinary, (sample.ordinary + last) // 2, last)):
        # The user of one row, and candidates of any: ordinary and hostile ones.
        order = [first, *np.linspace(0, last, _CANDIDATES, dtype=int).tolist()]
        for places in (order, order[:1]):
            features = replicated(
                one_user(picked(sample.rows, places), shared), shared, len(places)
            )
            reference = _reference_of(program, Rows(features, ragged=sample.rows.ragged))
            if reference is None:
                continue
            request = _arrays(one_user(features, shared))
            found = _scored(reference, run, request)
            if found is None and ahead is not None:
                made = ahead({name: request[name] for name in own})
                given = {**{name: request[name] for name in shared}, **made}
                found = _scored(reference, run, given)
            if found is not None:
                what = f"{made_by} in a request of {len(places)} candidates"
                raise _error(
                    what,
                    f"the translation for {made_by}",
                    replace(found, row=places[found.row]),
                    sample,
                    "",
                )


def _reference_of(program: Program, rows: Rows) -> Reference | None:
    """The program's scores, or None where it can't score candidates of that user."""
    try:
        return Reference(program, rows)
    except Exception:  # two rows that are scored apart needn't be together
        return None


def _batches(rows: int, ordinary: int, largest: int) -> Iterator[list[int]]:
    """Which rows are scored together: all, as many as are served at most, each alone, in threes."""
    yield list(range(rows))
    many = largest + 1
    if many > rows:
        yield [place % rows for place in range(many)]
    alone = np.linspace(ordinary, rows - 1, min(_ALONE, rows - ordinary), dtype=int).tolist()
    yield from ([place] for place in dict.fromkeys([0, *alone]))
    some = np.linspace(0, rows - 1, min(_THREES, rows), dtype=int).tolist()
    for start in range(0, len(some), 3):
        yield (some[start : start + 3] * 3)[:3]


def _compared(reference: Reference, run: Runner, places: list[int]) -> Difference | None:
    arrays = _arrays(picked(reference.rows, places))
    try:
        got = run(arrays)
    except Exception as error:  # of whatever library: the model scores these rows
        if len(places) > 1:
            for half in (places[: len(places) // 2], places[len(places) // 2 :]):
                found = _compared(reference, run, half)
                if found is not None:
                    return replace(found, row=places.index(half[found.row]))
        return Difference("", 0, said=f"it raises {_raised(error)}, and the model scores the row")
    return reference.difference(got, places)


def _scored(reference: Reference, run: Runner, request: Mapping[str, Any]) -> Difference | None:
    try:
        got = run(request)
    except Exception as error:  # of whatever library: the model scores these rows
        return Difference("", 0, said=f"it raises {_raised(error)}, and the model scores the row")
    return reference.difference(got)


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10), 1)[0]}"


def _run_or_raise(optimized: Program, sample: Sample) -> Mapping[str, Tensor]:
    features = completed(sample.rows, optimized).features
    try:
        return optimized.run(features)
    except Exception as error:
        rows = Rows(features, ragged=sample.rows.ragged)
        for place in range(len(sample.rows)):
            try:
                optimized.run(picked(rows, [place]))
            except Exception as again:  # of torch: the model scores this row
                said = f"it raises {_raised(again)}, and the model scores the row"
                found = Difference("", place, said=said)
                raise _error(
                    "the optimized program", "rankc's passes", found, sample, ""
                ) from error
        raise


def _moved(reference: Reference, got: Mapping[str, Tensor]) -> Difference | None:
    """Where lower formats make a finite score NaN or Inf or the other way, or send it far away."""
    for name, want in reference.outputs.items():
        if name not in got or not want.is_floating_point():
            continue
        columns = min(
            want.reshape(len(want), -1).shape[1], got[name].reshape(len(want), -1).shape[1]
        )
        right = want.reshape(len(want), -1)[:, :columns].double()
        have = got[name].reshape(len(want), -1)[:, :columns].double()
        known = right[right.isfinite()]
        hidden = _hidden(reference, name, right, have)
        far = torch.zeros_like(hidden)
        if known.numel():
            reach = _RANGES * float(known.max() - known.min() + known.abs().median())
            far = right.isfinite() & have.isfinite() & ((have - right).abs() > reach)
        lost = right.isfinite() & ~have.isfinite()
        bad = (lost | far | hidden).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            return Difference(name, row, float(have[row, column]), float(right[row, column]))
    return None


def _hidden(reference: Reference, name: str, right: Tensor, have: Tensor) -> Tensor:
    """Where a score that is NaN or Inf became another, though no rounding decides that it is."""
    hidden = (right.isnan() & ~have.isnan()) | (right.isinf() & (have != right))
    rows = hidden.any(1).nonzero().flatten()
    if not len(rows):
        return hidden
    features = picked(reference.rows, rows.tolist())
    columns = right.shape[1]
    exact = truth(reference.program, features)[name].reshape(len(rows), -1)[:, :columns]
    unsure = spreads(reference.program, features, reordered=True)[name].unsure
    decided = (unsure.reshape(len(rows), -1)[:, :columns] > 0) | exact.isfinite()
    hidden[rows] &= ~decided
    return hidden


def _error(
    what: str, made_by: str, found: Difference, sample: Sample, site: str
) -> TranslationError:
    row = sample.what[found.row]
    place = f" First apart at {site}." if site else ""
    never = ""
    if found.row >= sample.ordinary:
        never = (
            " If such rows never come, say so in the signature: signature=rankc.capture(model, "
            "inputs).signature.with_feature(name, bounds=(least, most))."
        )
    return TranslationError(
        f"{what} scores {row} otherwise than the model: {found}.{place} That is no rounding, but a "
        f"fault of {made_by}: please report it.{never}",
        site,
        row,
        found.got,
        found.want,
    )


def _parted(captured: Program, optimized: Program, features: Mapping[str, Tensor]) -> str:
    """The site where two programs part, as far as the lock-step debugger can tell."""
    try:
        first = compare(captured, optimized, completed(Rows(features), optimized).features).first
    except Exception:  # it is an addition to a message that says enough without
        return ""
    return first.place if first is not None else ""


def _site(program: Program, features: Mapping[str, Tensor], target: Target) -> str:
    """The first value that what was built computes otherwise: all values are built as outputs."""
    opened = _with_values(program)
    scratch = Scratch()
    try:
        (name,) = target.backends
        builder = backend(name)
        builder.build(opened, target, scratch.path, {})
        got = builder.open(scratch.path, 1)(_arrays(features))
        want = opened.run(features)
    except Exception:  # not every value can be an output; the message says enough without a site
        return ""
    finally:
        scratch.remove()
    for name, node in zip(want, _results(opened), strict=True):
        if name in got and _far(torch.as_tensor(got[name]), want[name]):
            facts = facts_of(node)
            where = f" ({facts.source})" if facts.source else ""
            return f"{site_of(node)!r}, {node.target}{where}"
    return ""


def _with_values(program: Program) -> Program:
    """The program with every value that depends on the rows as an output."""
    result = program.clone()
    fed: list[fx.Node] = []
    for node in result.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and any(n.op == "placeholder" or n in fed for n in inputs):
            fed.append(node)
    values = [node for node in fed if isinstance(node.meta.get("val"), Tensor)]
    (output,) = result.graph.find_nodes(op="output")
    output.args = (tuple(values),)
    result.module.recompile()
    names = tuple(f"value_{place}" for place in range(len(values)))
    result.signature = Signature(result.signature.features, (), names)
    result.outputs = Structure(Branch("dict", names, tuple(map(Leaf, names))))
    return result


def _results(program: Program) -> tuple[fx.Node, ...]:
    (output,) = program.graph.find_nodes(op="output")
    return tuple(output.args[0])


def _far(got: Tensor, want: Tensor) -> bool:
    """Whether a value differs by more than rounding, or in what is NaN or Inf."""
    if got.shape != want.shape:
        return True
    here, there = got.double(), want.double()
    known = there[there.isfinite()]
    scale = float(known.abs().max()) if known.numel() else 1.0
    return not torch.allclose(here, there, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def _arrays(features: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in features.items()}
