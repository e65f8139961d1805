"""Keeping the served outputs of a multi-task ranker: what is left gives the same bits."""

from __future__ import annotations

import torch
from rankc.frontends.export import capture
from rankc.models.early_stage import EarlyStage
from rankc.optimizer.ir import verify

SERVED = ("click", "quality")


def test_heads_that_are_not_served_go_with_their_parameters() -> None:
    torch.manual_seed(0)
    module = EarlyStage.small().eval()
    inputs = module.example_inputs(64)
    whole = capture(module, inputs)
    kept = capture(module, inputs, outputs=SERVED)
    verify(kept)
    assert kept.signature.outputs == SERVED
    # The heads of the config's last two outputs are the auxiliary ones.
    dropped = sum(p.numel() for head in module.heads[2:] for p in head.parameters())
    before = sum(value.numel() for value in whole.module.state_dict().values())
    after = sum(value.numel() for value in kept.module.state_dict().values())
    assert before - after == dropped
    expected, found = whole(*inputs), kept(*inputs)
    assert set(found) == set(SERVED)
    for name in SERVED:
        assert torch.equal(found[name], expected[name])
