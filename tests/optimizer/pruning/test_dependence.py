"""Which lines of a value go as a whole."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.pruning.dependence import Scene, whole_lines


def test_a_line_goes_where_all_of_its_elements_go() -> None:
    mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    mask[0, :, 1] = True
    rows, columns = whole_lines(mask)
    assert not rows.any()
    assert columns.flatten().tolist() == [False, True, False]


def test_weights_are_what_is_multiplied_by(program: Program) -> None:
    scene = Scene(program)
    assert len(scene.weights) == 6
    assert "head.weight" in scene.weights
