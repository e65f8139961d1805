"""Ranking models in plain torch, and data to train them on; nothing here knows the compiler.

`rankc.models.DLRM` and the other classes, `rankc.models.data` and `rankc.models.train` load when
they are first used, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from . import data, train
    from .afm import AFM, AFMConfig
    from .autoint import AutoInt, AutoIntConfig
    from .dcn import DCNv2, DCNv2Config
    from .dcn_v1 import DCN, DCNConfig
    from .deepfm import DeepFM, DeepFMConfig
    from .dhen import DHEN, DHENConfig
    from .din import DIN, DINConfig
    from .dlrm import DLRM, DLRMConfig
    from .dlrm_dcnv2 import DLRMDCNv2, DLRMDCNv2Config
    from .early_stage import EarlyStage, EarlyStageConfig
    from .esmm import ESMM, ESMMConfig
    from .fibinet import FiBiNET, FiBiNETConfig
    from .masknet import MaskNet, MaskNetConfig
    from .mmoe import MMoE, MMoEConfig
    from .ple import PLE, PLEConfig
    from .pnn import PNN, PNNConfig
    from .two_sided import TwoSided, TwoSidedConfig
    from .two_tower import TwoTower, TwoTowerConfig
    from .wukong import Wukong, WukongConfig
    from .xdeepfm import XDeepFM, XDeepFMConfig

# Where each name of the zoo is built; small enough to capture in a test.
ZOO: dict[str, str] = {
    "dlrm": "rankc.models.dlrm:DLRM.small",
    "dlrm-multihot": "rankc.models.dlrm:DLRM.small_multihot",
    "dlrm-dcnv2": "rankc.models.dlrm_dcnv2:DLRMDCNv2.small",
    "dcn": "rankc.models.dcn_v1:DCN.small",
    "dcnv2": "rankc.models.dcn:DCNv2.small",
    "dcnv2-lowrank": "rankc.models.dcn:DCNv2.small_lowrank",
    "dcnv2-moe": "rankc.models.dcn:DCNv2.small_mixture",
    "deepfm": "rankc.models.deepfm:DeepFM.small",
    "xdeepfm": "rankc.models.xdeepfm:XDeepFM.small",
    "autoint": "rankc.models.autoint:AutoInt.small",
    "masknet": "rankc.models.masknet:MaskNet.small",
    "fibinet": "rankc.models.fibinet:FiBiNET.small",
    "afm": "rankc.models.afm:AFM.small",
    "pnn": "rankc.models.pnn:PNN.small",
    "din": "rankc.models.din:DIN.small",
    "dhen": "rankc.models.dhen:DHEN.small",
    "wukong": "rankc.models.wukong:Wukong.small",
    "two-tower": "rankc.models.two_tower:TwoTower.small",
    "mmoe": "rankc.models.mmoe:MMoE.small",
    "ple": "rankc.models.ple:PLE.small",
    "esmm": "rankc.models.esmm:ESMM.small",
    "early-stage": "rankc.models.early_stage:EarlyStage.small",
    "two-sided": "rankc.models.two_sided:TwoSided.small",
}

_MODULES = ("data", "train")
_CLASSES = {
    "AFM": "afm",
    "AutoInt": "autoint",
    "DCN": "dcn_v1",
    "DCNv2": "dcn",
    "DeepFM": "deepfm",
    "DHEN": "dhen",
    "DIN": "din",
    "DLRM": "dlrm",
    "DLRMDCNv2": "dlrm_dcnv2",
    "EarlyStage": "early_stage",
    "ESMM": "esmm",
    "FiBiNET": "fibinet",
    "MaskNet": "masknet",
    "MMoE": "mmoe",
    "PLE": "ple",
    "PNN": "pnn",
    "TwoSided": "two_sided",
    "TwoTower": "two_tower",
    "Wukong": "wukong",
    "XDeepFM": "xdeepfm",
}
# Each class has its sizes beside it: DLRM and DLRMConfig.
_HOMES = {**_CLASSES, **{f"{name}Config": home for name, home in _CLASSES.items()}}

__all__ = [
    "AFM",
    "DCN",
    "DHEN",
    "DIN",
    "DLRM",
    "ESMM",
    "PLE",
    "PNN",
    "ZOO",
    "AFMConfig",
    "AutoInt",
    "AutoIntConfig",
    "DCNConfig",
    "DCNv2",
    "DCNv2Config",
    "DHENConfig",
    "DINConfig",
    "DLRMConfig",
    "DLRMDCNv2",
    "DLRMDCNv2Config",
    "DeepFM",
    "DeepFMConfig",
    "ESMMConfig",
    "EarlyStage",
    "EarlyStageConfig",
    "FiBiNET",
    "FiBiNETConfig",
    "MMoE",
    "MMoEConfig",
    "MaskNet",
    "MaskNetConfig",
    "PLEConfig",
    "PNNConfig",
    "TwoSided",
    "TwoSidedConfig",
    "TwoTower",
    "TwoTowerConfig",
    "Wukong",
    "WukongConfig",
    "XDeepFM",
    "XDeepFMConfig",
    "data",
    "train",
    "zoo",
]


def zoo() -> dict[str, Callable[[], nn.Module]]:
    """Gives a factory of the small preset of every model.

    Each call of a factory draws new weights; every model has `example_inputs(batch_size)`, whose
    result it takes as its arguments.
    """
    return {name: _resolve(path) for name, path in ZOO.items()}


def _resolve(path: str) -> Callable[[], nn.Module]:
    module, attribute = path.split(":")
    factory: Callable[[], nn.Module] = attrgetter(attribute)(importlib.import_module(module))
    return factory


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
