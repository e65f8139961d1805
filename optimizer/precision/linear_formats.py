"""Putting a decided format into the graph: around a linear, or in place of it."""

from __future__ import annotations

from torch import Tensor, fx

from ..ir.facts import Precision
from ..ir.pattern import argument
from ..ir.rewrite import Rewriter
from .candidates import output_of
from .linear_format import base_of, linear_format


def realise(
    rw: Rewriter, linear: fx.Node, precision: Precision, samples: Tensor | None = None
) -> None:
    """Makes a linear compute in a format.

    Args:
        rw: The editor.
        linear: Whose weight is a parameter.
        precision: The format, with the input's range, column scales and kept columns.
        samples: ``[rows, K]`` real inputs. With them, and a bias that is a parameter, the mean
            error of each output is taken out of the bias (bias correction, 1906.04721): rounding
            that shifts all scores one way costs more NE than its size says.
    """
    weight = rw.program.tensor(str(linear.args[1].target))  # type: ignore[union-attr]
    bias = _corrected(rw, linear, weight, precision, samples)
    linear_format(precision.format).put(rw, linear, weight, bias, precision)


def _corrected(
    rw: Rewriter, linear: fx.Node, weight: Tensor, precision: Precision, samples: Tensor | None
) -> fx.Node | None:
    """The linear's bias less the mean error that the format adds to each output."""
    bias = argument(linear, 2, "bias")
    assert bias is None or isinstance(bias, fx.Node)
    if samples is None or bias is None or bias.op != "get_attr":
        return bias
    shift = (output_of(samples, weight, precision) - samples @ weight.T).mean(0)
    own = rw.program.tensor(str(bias.target))
    return rw.parameter(f"{base_of(linear)}_bias", own - shift)
