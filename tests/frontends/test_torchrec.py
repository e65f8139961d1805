"""Models of torchrec: captured, built, called with its tensors and with plain dicts.

Skipped where torchrec isn't installed; ``make capture-suite`` runs it where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import pytest
import rankc
import torch
from rankc.frontends.export import capture
from rankc.optimizer.artifact.artifact import Artifact
from rankc.optimizer.errors import CaptureError, SignatureError
from rankc.optimizer.ir import FeatureKind
from rankc.optimizer.quality.verdict import Status
from torch import Tensor, nn

torchrec = pytest.importorskip("torchrec")

from torchrec.models.deepfm import SimpleDeepFMNN  # noqa: E402
from torchrec.models.dlrm import DLRM, DLRM_DCN  # noqa: E402
from torchrec.modules.embedding_configs import (  # noqa: E402
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import (  # noqa: E402
    EmbeddingBagCollection,
    EmbeddingCollection,
)
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection  # noqa: E402
from torchrec.modules.fp_embedding_modules import (  # noqa: E402
    FeatureProcessedEmbeddingBagCollection,
)
from torchrec.modules.regroup import KTRegroupAsDict  # noqa: E402
from torchrec.sparse.jagged_tensor import (  # noqa: E402
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)

KEYS = ("f1", "f2", "f3")
_SLOW = ("Loop", "Scan", "If", "SequenceEmpty", "SequenceConstruct", "ConcatFromSequence")


def bags(weighted: bool = False) -> EmbeddingBagCollection:
    mean = PoolingType.SUM if weighted else PoolingType.MEAN
    return EmbeddingBagCollection(
        is_weighted=weighted,
        tables=[
            EmbeddingBagConfig(
                name="t1", embedding_dim=8, num_embeddings=10, feature_names=["f1", "f3"]
            ),
            EmbeddingBagConfig(
                name="t2", embedding_dim=8, num_embeddings=20, feature_names=["f2"], pooling=mean
            ),
        ],
    )


def ids(
    rows: int, weighted: bool = False, seed: int = 0, lengths: Tensor | None = None
) -> KeyedJaggedTensor:
    made = torch.Generator().manual_seed(seed + rows)
    if lengths is None:
        lengths = torch.randint(0, 4, (len(KEYS) * rows,), generator=made)
    count = int(lengths.sum())
    return KeyedJaggedTensor(
        keys=list(KEYS),
        values=torch.randint(0, 10, (count,), generator=made),
        lengths=lengths,
        weights=torch.rand(count, generator=made) if weighted else None,
    )


def dense(rows: int) -> Tensor:
    return torch.rand(rows, 4, generator=torch.Generator().manual_seed(rows))


class Model(nn.Module):
    """Some collection, what the test does with its features, and a linear for the score."""

    def __init__(self, width: int, **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, module in modules.items():
            self.add_module(name, module)
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.score = nn.Linear(width, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.score(torch.cat(self.parts(features), 1)).squeeze(1)  # type: ignore[no-any-return]

    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        raise NotImplementedError


class Regrouped(Model):
    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        pooled = [self.bags(features)]
        if self.regroup is not None:
            return list(self.regroup(pooled).values())
        return KeyedTensor.regroup(pooled, [["f3", "f1"], ["f2"]])


class Permuted(Model):
    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        first, second = features.permute([2, 0, 1]).split([1, 2])
        own = KeyedJaggedTensor(
            keys=second.keys(), values=second.values() % 7, lengths=second.lengths()
        )
        joined = KeyedJaggedTensor.concat([own, first])
        return [self.bags(joined).values()]


class Sequences(Model):
    """The tables of an EmbeddingCollection, padded and attended over."""

    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        found = self.tables(features)
        padded = found["f1"].to_padded_dense(5)
        lengths = features["f1"].lengths()
        mask = torch.arange(5)[None, :] < lengths[:, None]
        weights = padded.sum(2).masked_fill(~mask, -1e9).softmax(1)
        return [(padded * weights[:, :, None]).sum(1)]


class Weighted(Model):
    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        return [self.bags(features).values()]


def tables() -> EmbeddingCollection:
    config = EmbeddingConfig(name="t", embedding_dim=8, num_embeddings=10, feature_names=["f1"])
    return EmbeddingCollection(tables=[config])


def positions() -> FeatureProcessedEmbeddingBagCollection:
    lengths = dict.fromkeys(KEYS, 6)
    return FeatureProcessedEmbeddingBagCollection(
        bags(weighted=True), PositionWeightedModuleCollection(lengths)
    )


def regroup() -> nn.Module:
    return KTRegroupAsDict([["f3", "f1"], ["f2"]], ["a", "b"])


def check_artifact(model: nn.Module, *example: Any, **others: tuple[Any, ...]) -> Artifact:
    """The artifact scores other batches like the model, and runs no loop."""
    artifact = rankc.optimize(
        model.eval(), target="cpu-int8", inputs=example, strict=True, formats="none"
    )
    for inputs in (example, *others.values()):
        with torch.no_grad():
            want = model(*inputs)
        assert torch.allclose(artifact(*inputs), want, rtol=0.0, atol=1e-6)
    graph = onnx.load(str(artifact.onnx_path), load_external_data=False).graph
    assert not [node.op_type for node in graph.node if node.op_type in _SLOW]
    return artifact


def calls(weighted: bool = False) -> dict[str, tuple[Any, ...]]:
    none = torch.zeros(3 * len(KEYS), dtype=torch.int64)
    return {
        "one": (ids(1, weighted),),
        "many": (ids(64, weighted),),
        "none": (ids(3, weighted, lengths=none),),
    }


@pytest.mark.parametrize(
    "model",
    [
        DLRM(bags(), 4, [16, 8], [8, 1]),
        DLRM_DCN(bags(), 4, [16, 8], [8, 1], 2, 4),
        SimpleDeepFMNN(4, bags(), 8, 3),
    ],
    ids=lambda model: type(model).__name__,
)
def test_its_own_models(model: nn.Module) -> None:
    others = {str(rows): (dense(rows), ids(rows)) for rows in (1, 3, 64)}
    check_artifact(model, dense(4), ids(4), **others)


@pytest.mark.parametrize(
    "model",
    [
        Regrouped(24, bags=bags(), regroup=regroup()),
        Permuted(24, bags=bags()),
        Sequences(8, tables=tables()),
        Weighted(24, bags=positions()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_its_modules(model: nn.Module) -> None:
    check_artifact(model, ids(4), **calls())


def test_regrouped_without_a_module() -> None:
    model = Regrouped(24, bags=bags())
    model.regroup = None
    check_artifact(model, ids(4), **calls())


def test_ids_with_weights() -> None:
    check_artifact(Weighted(24, bags=bags(weighted=True)), ids(4, weighted=True), **calls(True))


@pytest.mark.parametrize("count", [0, 1])
def test_an_example_of_few_ids_gives_any_number(count: int) -> None:
    """One id in every row looks like a plain column of ids, and none like nothing."""
    example = ids(4, lengths=torch.full((4 * len(KEYS),), count))
    check_artifact(Weighted(24, bags=bags()), example, **calls())


def test_the_signature_names_each_key() -> None:
    model = DLRM(bags(), 4, [16, 8], [8, 1]).eval()
    signature = capture(model, (dense(4), ids(4))).signature
    values = signature.feature("sparse_features_f2_values")
    assert values.kind is FeatureKind.JAGGED
    assert values.delimiter == "sparse_features_f2_lengths"
    assert values.cardinalities == (20,)
    assert values.tables == ("sparse_arch.embedding_bag_collection.embedding_bags.t2.weight",)
    assert signature.feature(values.delimiter).kind is FeatureKind.LENGTHS


def test_plain_dicts_in_its_place() -> None:
    model = DLRM(bags(), 4, [16, 8], [8, 1]).eval()
    artifact = rankc.optimize(model, target="cpu-fp32", inputs=(dense(4), ids(4)))
    features = {
        key: {"values": part.values().numpy(), "lengths": part.lengths().numpy()}
        for key, part in ids(7).to_dict().items()
    }
    with torch.no_grad():
        want = model(dense(7), ids(7))
    got = artifact(dense(7).numpy(), features)
    assert torch.allclose(torch.from_numpy(got), want, rtol=0.0, atol=1e-6)


class Pieces(nn.Module):
    """One jagged tensor and one keyed tensor in, a keyed tensor out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(10, 4)

    def forward(self, clicks: JaggedTensor, user: KeyedTensor) -> KeyedTensor:
        pooled = self.bag(clicks.values(), clicks.offsets()[:-1])
        ctr = pooled * user["age"] + user["place"].sum(1, keepdim=True)
        return KeyedTensor(["ctr", "cvr"], [1, 1], torch.stack([ctr.sum(1), ctr.mean(1)], 1))


def test_jagged_and_keyed_tensors() -> None:
    def inputs(rows: int) -> tuple[Any, ...]:
        lengths = torch.arange(rows) % 3
        clicks = JaggedTensor(torch.arange(int(lengths.sum())) % 10, lengths=lengths)
        user = KeyedTensor.from_tensor_list(
            ["age", "place"], [dense(rows)[:, :1], dense(rows)[:, 1:]]
        )
        return clicks, user

    model = Pieces().eval()
    artifact = rankc.optimize(model, target="cpu-fp32", inputs=inputs(6))
    assert [task.name for task in artifact.manifest.signature.tasks] == ["ctr", "cvr"]
    for rows in (1, 3, 64):
        got, want = artifact(*inputs(rows)), model(*inputs(rows))
        assert isinstance(got, KeyedTensor)
        assert torch.allclose(got.values(), want.values(), rtol=0.0, atol=1e-6)


def test_optimized_on_data() -> None:
    torch.manual_seed(0)
    model = SimpleDeepFMNN(4, bags(), 8, 3).eval()
    batches = []
    for seed in range(5):
        inputs = (torch.rand(200, 4), ids(200, seed=seed))
        labels = torch.bernoulli(model(*inputs)[:, 0])
        batches.append(rankc.Batch(inputs, labels.detach()))
    artifact = rankc.optimize(model, target="cpu-int8", data=batches, budget=rankc.Budget(ne=0.05))
    assert artifact.verdict.status is Status.PASS
    score = model(*batches[0].inputs).detach()
    assert torch.allclose(artifact(*batches[0].inputs), score, atol=0.05)


class Longest(Model):
    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        return [self.tables(features)["f1"].to_padded_dense().sum(1)]


class OneEach(Model):
    """Takes a jagged tensor for a column of ids."""

    def parts(self, features: KeyedJaggedTensor) -> Sequence[Tensor]:
        return [self.table(features["f1"].values()) + self.table(features["f2"].values())]


def test_what_can_not_be_captured_is_told() -> None:
    with pytest.raises(CaptureError, match=r"Pass the length: to_padded_dense\(desired_length=50"):
        capture(Longest(8, tables=tables()).eval(), ids(4))
    uneven = KeyedJaggedTensor(
        keys=["f1", "f2"],
        values=torch.arange(3),
        lengths=torch.ones(3, dtype=torch.int64),
        stride_per_key_per_rank=[[2], [1]],
    )
    with pytest.raises(SignatureError, match="different number of rows per key"):
        capture(Weighted(24, bags=bags()).eval(), (uneven,))


def test_one_id_in_every_row_may_be_meant() -> None:
    one = torch.ones(4 * len(KEYS), dtype=torch.int64)
    model = OneEach(8, table=nn.Embedding(10, 8)).eval()
    program = capture(model, ids(4, lengths=one))
    again = ids(9, lengths=torch.ones(9 * len(KEYS), dtype=torch.int64))
    assert torch.allclose(program(again), model(again), rtol=0.0, atol=1e-6)
    assert program.signature.feature("f1_values").shape == ("batch",)
