"""The ways a linear can take a low format, and the error each leaves on real rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..ir.facts import Precision
from .codes import errors_of
from .columns import column_scales
from .linear_format import LinearFormat, linear_format
from .search import Search

#: Columns differ enough to scale them or to keep some when the longest is this much the median.
_UNEVEN = 4.0
#: A dearer candidate must leave less than this share of the error of the cheaper ones.
_CLEARLY_LESS = 0.7
#: One column in so many stays fp32.
_KEPT_SHARES = (64, 16, 8)


def candidates(
    samples: Tensor,
    weight: Tensor,
    formats: Iterable[str],
    int8_activations: str,
    assumed: Callable[[str], tuple[float, float]] | None = None,
) -> list[tuple[Precision, dict[str, float]]]:
    """The ways a linear can take the formats, each with the errors it leaves.

    - *plain*: one static range for the whole input, or one for each row.
    - *scaled*: input columns multiplied so that their ranges are alike, the weights divided by the
      same (SmoothQuant, 2211.10438, whose migration strength is searched): for columns of
      different sizes.
    - *kept*: the few columns of the longest tails stay fp32, in a small linear of their own
      (2208.07339, with static columns): for raw counts and amounts beside embeddings.

    Args:
        samples: ``[rows, K]`` real inputs of the linear.
        weight: ``[N, K]``.
        formats: Names of `LINEAR_FORMATS`; those that don't fit K are left out.
        int8_activations: ``"uint8"`` or ``"int8"``: the codes of a static range.
        assumed: Gives the static range in a format where the samples aren't real; then only the
            plain form is tried.

    Returns:
        A precision each with the errors of the linear's output on real rows (`errors_of`). Of each
        format the plain one, then only what leaves clearly less than the cheaper ones before it.
    """
    search = Search(samples, weight, int8_activations, assumed)
    return [
        (precision, errors_of(search.exact, output_of(search.rows, weight, precision)))
        for one in map(linear_format, formats)
        if one.fits(weight.shape[1])
        for precision, _ in _forms(one, search)
    ]


def choose_input(
    samples: Tensor, weight: Tensor, number_format: str, int8_activations: str
) -> tuple[Precision, float]:
    """The plain one of `candidates`: the static range that hurts the output least."""
    return linear_format(number_format).best(Search(samples, weight, int8_activations))


def output_of(rows: Tensor, weight: Tensor, precision: Precision) -> Tensor:
    """What a linear without bias gives in a format: ``[rows, K]`` to ``[rows, N]``."""
    one = linear_format(precision.format)
    return one.output(rows, weight, precision, one.coded(weight, precision))


def _forms(one: LinearFormat, search: Search) -> list[tuple[Precision, float]]:
    """Plain first, then what leaves clearly less."""
    found = [one.best(search)]
    if not one.columns or search.assumed is not None:
        return found
    peaks = search.samples.abs().amax(0)
    if float(peaks.max()) > _UNEVEN * float(peaks.median()):
        scaled = [one.best(search, scale=s) for s in column_scales(peaks, search.weight)]
        found += _improving(found[0], [min(scaled, key=lambda f: f[1])])
        kept = _kept(one.tails(search.samples.abs()))
        found += _improving(found[0], [one.best(search, kept=columns) for columns in kept])
    return found


def _kept(tails: Tensor) -> list[tuple[int, ...]]:
    """Columns to keep, by the size of their tails ``[K]``."""
    order = torch.argsort(tails, descending=True)
    inputs = len(order)
    counts = {max(1, inputs // part) for part in _KEPT_SHARES} & {*range(inputs)}
    return [tuple(sorted(order[:count].tolist())) for count in sorted(counts)]


def _improving(
    plain: tuple[Precision, float], others: Sequence[tuple[Precision, float]]
) -> list[tuple[Precision, float]]:
    best, better = plain[1], []
    for precision, error in others:
        if error < _CLEARLY_LESS * best:
            better.append((precision, error))
            best = error
    return better
