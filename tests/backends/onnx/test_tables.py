"""Tables that aren't coded stay as they are."""

from __future__ import annotations

import torch
from rankc.backends.onnx.tables import decode_tables_first
from support import capture_small
from torch import nn


def test_without_codes_nothing_is_decoded() -> None:
    program = capture_small(nn.Embedding(5, 2), torch.tensor([1, 2]))
    assert decode_tables_first(program) is program
