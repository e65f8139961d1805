"""An operator that nothing of a target has a form for: refused before any pass, and the remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import rankc
import torch
from rankc.optimizer.analysis.operator_forms import require_forms
from rankc.optimizer.errors import UnsupportedError
from rankc.optimizer.target import Target
from torch import Tensor, nn
from torch.nn import functional as F


class Scored(nn.Module):
    """A tower, an operator, and a sum."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.tower = nn.Linear(4, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.tower(x)).sum(1)


def _median(x: Tensor) -> Tensor:
    return x.median(1, keepdim=True).values


@pytest.mark.parametrize(
    ("call", "operator"),
    [(torch.special.bessel_j0, "aten.special_bessel_j0.default"), (_median, "aten.median.dim")],
)
def test_is_refused_before_any_pass(call: Any, operator: str) -> None:
    seen: list[str] = []
    with pytest.raises(UnsupportedError) as raised:
        rankc.optimize(
            Scored(call).eval(),
            "cpu-fp32",
            inputs=torch.ones(2, 4),
            progress=lambda said, share: seen.append(said),
        )
    said = str(raised.value)
    assert said.startswith(f"{operator}, used at ")
    assert f"({Path(__file__)}:" in said
    assert "no form with any backend of cpu-fp32 (onnxruntime, openvino)" in said
    assert "eager and inductor can" in said
    assert not any("optimizing" in step for step in seen)


def test_the_remedy_takes_it() -> None:
    program = rankc.capture(Scored(torch.special.bessel_j0).eval(), torch.ones(2, 4))
    require_forms(program, dataclasses.replace(Target.of("cpu-fp32"), backends=("inductor",)))


def test_what_a_backend_has_a_form_for_passes() -> None:
    """An operator that isn't in the table, and has a form all the same."""
    pooled = Scored(lambda x: F.avg_pool1d(x.unsqueeze(1), 2).squeeze(1).repeat(1, 2))
    program = rankc.capture(pooled.eval(), torch.ones(2, 4))
    assert any("avg_pool" in str(node.target) for node in program.graph.nodes)
    require_forms(program, Target.of("cpu-fp32"))


class Clicked(nn.Module):
    """A bucket of a hash of an id that nothing bounds: more than 32 bits on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, item: Tensor) -> Tensor:
        return self.head(self.table(item * 2_654_435_761 % 1000)).squeeze(1)


@pytest.mark.openvino
def test_a_hash_isnt_given_to_openvino() -> None:
    pytest.importorskip("openvino")
    model = Clicked().eval()
    items = torch.tensor([5, 2**40 + 1, 7])
    alone = dataclasses.replace(Target.of("cpu-fp32"), backends=("openvino",))
    with pytest.raises(UnsupportedError, match=r"32 bits.*with_feature\('item'"):
        rankc.optimize(model, alone, inputs=items)
    artifact = rankc.optimize(model, "cpu-fp32", inputs=items)
    assert artifact.manifest.backend == "onnxruntime"
    torch.testing.assert_close(artifact(items), model(items))
