"""The ranking and multi-task models of mlgb: tuples of a dense matrix, an id matrix and lists.

Lazy layers, and layers that are made in the first forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from case import Case, bare_package
from torch import Tensor, nn

bare_package("mlgb")
agg: Any = import_module("mlgb.torch.agg")

_IDS = (11, 7, 20, 5)
_LISTS = (17, 6)
_LENGTH = 5
#: Models that tell two sides apart, or user and context from the target.
_TWO_SIDED = ("PLM", "GRU4Rec", "Caser", "SASRec", "BERT4Rec", "BST", "DIN", "DIEN", "DSIN")


def _id(name: str, size: int, length: int) -> dict[str, Any]:
    return {
        "feature_name": name,
        "input_length": length,
        "mask_zero": True,
        "feature_nunique": size - 1,
        "embed_feature_nunique": size,
        "embed_dim": 8,
    }


def _names(prefix: str) -> tuple[tuple[dict[str, Any], ...], ...]:
    return (
        tuple({"feature_name": f"{prefix}d{i}"} for i in range(3)),
        tuple(_id(f"{prefix}s{i}", size, 1) for i, size in enumerate(_IDS)),
        tuple(_id(f"{prefix}l{i}", size, _LENGTH) for i, size in enumerate(_LISTS)),
    )


def _inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense values, ids and lists of ids; an id 0 fills a list up."""
    ids = torch.stack([torch.randint(1, size, (count,)) for size in _IDS], 1)
    lists = torch.stack([torch.randint(1, size, (count, _LENGTH)) for size in _LISTS], 1)
    lengths = torch.randint(1, _LENGTH + 1, (count, 1, 1))
    lists = lists * (torch.arange(_LENGTH) < lengths)
    return torch.rand(count, 3), ids.int(), lists.int()


def _one(count: int) -> tuple[Any, ...]:
    return (_inputs(count),)


def _two(count: int) -> tuple[Any, ...]:
    return ((_inputs(count), _inputs(count)),)


def _build(kind: Callable[..., nn.Module], two: bool, **options: Any) -> nn.Module:
    names: Any = (_names("u"), _names("i")) if two else _names("")
    if not two:
        options["inputs_if_sequential"] = True
    model = kind(names, **options)
    model.eval()
    with torch.no_grad():
        model(*(_two(4) if two else _one(4)))
    return model


CASES = [
    *(
        Case(
            "mlgb",
            name,
            partial(_build, kind, name in _TWO_SIDED),
            _two if name in _TWO_SIDED else _one,
        )
        for name, kind in agg.torch_ranking_models_map.items()
    ),
    *(
        Case("mlgb", f"{name}[tasks]", partial(_build, kind, False), _one)
        for name, kind in agg.torch_mtl_models_map.items()
    ),
]
