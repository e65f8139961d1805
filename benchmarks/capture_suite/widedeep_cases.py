"""The tabular and recommendation models of pytorch-widedeep: one float matrix of all columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from case import Case, bare_package, without
from torch import Tensor, nn

# Pictures and word vectors, which only its other models know.
without("torchvision", "torchvision.transforms", "torchvision.models", "torchvision.models._api")
without("gensim", "gensim.models")
bare_package("pytorch_widedeep")
bare_package("pytorch_widedeep.models")
bare_package("pytorch_widedeep.utils")
rec: Any = import_module("pytorch_widedeep.models.rec")
tabular: Any = import_module("pytorch_widedeep.models.tabular")

_CATEGORIES = [("user", 11), ("item", 17), ("place", 7), ("day", 5)]
_DENSE = ["price", "age"]
_COLUMNS = {name: i for i, name in enumerate([*(name for name, _ in _CATEGORIES), *_DENSE])}
_EMBEDDED = [(name, size, 8) for name, size in _CATEGORIES]
_DIMS: dict[str, Any] = {"mlp_hidden_dims": [16, 8]}


def _rows(count: int) -> tuple[Tensor]:
    ids = torch.stack([torch.randint(1, size, (count,)) for _, size in _CATEGORIES], 1)
    return (torch.cat([ids.float(), torch.randn(count, len(_DENSE))], 1),)


class Head(nn.Module):
    """A model of the library, whose last layer is hidden, with a linear for the score."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.score = nn.Linear(int(body.output_dim), 1)

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803, the library's own name
        found = self.body(X)
        found = found[0] if isinstance(found, tuple) else found
        return torch.sigmoid(self.score(found)).squeeze(1)


def _embedded(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return Head(
        kind(
            column_idx=_COLUMNS,
            cat_embed_input=_EMBEDDED,
            continuous_cols=_DENSE,
            **options,
        )
    )


def _attended(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return Head(
        kind(
            column_idx=_COLUMNS,
            cat_embed_input=_CATEGORIES,
            continuous_cols=_DENSE,
            **options,
        )
    )


def _factors(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    columns = {name: i for i, (name, _) in enumerate(_CATEGORIES)}
    return Head(kind(column_idx=columns, num_factors=8, cat_embed_input=_CATEGORIES, **options))


def _ids(count: int) -> tuple[Tensor]:
    return (_rows(count)[0][:, : len(_CATEGORIES)],)


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "TabMlp": partial(_embedded, tabular.TabMlp, **_DIMS),
    "TabMlp[batch norm]": partial(
        _embedded,
        tabular.TabMlp,
        mlp_batchnorm=True,
        cont_norm_layer="batchnorm",
        **_DIMS,
    ),
    "TabResnet": partial(_embedded, tabular.TabResnet, blocks_dims=[16, 8]),
    "TabNet": partial(_embedded, tabular.TabNet, n_steps=2, step_dim=8, attn_dim=8),
    "SelfAttentionMLP": partial(_attended, tabular.SelfAttentionMLP, n_blocks=2),
    "ContextAttentionMLP": partial(_attended, tabular.ContextAttentionMLP, n_blocks=2),
    "TabTransformer": partial(_attended, tabular.TabTransformer, n_blocks=2, n_heads=4),
    "SAINT": partial(_attended, tabular.SAINT, n_blocks=2, n_heads=4),
    "FTTransformer": partial(_attended, tabular.FTTransformer, n_blocks=2, n_heads=4),
    "TabFastFormer": partial(_attended, tabular.TabFastFormer, n_blocks=2, n_heads=4),
    "TabPerceiver": partial(
        _attended, tabular.TabPerceiver, n_latents=4, latent_dim=16, n_perceiver_blocks=2
    ),
    "DeepCrossNetwork": partial(_embedded, rec.DeepCrossNetwork, n_cross_layers=2, **_DIMS),
    "DeepCrossNetworkV2": partial(_embedded, rec.DeepCrossNetworkV2, num_cross_layers=2, **_DIMS),
    "DeepCrossNetworkV2[experts]": partial(
        _embedded, rec.DeepCrossNetworkV2, num_cross_layers=2, num_experts=2, low_rank=4, **_DIMS
    ),
    "GatedDeepCrossNetwork": partial(
        _embedded, rec.GatedDeepCrossNetwork, num_cross_layers=2, **_DIMS
    ),
    "AutoInt": partial(_attended, rec.AutoInt, input_dim=8, num_layers=2, num_heads=2),
    "AutoIntPlus": partial(
        _attended, rec.AutoIntPlus, input_dim=8, num_layers=2, num_heads=2, **_DIMS
    ),
    "Transformer": partial(
        _attended, rec.Transformer, input_dim=32, n_heads=4, n_blocks=2, seq_length=6
    ),
    "DeepFM": partial(_factors, rec.DeepFactorizationMachine, **_DIMS),
    "DeepFFM": partial(_factors, rec.DeepFieldAwareFactorizationMachine, reduce_sum=False, **_DIMS),
    "xDeepFM": partial(
        _factors,
        rec.ExtremeDeepFactorizationMachine,
        cin_layer_dims=[8, 8],
        reduce_sum=False,
        **_DIMS,
    ),
}

_FACTORS = ("DeepFM", "DeepFFM", "xDeepFM")
CASES = [
    Case("pytorch-widedeep", name, build, _ids if name in _FACTORS else _rows)
    for name, build in _BUILDERS.items()
]
