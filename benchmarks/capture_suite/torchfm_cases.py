"""Every model of torchfm: ids of all fields in one int64 matrix, offsets added in forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from case import Case, ids
from torch import nn
from torchfm.model import afi, afm, afn, dcn, dfm, ffm, fm, fnfm, fnn, lr, ncf, nfm, pnn, wd, xdfm

FIELDS = (11, 7, 20, 5, 13)
_MLP: dict[str, Any] = {"mlp_dims": (16, 8), "dropout": 0.2}
_MLP2: dict[str, Any] = {"mlp_dims": (16, 8), "dropouts": (0.2, 0.2)}

_MODELS: dict[str, Callable[[], nn.Module]] = {
    "LR": partial(lr.LogisticRegressionModel, FIELDS),
    "FM": partial(fm.FactorizationMachineModel, FIELDS, 8),
    "FFM": partial(ffm.FieldAwareFactorizationMachineModel, FIELDS, 4),
    "FNFM": partial(fnfm.FieldAwareNeuralFactorizationMachineModel, FIELDS, 4, **_MLP2),
    "FNN": partial(fnn.FactorizationSupportedNeuralNetworkModel, FIELDS, 8, **_MLP),
    "PNN[inner]": partial(pnn.ProductNeuralNetworkModel, FIELDS, 8, method="inner", **_MLP),
    "PNN[outer]": partial(pnn.ProductNeuralNetworkModel, FIELDS, 8, method="outer", **_MLP),
    "WideAndDeep": partial(wd.WideAndDeepModel, FIELDS, 8, **_MLP),
    "NCF": partial(
        ncf.NeuralCollaborativeFiltering,
        FIELDS[:2],
        np.array((0,), dtype=np.int64),
        np.array((1,), dtype=np.int64),
        8,
        **_MLP,
    ),
    "NFM": partial(nfm.NeuralFactorizationMachineModel, FIELDS, 8, **_MLP2),
    "AFM": partial(
        afm.AttentionalFactorizationMachineModel, FIELDS, 8, attn_size=6, dropouts=(0.2, 0.2)
    ),
    "AFM[no dropout]": partial(
        afm.AttentionalFactorizationMachineModel, FIELDS, 8, attn_size=6, dropouts=(0.0, 0.0)
    ),
    "DeepFM": partial(dfm.DeepFactorizationMachineModel, FIELDS, 8, **_MLP),
    "xDeepFM[split]": partial(
        xdfm.ExtremeDeepFactorizationMachineModel, FIELDS, 8, cross_layer_sizes=(8, 8), **_MLP
    ),
    "xDeepFM[whole]": partial(
        xdfm.ExtremeDeepFactorizationMachineModel,
        FIELDS,
        8,
        cross_layer_sizes=(8, 8),
        split_half=False,
        **_MLP,
    ),
    "DCN": partial(dcn.DeepCrossNetworkModel, FIELDS, 8, num_layers=3, **_MLP),
    "AutoInt": partial(
        afi.AutomaticFeatureInteractionModel,
        FIELDS,
        8,
        atten_embed_dim=12,
        num_heads=2,
        num_layers=2,
        **_MLP2,
    ),
    "AFN": partial(afn.AdaptiveFactorizationNetwork, FIELDS, 8, LNN_dim=12, **_MLP2),
}

CASES = [
    Case(
        "torchfm",
        name,
        build,
        lambda rows, width=2 if name == "NCF" else 5: (ids(rows, *FIELDS[:width]),),
    )
    for name, build in _MODELS.items()
]
