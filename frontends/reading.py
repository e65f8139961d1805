"""How an example is read: how the model is called with it, and which inputs delimit others' rows.

Both are found by running the model. Sizes and values of an example may fit several readings; under
the right one the scores of rows move along with the rows, and every bag begins where it should.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..optimizer.data.delimiters import Ragged, row_count
from ..optimizer.data.ragged import readings, take
from ..optimizer.errors import CaptureError
from .example import as_rows, delimited
from .flat import Flat, Scores, run_example, score
from .jagged import named_ragged
from .rounding import same_scores

#: How many readings are tried at most.
_MOST = 32


def start(
    wrapper: Flat,
    given: Mapping[str, Tensor],
    calls: Sequence[tuple[str, ...]],
    notes: list[str],
) -> tuple[tuple[Ragged, ...], dict[str, Tensor], Scores]:
    """What is ragged, the example's rows repeated, and the model's scores of them.

    Args:
        wrapper: The model; how it is called is settled here.
        given: The example.
        calls: Which arguments may be given by place, best first.
        notes: What the user should know of the capture is added.

    Raises:
        CaptureError: The model doesn't run on the example.
        SignatureError: Its inputs have numbers of rows that nothing explains.
    """
    scores = _first_call(wrapper, given, calls)
    ragged = _read(wrapper, given, scores)
    leaves = as_rows(given, ragged, wrapper.sizes())
    return ragged, leaves, run_example(wrapper, leaves, given, notes, row_count(leaves, ragged))


def _first_call(
    wrapper: Flat, given: Mapping[str, Tensor], calls: Sequence[tuple[str, ...]]
) -> Scores | None:
    """The scores of the example itself; None if the model can't be called with it at all."""
    for by_place in calls:
        wrapper.by_place = by_place
        # The error of the first way to call is told when the rows are run.
        with contextlib.suppress(Exception):
            return score(wrapper, given)
        wrapper.outputs = None
    wrapper.by_place = calls[0]
    return None


def _read(wrapper: Flat, given: Mapping[str, Tensor], scores: Scores | None) -> tuple[Ragged, ...]:
    """The first reading that the model bears out; the likeliest if none or only one fits."""
    found = list(_readings(wrapper, given))
    if not found:
        return delimited(given, named_ragged(wrapper.inputs, given))
    if len(found) == 1 or scores is None:
        return delimited(given, found[0])
    for ragged in found:
        if _holds(wrapper, given, ragged, scores):
            return delimited(given, ragged)
    return delimited(given, found[0])


def _readings(wrapper: Flat, given: Mapping[str, Tensor]) -> Iterator[tuple[Ragged, ...]]:
    """What may be ragged: what is called so, and what sizes and values say of the rest."""
    named = named_ragged(wrapper.inputs, given)
    # One id in every row, in a jagged tensor: a model may take them for a column of ids.
    several = tuple(one for one in named if bool((given[one.delimiter] != 1).any()))
    count = 0
    for known in dict.fromkeys((named, several)):
        taken = {name for one in known for name in (one.delimiter, *one.values)}
        rest = {name: leaf for name, leaf in given.items() if name not in taken}
        for more in readings(rest) if rest else ((),):
            yield (*known, *more)
            count += 1
            if count == _MOST:
                return


def _holds(
    wrapper: Flat, given: Mapping[str, Tensor], ragged: tuple[Ragged, ...], scores: Scores
) -> bool:
    """Whether the example's rows score alike one by one, in another order, and repeated."""
    try:
        rows = row_count(given, ragged)
        leaves = as_rows(given, ragged, wrapper.sizes())
        # The last row may have been given more ids.
        repeated = torch.arange(row_count(leaves, ragged) - 1) % rows
        few = [torch.arange(rows).flip(0), torch.tensor([rows - 1]), torch.tensor([0])]
        with _valid_bags():
            found = [(order, score(wrapper, take(given, ragged, order))) for order in few]
            found.append((repeated, score(wrapper, leaves)))
    except Exception:  # whatever it is: rows that can't be scored aren't read rightly
        return False
    return all(
        len(before) == rows and same_scores(after[: len(order)], before[order])
        for order, moved in found
        for before, after in zip(scores, moved, strict=True)
        if before.dim() > 0  # else a loss beside the scores
    )


@contextlib.contextmanager
def _valid_bags() -> Iterator[None]:
    """Inside, bags that begin after they end raise; torch gives what memory nobody has written."""
    with _Bags():
        yield


class _Bags(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.embedding_bag:
            given = dict(zip(("input", "weight", "offsets"), args, strict=False)) | kwargs
            ids, offsets = given["input"], given.get("offsets")
            if offsets is not None and ids.dim() == 1:
                _check_bags(offsets, len(ids))
        return func(*args, **kwargs)


def _check_bags(offsets: Tensor, count: int) -> None:
    falls = bool((offsets.diff() < 0).any())
    if len(offsets) and (falls or int(offsets[0]) != 0 or int(offsets[-1]) > count):
        raise CaptureError(f"offsets {offsets.tolist()} don't delimit {count} ids.")
