"""The ranking and multi-task models of torch-rechub, and its two towers: dicts of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from case import Case, padded
from torch import Tensor, nn
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models import matching, multi_task, ranking

_MLP: dict[str, Any] = {"dims": [16, 8], "dropout": 0.2, "activation": "relu"}
_PLAIN_MLP: dict[str, Any] = {"dims": [16, 8], "dropout": 0.2}
_LENGTH = 4


def _dense() -> list[DenseFeature]:
    return [DenseFeature("d0"), DenseFeature("d1")]


def _sparse(prefix: str = "s", width: int = 8) -> list[SparseFeature]:
    sizes = (11, 7, 20, 5)
    return [SparseFeature(f"{prefix}{i}", size, width) for i, size in enumerate(sizes)]


def _lists(pooling: str = "mean") -> list[SequenceFeature]:
    return [
        SequenceFeature("tags", 9, 8, pooling=pooling, padding_idx=0),
        SequenceFeature("words", 30, 8, pooling=pooling),
    ]


def _history(prefix: str = "hist") -> list[SequenceFeature]:
    return [
        SequenceFeature(
            f"{prefix}_{name}", size, 8, pooling="concat", shared_with=name, padding_idx=0
        )
        for name, size in (("item", 17), ("brand", 6))
    ]


def _target() -> list[SparseFeature]:
    return [
        SparseFeature("item", 17, 8, padding_idx=0),
        SparseFeature("brand", 6, 8, padding_idx=0),
    ]


def _rows(features: Sequence[Any]) -> Callable[[int], tuple[dict[str, Tensor]]]:
    def rows(count: int) -> tuple[dict[str, Tensor]]:
        made: dict[str, Tensor] = {}
        for feature in features:
            if isinstance(feature, DenseFeature):
                made[feature.name] = torch.randn(count)
            elif isinstance(feature, SequenceFeature):
                made[feature.name] = padded(count, _LENGTH, feature.vocab_size)[0]
            else:
                made[feature.name] = torch.randint(0, feature.vocab_size, (count,))
        return (made,)

    return rows


def _case(title: str, build: Callable[[], nn.Module], features: Sequence[Any]) -> Case:
    return Case("torch-rechub", title, build, _rows(features))


def _plain() -> list[Any]:
    return [*_sparse(), *_dense()]


def _mixed() -> list[Any]:
    return [*_sparse(), *_lists(), *_dense()]


def _ffm(kind: Any, **options: Any) -> nn.Module:
    sizes = (11, 7, 20)
    linear = [SparseFeature(f"s{i}", size, 1) for i, size in enumerate(sizes)]
    cross = [SparseFeature(f"s{i}", size * 3, 4) for i, size in enumerate(sizes)]
    model = kind(linear, cross, embed_dim=4, mlp_params=_MLP, **options)
    assert isinstance(model, nn.Module)
    return model


_TASKS = ["classification", "regression"]
_TOWERS = [{"dims": [8]}, {"dims": [8]}]
_BEHAVIOUR = [*_sparse(), *_history(), *_target()]
_NEGATIVES = [*_BEHAVIOUR, *_history("neg")]

CASES = [
    _case("WideDeep", lambda: ranking.WideDeep(_dense(), _sparse(), _MLP), _plain()),
    _case("WideDeep[lists]", lambda: ranking.WideDeep(_dense(), _mixed(), _MLP), _mixed()),
    _case("DeepFM", lambda: ranking.DeepFM(_plain(), _sparse(), _MLP), _plain()),
    _case(
        "DeepFM[lists]",
        lambda: ranking.DeepFM([*_dense(), *_lists("sum")], [*_sparse(), *_lists("sum")], _MLP),
        _mixed(),
    ),
    _case("DCN", lambda: ranking.DCN(_plain(), 3, _MLP), _plain()),
    *(
        _case(
            f"DCNv2[{structure}, {'mixture' if mixture else 'full'}]",
            lambda structure=structure, mixture=mixture: ranking.DCNv2(
                _plain(), 2, _MLP, model_structure=structure, use_low_rank_mixture=mixture
            ),
            _plain(),
        )
        for structure, mixture in (
            ("parallel", True),
            ("parallel", False),
            ("stacked", True),
            ("crossnet_only", False),
        )
    ),
    *(
        _case(
            f"EDCN[{bridge}]",
            lambda bridge=bridge: ranking.EDCN(_sparse(), 2, _PLAIN_MLP, bridge_type=bridge),
            _sparse(),
        )
        for bridge in (
            "hadamard_product",
            "pointwise_addition",
            "concatenation",
            "attention_pooling",
        )
    ),
    *(
        _case(
            f"FiBiNet[{kind}]",
            lambda kind=kind: ranking.FiBiNet(_sparse(), _MLP, bilinear_type=kind),
            _sparse(),
        )
        for kind in ("field_all", "field_each", "field_interaction")
    ),
    _case("AFM", lambda: ranking.AFM(_sparse(), 8, 6), _sparse()),
    _case("AutoInt", lambda: ranking.AutoInt(_sparse(), _dense(), mlp_params=_MLP), _plain()),
    _case("AutoInt[no MLP]", lambda: ranking.AutoInt(_sparse(), []), _sparse()),
    _case("DeepFFM", lambda: _ffm(ranking.DeepFFM), _sparse()[:3]),
    _case("FatDeepFFM", lambda: _ffm(ranking.FatDeepFFM, reduction_ratio=1), _sparse()[:3]),
    _case(
        "DIN",
        lambda: ranking.DIN(_sparse(), _history(), _target(), _PLAIN_MLP, {"dims": [8]}),
        _BEHAVIOUR,
    ),
    _case(
        "DIN[softmax]",
        lambda: ranking.DIN(
            _sparse(), _history(), _target(), _PLAIN_MLP, {"dims": [8], "use_softmax": True}
        ),
        _BEHAVIOUR,
    ),
    _case(
        "BST",
        lambda: ranking.BST(_sparse(), _history(), _target(), _MLP, nhead=2, max_seq_len=8),
        _BEHAVIOUR,
    ),
    _case(
        "DIEN",
        lambda: ranking.DIEN(_sparse(), _history(), _history("neg"), _target(), _PLAIN_MLP),
        _NEGATIVES,
    ),
    _case(
        "SharedBottom", lambda: multi_task.SharedBottom(_plain(), _TASKS, _MLP, _TOWERS), _plain()
    ),
    _case(
        "ESMM",
        lambda: multi_task.ESMM(_sparse("u"), _sparse("i"), _MLP, _MLP),
        [
            *_sparse("u"),
            *_sparse("i"),
        ],
    ),
    _case("MMOE", lambda: multi_task.MMOE(_plain(), _TASKS, 3, _MLP, _TOWERS), _plain()),
    _case("MMOE[lists]", lambda: multi_task.MMOE(_mixed(), _TASKS, 3, _MLP, _TOWERS), _mixed()),
    _case("PLE", lambda: multi_task.PLE(_plain(), _TASKS, 2, 2, 1, _MLP, _TOWERS), _plain()),
    _case("AITM", lambda: multi_task.AITM(_plain(), 2, _MLP, _TOWERS), _plain()),
    _case(
        "DSSM",
        lambda: matching.DSSM(_sparse("u"), _sparse("i"), _MLP, _MLP),
        [
            *_sparse("u"),
            *_sparse("i"),
        ],
    ),
]
