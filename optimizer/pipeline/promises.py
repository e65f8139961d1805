"""Whether a change of numbers is what the pass promised."""

from __future__ import annotations

import torch

from ..compare.numerics import Divergence
from .passbase import Exactness

#: Rounding error that is always allowed, relative to the largest output: 32 steps of fp32.
ROUNDING_FLOOR = 32 * torch.finfo(torch.float32).eps


#: How many times the original's own error is allowed. The largest error over a few hundred rows is
#: a random draw for both programs: held to 1, a correct fold of BatchNorm failed in 5 of 10 seeds.
ROUNDING_SLACK = 2.0


def broken_promise(
    exactness: Exactness,
    moved: Divergence,
    error: Divergence | None,
    original_error: Divergence | None,
) -> str | None:
    """Why a change isn't what the pass promised, or None.

    Args:
        exactness: The promise.
        moved: Outputs after against outputs before the pass.
        error: Outputs after against the fp64 truth; for ROUNDING.
        original_error: The captured program's outputs against the fp64 truth; for ROUNDING.
    """
    if exactness is Exactness.EXACT and not moved.bit_equal:
        return (
            f"it is declared exact, but outputs moved by up to {moved.max_abs:.3g} "
            f"({moved.relative:.3g} of the largest output)"
        )
    if exactness is Exactness.ROUNDING:
        assert error is not None
        assert original_error is not None
        allowed = max(ROUNDING_SLACK * original_error.relative, ROUNDING_FLOOR)
        if not error.relative <= allowed:
            return (
                f"it is declared rounding, but its error against fp64 is {error.relative:.3g} of "
                f"the largest output; {allowed:.3g} is allowed (the original's own is "
                f"{original_error.relative:.3g})"
            )
    return None
