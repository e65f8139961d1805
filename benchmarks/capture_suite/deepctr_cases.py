"""Every model of deepctr-torch: one float matrix holds ids, lists, lengths and dense values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from case import Case, ids, padded
from deepctr_torch import models
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, build_input_features
from deepctr_torch.models import multitask
from torch import Tensor, nn

_SPARSE = [SparseFeat(f"s{i}", size, 8) for i, size in enumerate((11, 7, 20, 5))]
_DENSE = [DenseFeat("d0", 1), DenseFeat("d1", 3)]
_PLAIN = [*_SPARSE, *_DENSE]
_LISTS = [
    *_PLAIN,
    VarLenSparseFeat(SparseFeat("tags", 9, 8), 4, "mean"),
    VarLenSparseFeat(SparseFeat("words", 30, 8), 3, "max"),
    VarLenSparseFeat(SparseFeat("shops", 12, 8), 5, "sum", length_name="shops_length"),
]
_HISTORY = ("item", "brand")
_BEHAVIOUR = [
    SparseFeat("user", 9, 4),
    SparseFeat("item", 17, 8),
    SparseFeat("brand", 6, 4),
    DenseFeat("price", 1),
    VarLenSparseFeat(SparseFeat("hist_item", 17, 8, embedding_name="item"), 4, length_name="len"),
    VarLenSparseFeat(SparseFeat("hist_brand", 6, 4, embedding_name="brand"), 4, length_name="len"),
]
_NEGATIVES = [
    *_BEHAVIOUR,
    VarLenSparseFeat(
        SparseFeat("neg_hist_item", 17, 8, embedding_name="item"), 4, length_name="len"
    ),
    VarLenSparseFeat(
        SparseFeat("neg_hist_brand", 6, 4, embedding_name="brand"), 4, length_name="len"
    ),
]


def _matrix(columns: Sequence[Any]) -> Callable[[int], tuple[Tensor]]:
    def rows(count: int) -> tuple[Tensor]:
        parts: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        for column in columns:
            if isinstance(column, SparseFeat):
                parts[column.name] = ids(count, column.vocabulary_size)
            elif isinstance(column, DenseFeat):
                parts[column.name] = torch.randn(count, column.dimension)
            else:
                values, length = padded(count, column.maxlen, column.vocabulary_size)
                parts[column.name] = values
                if column.length_name is not None:
                    length = lengths.setdefault(column.length_name, length)
                    parts[column.length_name] = length[:, None]
        order = build_input_features(columns)
        return (torch.cat([parts[name].float() for name in order], dim=1),)

    return rows


def _generic(name: str, columns: Sequence[Any], title: str, **options: Any) -> Case:
    build = getattr(models, name)
    return Case(
        "deepctr-torch", title, lambda: build(columns, columns, **options), _matrix(columns)
    )


def _other(
    title: str, build: Callable[[], nn.Module], columns: Sequence[Any] = tuple(_PLAIN)
) -> Case:
    return Case("deepctr-torch", title, build, _matrix(columns))


_DNN: dict[str, Any] = {"dnn_hidden_units": (16, 8), "dnn_dropout": 0.2}
_TOWER: dict[str, Any] = {"tower_dnn_hidden_units": (8,), "dnn_dropout": 0.2}

CASES = [
    _generic("WDL", _PLAIN, "WDL", **_DNN),
    _generic("WDL", _LISTS, "WDL[lists]", **_DNN),
    _generic("WDL", _PLAIN, "WDL[batch norm]", dnn_use_bn=True, dnn_activation="prelu", **_DNN),
    _generic("DeepFM", _PLAIN, "DeepFM", **_DNN),
    _generic("DeepFM", _LISTS, "DeepFM[lists]", **_DNN),
    _generic("DeepFM", _PLAIN, "DeepFM[regression]", task="regression", **_DNN),
    _generic("xDeepFM", _PLAIN, "xDeepFM[split]", cin_layer_size=(8, 6), **_DNN),
    _generic(
        "xDeepFM", _PLAIN, "xDeepFM[whole]", cin_layer_size=(8, 6), cin_split_half=False, **_DNN
    ),
    _other("AFM[attention]", lambda: models.AFM(_PLAIN, _SPARSE, afm_dropout=0.2)),
    _other("AFM[sum]", lambda: models.AFM(_PLAIN, _SPARSE, use_attention=False)),
    _generic("DIFM", _PLAIN, "DIFM", **_DNN),
    _generic("IFM", _PLAIN, "IFM", **_DNN),
    _generic("AutoInt", _PLAIN, "AutoInt", **_DNN),
    _generic("AutoInt", _LISTS, "AutoInt[lists]", **_DNN),
    _generic("DCN", _PLAIN, "DCN[vector]", **_DNN),
    _generic("DCN", _PLAIN, "DCN[matrix]", cross_parameterization="matrix", **_DNN),
    _generic("DCNMix", _PLAIN, "DCNMix", low_rank=4, **_DNN),
    *(
        _generic("FiBiNET", _PLAIN, f"FiBiNET[{kind}]", bilinear_type=kind, **_DNN)
        for kind in ("all", "each", "interaction")
    ),
    _generic("NFM", _PLAIN, "NFM", bi_dropout=0.2, **_DNN),
    _generic("ONN", _PLAIN, "ONN", **_DNN),
    _other("CCPM", lambda: models.CCPM(_PLAIN, _SPARSE, dnn_hidden_units=(16,))),
    _generic("AFN", _PLAIN, "AFN", ltl_hidden_size=12, afn_dnn_hidden_units=(16, 8)),
    _other("MLR", lambda: models.MLR(_PLAIN)),
    _other(
        "MLR[bias]",
        lambda: models.MLR(_PLAIN, base_feature_columns=_PLAIN, bias_feature_columns=_SPARSE[:1]),
    ),
    _other("PNN[inner]", lambda: models.PNN(_PLAIN, **_DNN)),
    *(
        _other(
            f"PNN[outer, {kind}]",
            lambda kind=kind: models.PNN(
                _PLAIN, use_inner=False, use_outter=True, kernel_type=kind, **_DNN
            ),
        )
        for kind in ("mat", "vec", "num")
    ),
    _other("DIN", lambda: models.DIN(_BEHAVIOUR, _HISTORY, **_DNN), _BEHAVIOUR),
    _other(
        "DIN[softmax]",
        lambda: models.DIN(
            _BEHAVIOUR, _HISTORY, att_weight_normalization=True, att_activation="prelu", **_DNN
        ),
        _BEHAVIOUR,
    ),
    *(
        _other(
            f"DIEN[{kind}]",
            lambda kind=kind: models.DIEN(_BEHAVIOUR, _HISTORY, gru_type=kind, **_DNN),
            _BEHAVIOUR,
        )
        for kind in ("GRU", "AIGRU", "AGRU", "AUGRU")
    ),
    _other(
        "DIEN[negatives]",
        lambda: models.DIEN(_NEGATIVES, _HISTORY, use_negsampling=True, **_DNN),
        _NEGATIVES,
    ),
    _other(
        "SharedBottom",
        lambda: multitask.SharedBottom(_PLAIN, bottom_dnn_hidden_units=(16,), **_TOWER),
    ),
    _other("ESMM", lambda: multitask.ESMM(_PLAIN, **_TOWER)),
    _other(
        "MMOE",
        lambda: multitask.MMOE(
            _PLAIN, expert_dnn_hidden_units=(16,), gate_dnn_hidden_units=(8,), **_TOWER
        ),
    ),
    _other(
        "PLE",
        lambda: multitask.PLE(
            _PLAIN, expert_dnn_hidden_units=(16,), gate_dnn_hidden_units=(8,), **_TOWER
        ),
    ),
]
