"""Two programs in lock-step: the site where they part is named, with what to do."""

from __future__ import annotations

import copy

import pytest
import rankc
import torch
from placed import coded, optimized
from rankc import models
from rankc.frontends.export import capture
from rankc.optimizer.analysis.sites import inputs_of, linear_sites, table_sites
from rankc.optimizer.compare.lockstep import Diagnosis, Finding, compare
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Precision, Program, Rewriter, site_of, sweep
from rankc.optimizer.precision.candidates import choose_input
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.precision.table_formats import realise_table
from rankers import dlrm, dlrm_inputs
from torch import Tensor

ROWS = 512


def plain(rows: int = ROWS) -> tuple[Program, dict[str, Tensor]]:
    """A DLRM and rows."""
    inputs = dlrm_inputs(rows, seed=3)
    program = capture(dlrm(), inputs)
    return program, dict(zip(program.signature.names, inputs, strict=True))


def with_outlier(column: int = 5) -> tuple[Program, dict[str, Tensor]]:
    """A DLRM with one hidden unit 2,000 times larger, and weights that make up for it."""
    model = copy.deepcopy(dlrm())
    with torch.no_grad():
        model.top[0].weight[column] *= 2000
        model.top[0].bias[column] *= 2000
        model.top[2].weight[:, column] /= 2000
    inputs = dlrm_inputs(ROWS, seed=3)
    program = capture(model, inputs)
    return program, dict(zip(program.signature.names, inputs, strict=True))


def lowered(
    program: Program, features: dict[str, Tensor], formats: dict[str, str | Precision]
) -> Program:
    """A copy with some linears in a low format."""
    low = program.clone()
    rw = Rewriter(low, "test")
    sites = {site_of(node): node for node in linear_sites(low)}
    samples = inputs_of(low, list(sites.values()), [features])
    for name, number_format in formats.items():
        node = sites[name]
        weight = low.tensor(str(node.args[1].target))
        precision = number_format
        if isinstance(precision, str) and precision == "int8":
            precision = choose_input(samples[node], weight, "int8", "int8")[0]
        elif isinstance(precision, str):
            precision = Precision(precision, weight_dtype="float16")
        realise(rw, node, precision, samples[node])
    sweep(low)
    return low


def of(found: Diagnosis, site: str) -> Finding:
    (one,) = [f for f in found.findings if f.site == site and f.formats]
    return one


def test_the_linear_with_an_outlier_channel_is_named() -> None:
    program, features = with_outlier()
    sites = ("bottom.0", "bottom.2", "top.0", "top.2")
    found = compare(program, lowered(program, features, dict.fromkeys(sites, "int8")), features)
    assert found.rows == ROWS
    assert found.first is found.worst
    assert found.first is not None
    assert found.first.site == "top.2"
    assert found.first.formats == ("int8",)
    assert "column 5 of its input" in found.first.advice
    assert "the error enters at 'top.2' (int8)" in found.sentence
    assert found.first.shift > 2 * max(of(found, site).shift for site in sites[:-1])
    # Every site's own error together makes the whole shift, as independent errors add.
    total = sum(f.shift**2 for f in found.findings) ** 0.5
    assert found.shift["score"] == pytest.approx(total, rel=0.2)


def test_isolated_and_accumulated_errors() -> None:
    program, features = plain()
    found = compare(program, lowered(program, features, {"bottom.0": "int8"}), features)
    at = of(found, "bottom.0")
    assert at.isolated == at.accumulated > 0
    after = [f for f in found.findings if f.site.startswith("top.")]
    assert after
    for one in after:
        assert one.isolated < 1e-6 < one.accumulated  # nothing of its own, only what it was given
        assert one.shift == 0.0
    assert found.worst == at


def test_an_identical_copy() -> None:
    program, features = plain()
    found = compare(program, program.clone(), features)
    assert found.shift == {"score": 0.0}
    assert found.worst is None
    assert found.first is None
    assert found.sentence == "no value differs by more than rounding"


def test_numbers_out_of_a_format_are_counted() -> None:
    model = copy.deepcopy(dlrm())
    with torch.no_grad():
        model.top[2].weight[:, 0] = 1e5  # over the largest fp16 number
    inputs = dlrm_inputs(ROWS, seed=3)
    program = capture(model, inputs)
    features = dict(zip(program.signature.names, inputs, strict=True))
    found = compare(program, lowered(program, features, {"top.2": "fp16"}), features)
    assert found.worst is not None
    assert found.worst.site == "top.2"
    assert found.worst.broken > 0
    assert "NaN or Inf: keep it in fp32 or bf16" in found.sentence


def test_a_range_that_is_too_narrow_is_told() -> None:
    program, features = plain()
    narrow = Precision("int8", 0.001, 0, "int8", "int8")
    found = compare(program, lowered(program, features, {"top.2": narrow}), features)
    assert found.worst is not None
    assert found.worst.site == "top.2"
    assert found.worst.saturated > 0.01
    assert "beyond the calibrated range: give more calibration rows" in found.worst.advice


def test_a_table_is_named() -> None:
    program, features = plain()
    low = program.clone()
    lookups = table_sites(low)["tables.1.weight"]
    realise_table(Rewriter(low, "test"), lookups, "int4")
    sweep(low)
    found = compare(program, low, features)
    assert found.worst is not None
    assert found.worst.site == "tables.1"
    assert found.worst.advice == "keep this table in a higher format"


def test_a_change_without_a_low_format_is_told() -> None:
    program, features = plain()
    changed = program.clone()
    weight = changed.tensor("top.2.weight")
    Rewriter(changed, "test").set_parameter("top.2.weight", 1.1 * weight)
    found = compare(program, changed, features)
    assert found.worst is not None
    assert found.worst.site == "top.2"
    assert "`rankc bisect` finds the pass" in found.worst.advice


def test_what_it_says_as_text_and_json() -> None:
    program, features = with_outlier()
    found = compare(program, lowered(program, features, {"top.2": "int8"}), features)
    lines = str(found).splitlines()
    assert lines[0].startswith("on 512 rows, scores shift by 0.")
    assert lines[2].startswith("  'top.2' (int8): isolated ")
    assert found.to_json()["findings"][0]["site"] == "bottom.0"


@pytest.mark.parametrize("name", ["mmoe", "dlrm-multihot"])
def test_values_are_paired_through_passes_that_merge_and_fold(name: str) -> None:
    torch.manual_seed(0)
    program = capture(models.zoo()[name]().eval())
    exact = optimized(name)
    features = synthesize(program.signature, 64, 1).features
    found = compare(program, exact, features)
    assert len(found.findings) > 5
    assert max(f.accumulated for f in found.findings) < 1e-4  # a wrong pair would be near 1
    low, sites = coded(exact, "int8")
    found = compare(program, low, features)
    assert found.first is not None
    assert sites
    assert found.first.formats == ("int8",)
    assert 0.0 < found.first.isolated < 0.2
    assert isinstance(program, rankc.Program)
