"""Whether a promise about the numbers was kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rankc import models
from rankc.frontends.export import capture
from rankc.optimizer.compare import numerics
from rankc.optimizer.compare.numerics import Divergence, divergence, truth
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.pipeline.passbase import Exactness
from rankc.optimizer.pipeline.promises import ROUNDING_FLOOR, broken_promise
from torch import Tensor

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, -2.0], [1.0, -2.0], (0.0, 0.0, True)),
        ([1.0, -2.0], [1.5, -2.0], (0.5, 0.25, False)),
        ([0.0], [0.25], (0.25, 0.25, False)),
        ([0.0], [-0.0], (0.0, 0.0, False)),
        ([1.0, NAN], [1.0, NAN], (0.0, 0.0, True)),
        ([1.0, INF], [1.0, INF], (0.0, 0.0, True)),
        ([1.0, 2.0], [1.0, NAN], (INF, INF, False)),
        ([1.0, NAN], [1.0, 2.0], (INF, INF, False)),
        ([1.0, 2.0], [1.0, INF], (INF, INF, False)),
        ([1.0, 2.0], [[1.0], [2.0]], (INF, INF, False)),
        ([1.0], [1.0, 1.0], (INF, INF, False)),
        ([], [], (0.0, 0.0, True)),
    ],
)
def test_divergence(before: Any, after: Any, expected: tuple[float, float, bool]) -> None:
    moved = divergence({"a": torch.tensor(before)}, {"a": torch.tensor(after)})
    assert (moved.max_abs, moved.relative, moved.bit_equal) == expected
    assert moved.to_json() == dict(zip(("max_abs", "relative", "bit_equal"), expected, strict=True))


def test_divergence_is_over_the_outputs_both_have() -> None:
    before = {"a": torch.tensor([4.0]), "b": torch.tensor([1.0])}
    assert divergence(before, {"b": torch.tensor([1.5])}).max_abs == 0.5
    both = divergence(before, {"a": torch.tensor([4.0]), "b": torch.tensor([2.0])})
    assert (both.max_abs, both.relative) == (1.0, 0.25)


def test_divergence_is_over_the_first_columns_both_have() -> None:
    wide, one = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [3.5]])
    moved = divergence({"a": wide}, {"a": one})
    assert (moved.max_abs, moved.bit_equal) == (0.5, False)
    assert divergence({"a": one}, {"a": wide}).max_abs == 0.5


def test_another_dtype_is_not_bit_equal() -> None:
    moved = divergence({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)})
    assert moved == Divergence(0.0, 0.0, bit_equal=False)


def moved(relative: float, *, bit_equal: bool = False) -> Divergence:
    return Divergence(relative, relative, bit_equal)


SAME = moved(0.0, bit_equal=True)


@pytest.mark.parametrize(
    ("exactness", "change", "error", "own", "broken"),
    [
        (Exactness.EXACT, SAME, None, None, None),
        (Exactness.EXACT, moved(0.0), None, None, "declared exact, but outputs moved by up to 0"),
        (Exactness.EXACT, moved(1e-12), None, None, "declared exact"),
        (Exactness.ROUNDING, moved(1.0), moved(2e-3), moved(1e-3), None),
        (Exactness.ROUNDING, moved(0.0), moved(1e-3), moved(0.4e-3), "0.0008 is allowed"),
        (Exactness.ROUNDING, moved(0.0), moved(ROUNDING_FLOOR), moved(0.0), None),
        (Exactness.ROUNDING, moved(0.0), moved(3e-5), moved(0.0), "declared rounding"),
        (Exactness.ROUNDING, moved(0.0), moved(NAN), moved(1.0), "against fp64 is nan"),
        (Exactness.LOSSY, moved(1.0), None, None, None),
        (Exactness.TRAINED, moved(1.0), None, None, None),
    ],
)  # fmt: skip
def test_promises(
    exactness: Exactness,
    change: Divergence,
    error: Divergence | None,
    own: Divergence | None,
    broken: str | None,
) -> None:
    found = broken_promise(exactness, change, error, own)
    assert (found is None) == (broken is None)
    assert broken is None or broken in str(found)


@pytest.mark.parametrize("name", ["dlrm", "dlrm-multihot", "dcnv2", "autoint"])
def test_truth_is_the_model_in_double(name: str) -> None:
    torch.manual_seed(0)
    model = models.zoo()[name]().eval()
    program = capture(model)
    rows = synthesize(program.signature, 32).features
    (got,) = truth(program, rows).values()
    with torch.no_grad():
        wide = [v.double() if v.is_floating_point() else v for v in rows.values()]
        want: Tensor = model.double()(*wide)
    assert got.dtype is torch.float64
    # Both are fp64: they differ by the order of sums alone.
    assert (got - want).abs().max() <= 1e-13 * want.abs().max()


@pytest.mark.parametrize("name", ["dlrm", "dlrm-multihot"])
def test_truth_copies_no_large_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = capture(models.zoo()[name]().eval())
    rows = synthesize(program.signature, 8).features
    want = truth(program, rows)
    limit = program.tensor("tables.0.weight").nbytes - 1
    monkeypatch.setattr(numerics, "_WIDEN_LIMIT", limit)
    widened: list[int] = []
    plain = numerics._wide

    def watched(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype is torch.float32:
            widened.append(value.nbytes)
        return plain(value)

    monkeypatch.setattr(numerics, "_wide", watched)
    got = truth(program, rows)
    tables = {program.tensor(f"tables.{i}.weight").nbytes for i in (0, 3)}
    assert not tables & set(widened)
    # Rows of the tables are exact in either; bags of them are summed in fp32.
    bound = 0.0 if name == "dlrm" else 1e-5
    assert divergence(want, got).relative <= bound
