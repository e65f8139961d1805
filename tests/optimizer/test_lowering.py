"""What a target's backends have, and what is frozen in a lowering."""

from __future__ import annotations

import dataclasses

import pytest
from rankc.optimizer.lowering import Lowering, formats_had, lacking
from rankc.optimizer.target import Target


def test_formats_that_no_backend_has_are_lacking() -> None:
    target = Target.of("cpu-int8")
    had = formats_had(target)
    assert set(lacking(target)) == set(target.formats) - had
    nobody = dataclasses.replace(target, backends=())
    assert lacking(nobody) == list(target.formats)


def test_nothing_sets_a_lowerings_fields() -> None:
    assert Lowering.__dataclass_params__.frozen  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="positional"):
        Lowering(None)  # type: ignore[call-arg, arg-type]
