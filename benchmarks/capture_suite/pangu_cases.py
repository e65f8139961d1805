"""The ranking and multi-task models of rec-pangu: a dict of columns, the labels among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from case import Case, bare_package, without
from torch import Tensor, nn

# A library of graphs, which only the models of graphs use.
without("dgl", "dgl.function")
bare_package("rec_pangu")
ranking: Any = import_module("rec_pangu.models.ranking")
multi_task: Any = import_module("rec_pangu.models.multi_task")

_SIZES = {"user": 11, "item": 17, "place": 7, "day": 5}
_DENSE = ("price", "age")
_COLUMNS: dict[str, dict[str, Any]] = {
    **{name: {"vocab_size": size} for name, size in _SIZES.items()},
    **{name: {"min": 0.0, "max": 1.0} for name in _DENSE},
}


class Served(nn.Module):
    """A model of the library without its loss, as its trainer calls it to predict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.model(data, is_training=False)
        return found


def _rows(count: int) -> tuple[dict[str, Tensor]]:
    ids = {name: torch.randint(0, size, (count,)) for name, size in _SIZES.items()}
    return ({**ids, **{name: torch.rand(count) for name in _DENSE}},)


def _build(kind: Callable[..., nn.Module]) -> nn.Module:
    width = {} if kind is ranking.LR else {"embedding_dim": 8}
    return Served(kind(enc_dict=_COLUMNS, **width))


def _tasks(kind: Callable[..., nn.Module]) -> nn.Module:
    device = (
        {}
        if kind in (multi_task.ESSM, multi_task.ShareBottom, multi_task.AITM)
        else {"device": "cpu"}
    )
    return Served(kind(enc_dict=_COLUMNS, embedding_dim=8, **device))


_RANKING = (
    "WDL",
    "DeepFM",
    "NFM",
    "FiBiNet",
    "AFM",
    "AFN",
    "AOANet",
    "AutoInt",
    "CCPM",
    "LR",
    "FM",
    "xDeepFM",
    "DCN",
    "MaskNet",
)
_MULTI_TASK = ("AITM", "ESSM", "MLMMOE", "MMOE", "OMOE", "ShareBottom")

CASES = [
    *(Case("rec-pangu", name, partial(_build, getattr(ranking, name)), _rows) for name in _RANKING),
    *(
        Case("rec-pangu", name, partial(_tasks, getattr(multi_task, name)), _rows)
        for name in _MULTI_TASK
    ),
]
