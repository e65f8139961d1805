"""Functions that torch.export records for one batch size alone stay open in the batch."""

from __future__ import annotations

import torch
from alone import Of
from support import capture_small
from torch import Tensor
from torch.nn import functional


def similar(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of rows."""
    return functional.cosine_similarity(x, y, dim=1)


def test_cosines_of_another_batch() -> None:
    program = capture_small(Of(similar, 2), torch.randn(3, 4), torch.randn(3, 4))
    x, y = torch.randn(7, 4), torch.randn(7, 4)
    (found,) = program.run(dict(zip(program.signature.names, (x, y), strict=True))).values()
    torch.testing.assert_close(found, similar(x, y), rtol=1e-6, atol=1e-6)
