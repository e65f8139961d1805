"""Each operator alone, on the worst values: what ONNX Runtime runs is what eager computes."""

from __future__ import annotations

import pytest
import torch
from conformance.cases import GROUPS
from conformance.comparing import Alone, Found, compare, every_case
from conformance.known import DIFFERS, REFUSED, WITHOUT_CASE
from rankc.backends.onnxruntime import OnnxRuntime
from rankc.optimizer.ir.torchapi import captured_operators
from rankc.optimizer.target import Target

#: Empty, one row, a few, and enough that most pairs of bad values meet.
_BATCHES = ((0, 1), (1, 2), (3, 3), (80, 4), (200, 5))
_SHORT = (torch.int64, torch.int32, torch.float32, torch.bool)


def test_every_operator_that_capture_leaves_has_a_case() -> None:
    """A new operator can't be added without being tried."""
    cases = {operator for group in GROUPS.values() for operator in group}
    assert not captured_operators() - cases - set(WITHOUT_CASE)


def test_what_is_known_is_of_cases_that_exist() -> None:
    names = {str(one) for one in every_case()}
    assert not {*DIFFERS, *REFUSED} - names


@pytest.mark.parametrize("dtype", _SHORT, ids=str)
def test_is_what_eager_computes(dtype: torch.dtype) -> None:
    cases = [one for one in every_case() if one.dtype is dtype and str(one) not in REFUSED]
    found = compare(cases, OnnxRuntime(), Target.of("cpu-fp32"), _BATCHES)
    wrong = {
        str(one): outcome.why for one, outcome in found.items() if _is_wrong(one, outcome.found)
    }
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    differ = {str(one) for one, outcome in found.items() if outcome.found is Found.DIFFERS}
    assert not {str(one) for one in cases if str(one) in DIFFERS} - differ  # no excuse outlives


def _is_wrong(one: Alone, found: Found) -> bool:
    if not one.dtype.is_floating_point and one.operator not in _REAL and found is Found.ROUNDING:
        return str(one) not in DIFFERS
    return found in (Found.DIFFERS, Found.REFUSED) and str(one) not in DIFFERS


#: Of integers, and real all the same.
_REAL = frozenset(("div", "exp", "log", "log1p", "mean", "sigmoid", "pow", "sqrt", "floor_divide"))
