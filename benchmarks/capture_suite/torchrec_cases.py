"""torchrec's own models, and models of its modules, on keyed jagged tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Case
from torch import Tensor, nn
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, LowRankMixtureCrossNet
from torchrec.modules.deepfm import DeepFM, FactorizationMachine
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_KEYS = ("user", "item", "place")
_WIDTH, _DENSE, _LONGEST = 8, 4, 4


def _bags(weighted: bool = False) -> EmbeddingBagCollection:
    mean = PoolingType.SUM if weighted else PoolingType.MEAN
    return EmbeddingBagCollection(
        is_weighted=weighted,
        tables=[
            EmbeddingBagConfig(
                name="shared_table",
                embedding_dim=_WIDTH,
                num_embeddings=11,
                feature_names=["user", "place"],
            ),
            EmbeddingBagConfig(
                name="item_table",
                embedding_dim=_WIDTH,
                num_embeddings=17,
                feature_names=["item"],
                pooling=mean,
            ),
        ],
    )


def _ids(count: int) -> KeyedJaggedTensor:
    lengths = torch.randint(0, _LONGEST, (len(_KEYS) * count,))
    values = torch.randint(0, 11, (int(lengths.sum()),))
    return KeyedJaggedTensor(keys=list(_KEYS), values=values, lengths=lengths)


def _rows(count: int) -> tuple[Any, ...]:
    return torch.rand(count, _DENSE), _ids(count)


class Pooled(nn.Module):
    """An interaction over what is looked up in bags, and a linear for the score."""

    def __init__(self, interaction: nn.Module, width: int) -> None:
        super().__init__()
        self.bags = self._looks_up()
        self.interaction = interaction
        self.score = nn.Linear(width, 1)

    def forward(self, dense: Tensor, ids: KeyedJaggedTensor) -> Tensor:
        found = self.bags(ids).values()
        return torch.sigmoid(self.score(self._interact(dense, found))).squeeze(1)

    def _looks_up(self) -> nn.Module:
        return _bags()

    def _interact(self, dense: Tensor, found: Tensor) -> Tensor:
        crossed: Tensor = self.interaction(torch.cat([dense, found], 1))
        return crossed


class Weighted(Pooled):
    """Ids weighted by their place in the list."""

    def _looks_up(self) -> nn.Module:
        places = PositionWeightedModuleCollection(dict.fromkeys(_KEYS, _LONGEST))
        return FeatureProcessedEmbeddingBagCollection(_bags(weighted=True), places)


class Fields(Pooled):
    """An interaction that takes the features apart."""

    def _interact(self, dense: Tensor, found: Tensor) -> Tensor:
        crossed: Tensor = self.interaction([dense, *found.split(_WIDTH, 1)])
        return torch.cat([crossed, dense], 1)


class Sequences(nn.Module):
    """Lists of ids in order: padded, masked and pooled by attention to the last place."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = EmbeddingCollection(
            [
                EmbeddingConfig(
                    name=f"{key}_table",
                    embedding_dim=_WIDTH,
                    num_embeddings=11,
                    feature_names=[key],
                )
                for key in _KEYS
            ]
        )
        self.query = nn.Linear(_DENSE, _WIDTH)
        self.score = nn.Linear(len(_KEYS) * _WIDTH, 1)

    def forward(self, dense: Tensor, ids: KeyedJaggedTensor) -> Tensor:
        found, query = self.tables(ids), self.query(dense)
        pooled = []
        for key in _KEYS:
            rows = found[key].to_padded_dense(_LONGEST)
            places = torch.arange(_LONGEST) < found[key].lengths()[:, None]
            scores = torch.einsum("bld,bd->bl", rows, query).masked_fill(~places, -1e9)
            pooled.append(torch.einsum("bl,bld->bd", scores.softmax(1), rows))
        return self.score(torch.cat(pooled, 1)).squeeze(1)  # type: ignore[no-any-return]


_ALL = _DENSE + len(_KEYS) * _WIDTH
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "DLRM": lambda: DLRM(_bags(), _DENSE, [16, _WIDTH], [16, 1]),
    "DLRM_DCN": lambda: DLRM_DCN(_bags(), _DENSE, [16, _WIDTH], [16, 1], 2, 4),
    "DLRM_Projection": lambda: DLRM_Projection(
        _bags(), _DENSE, [16, _WIDTH], [16, 1], [16, 2 * _WIDTH], [16, 3 * _WIDTH]
    ),
    "SimpleDeepFMNN": lambda: SimpleDeepFMNN(_DENSE, _bags(), 16, 4),
    "MLP": lambda: Pooled(MLP(_ALL, [16, 8]), 8),
    "CrossNet": lambda: Pooled(CrossNet(_ALL, 2), _ALL),
    "LowRankCrossNet": lambda: Pooled(LowRankCrossNet(_ALL, 2, 4), _ALL),
    "LowRankMixtureCrossNet": lambda: Pooled(LowRankMixtureCrossNet(_ALL, 2, 3, 4), _ALL),
    "FactorizationMachine": lambda: Fields(FactorizationMachine(), 1 + _DENSE),
    "DeepFM": lambda: Fields(DeepFM(MLP(_ALL, [16, 8])), 8 + _DENSE),
    "CrossNet[position weights]": lambda: Weighted(CrossNet(_ALL, 2), _ALL),
    "EmbeddingCollection": Sequences,
}

CASES = [Case("torchrec", name, build, _rows) for name, build in _BUILDERS.items()]
