"""What the inputs of linears are like."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.pruning.moments import input_moments


def test_means_and_covariances_are_of_all_batches(program: Program) -> None:
    batches = [{"dense": torch.randn(7, 6)}, {"dense": torch.randn(5, 6)}]
    together = torch.cat([batch["dense"] for batch in batches]).double()
    found = input_moments(program, batches)
    first = found["linear"]
    torch.testing.assert_close(first.mean, together.mean(0))
    assert first.covariance is not None
    torch.testing.assert_close(first.covariance, together.T.cov(correction=0))
