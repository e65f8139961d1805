"""What public bug reports complain of, against eager: every batch size, saved, as requests."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import rankc
import torch
from constructs import CASES, Ranker, hostile, ordinary, picked
from torch import Tensor

SIZES = (1, 3, 64)
#: In steps of float32, of the largest score; low formats move what they hold by a tenth of it.
CLOSE, LOW = 2e-5, 0.1
#: What the model computes in bfloat16 is computed in float32; norms divide by the spread of a few
#: values, which magnifies their rounding.
LOOSER = {"half": torch.finfo(torch.bfloat16).eps, "group_norm": 1e-4, "layer_norm": 1e-4}


TARGETS = ("cpu-fp32", "cpu-int8", "h100-fp8")
#: What MLIR's converters take, of each ranker.
CONVERTED = {
    "histories": ("masked_mean", "log_of_nothing", "tiny_factors", "has_candidate", "attention"),
}


@cache
def model(name: str, target: str = "cpu-fp32") -> Ranker:
    made = CASES[name].make().eval()
    if target == "mlir-cpu":
        made.left_out = frozenset(made.constructs) - frozenset(CONVERTED[name])
    return made  # type: ignore[no-any-return]


@cache
def built(name: str, target: str) -> rankc.Artifact:
    case = CASES[name]
    example = picked(case, ordinary(8, seed=1))
    request = rankc.Request(shared=case.shared) if target == "cpu-fp32" else None
    return rankc.optimize(model(name, target), target, inputs=example, request=request)


def eager(name: str, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(name)(**rows)


@cache
def usual(name: str) -> dict[str, float]:
    """The largest of ordinary scores."""
    want = eager(name, picked(CASES[name], ordinary(64, seed=64)))
    return {n: float(v.abs().max()) for n, v in want.items()}


def check(
    name: str, got: dict[str, Tensor], want: dict[str, Tensor], close: float, where: str
) -> None:
    assert set(got) <= set(want)
    wrong, sizes = [], usual(name)
    for output in got:
        have, right = got[output].double(), want[output].double()
        fine = right.isfinite()
        same = torch.equal(have.isnan(), right.isnan()) and torch.equal(
            torch.where(fine, 0, have).nan_to_num(), torch.where(fine, 0, right).nan_to_num()
        )
        size = max(float(right[fine].abs().max()) if bool(fine.any()) else 0.0, sizes[output])
        off = float((have - right)[fine].abs().max()) if bool(fine.any()) else 0.0
        allowed = max(close, LOOSER.get(output, 0.0))
        if not same or off > allowed * size:
            wrong.append(f"{output}: off by {off:.3g} of {size:.3g}")
    assert not wrong, f"{where}: {wrong}"


def batches(name: str) -> dict[str, dict[str, Tensor]]:
    """Ordinary rows at every size, hostile rows together, and each of these alone."""
    case, bad = CASES[name], hostile()
    made = {f"{size} rows": ordinary(size, seed=size) for size in SIZES}
    made |= {"hostile rows": bad}
    made |= {f"hostile row {i}": {n: v[i : i + 1] for n, v in bad.items()} for i in range(8)}
    return {where: picked(case, rows) for where, rows in made.items()}


@pytest.mark.parametrize(
    ("name", "target"), [*product(CASES, TARGETS), *((name, "mlir-cpu") for name in CONVERTED)]
)
def test_constructs_score_as_eager_does(name: str, target: str, tmp_path: Path) -> None:
    """All of it in one test: an artifact takes longer to build than to try."""
    artifact = built(name, target)
    assert set(artifact.signature.outputs) == set(model(name, target)(**batches(name)["1 rows"]))
    loaded = rankc.load(artifact.save(tmp_path / "saved"), trust_code=target == "mlir-cpu")
    close = CLOSE if target in ("cpu-fp32", "mlir-cpu") else LOW
    for where, rows in batches(name).items():
        want = eager(name, rows)
        for how, one in (("built", artifact), ("loaded", loaded)):
            check(name, one(**rows), want, close, f"{how}, {where}")
            arrays = {n: v.numpy() for n, v in rows.items()}
            ran = {n: torch.from_numpy(v) for n, v in one.run(arrays).items()}
            check(name, ran, want, close, f"{how}, run, {where}")
    if target in TARGETS:
        no_rows_have_no_scores(name, artifact)
    if target == "cpu-fp32":
        requests_score_alike(name, artifact, loaded)
        what_nothing_reads_may_be_left_out(name, artifact)


def requests_score_alike(name: str, artifact: rankc.Artifact, loaded: rankc.Artifact) -> None:
    case, bad = CASES[name], hostile()
    for size in SIZES:
        for user in (None, *range(4)):
            rows = picked(case, ordinary(size, seed=size + 10))
            source = rows if user is None else picked(case, bad)
            one = {n: source[n][user or 0 : (user or 0) + 1] for n in case.shared}
            flat = rows | {n: v.expand(size, *v.shape[1:]) for n, v in one.items()}
            want = eager(name, flat)
            for how, made in (("built", artifact), ("loaded", loaded)):
                where = f"{how}, user {user}, {size}"
                check(name, made.request(**(rows | one)), want, CLOSE, where)


def no_rows_have_no_scores(name: str, artifact: rankc.Artifact) -> None:
    rows = picked(CASES[name], ordinary(0, seed=0))
    want = eager(name, picked(CASES[name], ordinary(1, seed=0)))
    arrays = {n: v.numpy() for n, v in rows.items()}
    for got in (artifact(**rows), artifact.run(arrays)):
        assert set(got) == set(want)
        assert all(value.shape == (0,) for value in got.values())
    for score in artifact(**rows).values():
        assert score.dtype is torch.float32


def what_nothing_reads_may_be_left_out(name: str, artifact: rankc.Artifact) -> None:
    rows = picked(CASES[name], ordinary(3, seed=3))
    want = eager(name, rows)
    if rows.pop("label", None) is not None:
        check(name, artifact(**rows), want, CLOSE, "without a label")
