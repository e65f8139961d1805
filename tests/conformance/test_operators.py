"""Each operator alone, on the worst values: what every backend runs is what eager computes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from conformance.cases import GROUPS
from conformance.comparing import Alone, Found, Outcome, compare, every_case, is_right
from conformance.known import DEPENDS_ON_ORDER, DIFFERS, WITHOUT_CASE
from conformance.values import Values
from rankc.backends.onnx.backend import PlainOnnx
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.backends.openvino import OpenVino
from rankc.optimizer.ir.torchapi import captured_operators
from rankc.optimizer.target import Target

#: Empty, a few, and enough that most pairs of bad values meet.
_BATCHES = ((0, 1), (3, 3), (200, 5))
_THIN = ((80, 4),)
_CPU = Target.of("cpu-fp32")


def test_every_operator_that_capture_leaves_has_a_case() -> None:
    """A new operator can't be added without being tried."""
    cases = {operator for group in GROUPS.values() for operator in group}
    assert not captured_operators() - cases - set(WITHOUT_CASE)


def test_what_is_known_is_of_cases_that_exist() -> None:
    assert not {*DIFFERS, *DEPENDS_ON_ORDER} - {str(one) for one in every_case()}


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.float32, torch.float64, torch.bool], ids=str
)
def test_is_what_eager_computes(dtype: torch.dtype) -> None:
    cases = _of(dtype)
    batches = _BATCHES if dtype is not torch.float64 else _BATCHES[-1:]
    found = compare(cases, OnnxRuntime(), _CPU, batches)
    _check(found)
    differ = {str(one) for one, outcome in found.items() if outcome.found is Found.DIFFERS}
    assert not {str(one) for one in cases if str(one) in DIFFERS} - differ  # no excuse outlives
    if dtype is not torch.float64:
        assert not [one for one, outcome in found.items() if outcome.found is Found.REFUSED]
    # What is captured is built once more: without the library, as another runtime would read it.
    if dtype in (torch.int64, torch.float32):
        _check(compare(cases, PlainOnnx(), _CPU, _THIN))


@pytest.mark.openvino
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_openvino_computes_it_or_refuses(dtype: torch.dtype) -> None:
    """Of ordinary values nothing differs; what would is refused before it is built."""
    pytest.importorskip("openvino")
    found = compare(_of(dtype), OpenVino(), _CPU, _THIN, Values.ORDINARY)
    _check(found)
    assert sum(outcome.found is Found.REFUSED for outcome in found.values()) < len(found) / 2


def _of(dtype: torch.dtype) -> Sequence[Alone]:
    return [one for one in every_case() if one.dtype is dtype]


def _check(found: dict[Alone, Outcome]) -> None:
    wrong = {
        str(one): outcome.why
        for one, outcome in found.items()
        if not is_right(one, outcome.found) and str(one) not in {*DIFFERS, *DEPENDS_ON_ORDER}
    }
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
