"""Several models as one: one input a feature, what is the same stored and computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rankc
import torch
from rankc.models.early_stage import EarlyStage
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import DataError, SignatureError
from rankc.optimizer.ir import Form, Side, verify
from rankc.optimizer.quality.metrics import recall_at_k
from rankers import EAGER_FP32
from support import with_auxiliary
from torch import Tensor, nn

ROWS = 7


class Ranker(nn.Module):
    """One table, a layer over it and a dense input, and a head; ``hashed`` takes any id."""

    def __init__(self, seed: int = 0, rows: int = 50, hashed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(rows, 8)
        self.deep = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.head = nn.Linear(16, 1)
        self.hashed = hashed

    def forward(self, dense: Tensor, item: Tensor) -> Tensor:
        ids = item % self.hashed if self.hashed else item
        return self.head(self.deep(torch.cat([dense, self.table(ids)], 1))).squeeze(1)

    def example_inputs(self, rows: int = ROWS) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        dense = torch.randn(rows, 4, generator=generator)
        return dense, torch.randint(50, (rows,), generator=generator)


class Featured(Ranker):
    """The same over a dict, with a feature of its own."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        score = super().forward(features["dense"], features["item"])
        return {"buy": score + features["price"]}

    def example_inputs(self, rows: int = ROWS) -> Any:
        dense, item = super().example_inputs(rows)
        return ({"dense": dense, "item": item, "price": torch.ones(rows)},)


def copied(model: Ranker, *parts: str) -> Ranker:
    """Another model with some parts bit-identical."""
    other = type(model)(seed=9)
    for part in parts:
        getattr(other, part).load_state_dict(getattr(model, part).state_dict())
    return other


def test_every_score_is_that_of_its_own_model_bit_for_bit() -> None:
    models = [Ranker(seed).eval() for seed in range(3)]
    joint = rankc.consolidate(models, ["ctr", "cvr", "quality"])
    verify(joint)
    assert joint.form is Form.CANONICAL
    assert joint.signature.names == ("dense", "item")
    assert joint.signature.outputs == ("ctr/score", "cvr/score", "quality/score")
    assert [task.name for task in joint.signature.tasks] == list(joint.signature.outputs)
    inputs = models[0].example_inputs()
    scores = joint(*inputs)
    for name, model in zip(("ctr", "cvr", "quality"), models, strict=True):
        assert torch.equal(scores[name], model(*inputs))
    assert "every score equals that of its model bit for bit" in joint.notes[1]
    assert joint.notes[0].startswith("3 models in one (ctr, cvr, quality): 2 inputs instead of 6")


@pytest.mark.parametrize(
    ("parts", "linears", "lookups"),
    [
        ((), 4, 2),
        (("table",), 4, 1),
        (("table", "deep"), 3, 1),
        (("table", "deep", "head"), 2, 1),
        (("deep",), 4, 2),
    ],
    ids=["nothing", "table", "trunk", "all", "layer over another table"],
)
def test_what_is_the_same_is_stored_and_computed_once(
    parts: tuple[str, ...], linears: int, lookups: int
) -> None:
    model = Ranker()
    other = copied(model, *parts)
    joint = rankc.consolidate([model, other])
    aten = torch.ops.aten
    count = [
        len(joint.graph.find_nodes(op="call_function", target=target))
        for target in (aten.linear.default, aten.embedding.default)
    ]
    assert count == [linears, lookups]
    own = sum(p.nbytes for p in model.parameters())
    saved = sum(p.nbytes for part in parts for p in getattr(model, part).parameters())
    assert joint.nbytes == 2 * own - saved
    inputs = model.example_inputs()
    assert torch.equal(joint(*inputs)["model1"], other(*inputs))


def test_nodes_keep_the_users_names_and_their_model() -> None:
    joint = rankc.consolidate([Ranker(0), Ranker(1)], ["ctr", "cvr"])
    linears = joint.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    sites = [rankc.optimizer.ir.site_of(node) for node in linears]
    assert sites == ["ctr.deep.0", "ctr.head", "cvr.deep.0", "cvr.head"]
    assert {name.split(".")[0] for name, _ in joint.tensors()} == {"ctr", "cvr"}


def test_models_that_are_called_differently_take_one_dict() -> None:
    plain, featured = Ranker(0), Featured(1)
    joint = rankc.consolidate([plain, featured], ["ctr", "cvr"])
    (features,) = featured.example_inputs()
    scores = joint(features)
    assert torch.equal(scores["ctr"], plain(features["dense"], features["item"]))
    assert torch.equal(scores["cvr"]["buy"], featured(features)["buy"])
    assert joint.signature.outputs == ("ctr/score", "cvr/buy")
    again = rankc.consolidate([featured, Featured(2)], ["a", "b"])
    assert again.arguments == ("features",)
    assert set(again(features)) == {"a", "b"}


def test_optimize_takes_it_and_tells_what_was_saved() -> None:
    model = Ranker().eval()
    joint = rankc.consolidate([model, copied(model, "table").eval()], ["ctr", "cvr"])
    before = joint.fingerprint()
    artifact = rankc.optimize(joint, EAGER_FP32)
    assert joint.fingerprint() == before
    assert artifact.signature.outputs == joint.signature.outputs
    assert "2 models in one (ctr, cvr)" in str(artifact.report)
    inputs = model.example_inputs()
    assert torch.allclose(artifact(*inputs)["ctr"], model(*inputs), atol=1e-6)
    kept = rankc.optimize(joint, EAGER_FP32, outputs=["cvr/score"])
    assert kept.signature.outputs == ("cvr/score",)
    assert "2 models in one" in str(kept.report)


def test_labels_are_given_by_model_and_task() -> None:
    joint = rankc.consolidate([Ranker(0), Ranker(1)], ["ctr", "cvr"])
    inputs = Ranker().example_inputs(3000)
    labels = {name: torch.bernoulli(torch.sigmoid(s)) for name, s in joint(*inputs).items()}
    named = {f"{name}/score": value for name, value in labels.items()}
    budget = rankc.Budget(ne=0.02)
    artifact = rankc.optimize(joint, EAGER_FP32, data=[rankc.Batch(inputs, named)], budget=budget)
    assert set(artifact.verdict.delta_ne) == {"ctr/score", "cvr/score"}
    assert artifact.verdict.status is rankc.Status.PASS


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    model = Ranker()
    joint = rankc.consolidate([model, Ranker(1)], ["ctr", "cvr"])
    joint.save(tmp_path / "joint.pt2")
    again = rankc.capture(tmp_path / "joint.pt2", trust_code=True)
    assert again.notes == joint.notes
    assert torch.equal(again(*model.example_inputs())["cvr"], joint(*model.example_inputs())["cvr"])


def test_captured_programs_with_sides_and_tasks_of_their_own() -> None:
    first = rankc.capture(Ranker(0))
    first.signature = first.signature.with_feature("item", side=Side.UNKNOWN)
    first.signature = first.signature.with_task("score", kind=rankc.TaskKind.REGRESSION)
    joint = rankc.consolidate([first, Ranker(1)], ["a", "b"])
    assert joint.signature.feature("item").side is Side.ITEM
    kinds = [task.kind for task in joint.signature.tasks]
    assert kinds == [rankc.TaskKind.REGRESSION, rankc.TaskKind.BINARY]


def test_auxiliary_heads_stay_auxiliary() -> None:
    torch.manual_seed(0)
    program = rankc.capture(EarlyStage.small().eval())
    with_auxiliary(program, "aux_final_click", "aux_final_quality")
    joint = rankc.consolidate([program], ["early"])
    artifact = rankc.optimize(joint, EAGER_FP32)
    assert artifact.signature.outputs == ("early/click", "early/quality")


class Bags(nn.Module):
    """Ids of all rows in one, and where each row begins."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.bag, self.head = nn.EmbeddingBag(30, 8, mode="sum"), nn.Linear(8, 1)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.bag(ids, offsets)).squeeze(1)

    def example_inputs(self) -> tuple[Tensor, ...]:
        return torch.randint(30, (11,)), torch.tensor([0, 2, 2, 7, 9])


def test_ids_whose_number_differs_from_row_to_row() -> None:
    models = [Bags(0).eval(), Bags(1).eval()]
    joint = rankc.consolidate(models, ["a", "b"])
    ids, offsets = torch.randint(30, (20,)), torch.tensor([0, 5, 6])
    scores = joint(ids, offsets)
    for name, model in zip("ab", models, strict=True):
        assert torch.equal(scores[name], model(ids, offsets))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Ranker(1, rows=60), "its ids are below 50 and below 60"),
        (Ranker(1, hashed=40), "its ids are hashed by nothing and by modulo 40"),
    ],
    ids=["cardinality", "hashing"],
)
def test_ids_that_are_not_the_same_are_refused(other: nn.Module, reason: str) -> None:
    message = rf"feature 'item' isn't the same in models 'ctr' and 'cvr': {reason}.*apart="
    with pytest.raises(SignatureError, match=message):
        rankc.consolidate([Ranker(), other], ["ctr", "cvr"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": rankc.FeatureKind.DENSE}, "its kind is 'id' and 'dense'"),
        ({"dtype": "int32"}, r"it is int64 \[batch\] and int32 \[batch\]"),
        ({"shape": ("batch", 2)}, r"it is int64 \[batch\] and int64 \[batch, 2\]"),
        ({"side": Side.USER}, "it describes the item and the user"),
        ({"default": 1.0}, "what stands for it where it is left out"),
        ({"cardinalities": (50, 3), "axis": 0}, "dimension 1 and 0"),
    ],
    ids=["kind", "dtype", "shape", "side", "default", "axis"],
)
def test_features_that_are_not_the_same_are_refused(changes: Any, reason: str) -> None:
    other = rankc.capture(Ranker(1))
    other.signature = other.signature.with_feature("item", **changes)
    with pytest.raises(SignatureError, match=f"feature 'item'.*{reason}"):
        rankc.consolidate([Ranker(), other], ["ctr", "cvr"])


def test_packed_columns_are_compared_one_by_one() -> None:
    one, other = rankc.capture(Ranker()), rankc.capture(Ranker(1))
    for program, limits in ((one, (50, 0, 7)), (other, (50, 9, 8))):
        program.signature = program.signature.with_feature("item", cardinalities=limits)
    with pytest.raises(SignatureError, match="its ids in column 2 are below 7 and below 8"):
        rankc.consolidate([one, other])


def test_features_kept_apart_are_inputs_of_their_own() -> None:
    models = [Ranker(0), Ranker(1, rows=60)]
    joint = rankc.consolidate(models, ["ctr", "cvr"], apart=("item",))
    assert joint.signature.names == ("dense", "ctr_item", "cvr_item")
    dense, item = models[0].example_inputs()
    scores = joint({"dense": dense, "ctr_item": item, "cvr_item": item + 5})
    assert torch.equal(scores["cvr"], models[1](dense, item + 5))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ctr", "ctr"], r"models need names of their own: \['ctr'\] are given twice"),
        (["ctr", "c/r"], "letters, digits and underscores, not 'c/r'"),
        (["ctr"], "2 models, 1 names and 2 examples were given"),
    ],
)
def test_two_outputs_of_one_name_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        rankc.consolidate([Ranker(0), Ranker(1)], names)


def test_no_model_at_all_is_refused() -> None:
    with pytest.raises(SignatureError, match="takes at least one model"):
        rankc.consolidate([])


def requests(count: int, size: int) -> list[rankc.Batch]:
    inputs = Ranker().example_inputs(count * size)
    return [rankc.Batch(inputs, group=torch.arange(count).repeat_interleave(size))]


def test_consistency_of_an_early_with_a_final_stage() -> None:
    early, final = Ranker(0), Ranker(1)
    joint = rankc.consolidate(
        [early, final], ["early", "final"], stages=("early", "final"), data=requests(40, 20), k=(5,)
    )
    (batch,) = requests(40, 20)
    with torch.no_grad():
        first, last = (model(*batch.inputs).double().numpy() for model in (early, final))
    value = 1.0 / (1.0 + np.exp(-last))
    (found,) = rankc.consistency(joint, [batch], early="early", final="final", k=(5,))
    assert found.hard.estimate == recall_at_k(value, first, batch.group, 5)
    assert found.soft == pytest.approx(recall_at_k(value, first, batch.group, 5, soft=True))
    assert found.hard.low < found.hard.estimate < found.hard.high
    assert str(found) == joint.notes[-1]
    assert "of the final stage's top 5 for 'score', the early stage keeps" in joint.notes[-1]
    artifact = rankc.optimize(joint, EAGER_FP32)
    (again,) = rankc.consistency(artifact, [batch], early="early", final="final", k=(5,))
    assert again.hard.estimate == pytest.approx(found.hard.estimate, abs=0.02)


def test_a_stage_that_ranks_alike_keeps_everything() -> None:
    joint = rankc.consolidate([Ranker(0), Ranker(0)], ["early", "final"])
    (found,) = rankc.consistency(joint, requests(9, 20), early="early", final="final")
    assert (found.hard.estimate, found.soft) == (1.0, 1.0)


def test_consistency_needs_groups_and_a_common_task() -> None:
    joint = rankc.consolidate([Ranker(0), Featured(1)], ["early", "final"])
    rows = synthesize(joint.signature, 40).features
    batch = rankc.Batch(dict(rows))
    with pytest.raises(SignatureError, match="score no task of one name"):
        rankc.consistency(joint, [batch], early="early", final="final")
    same = rankc.consolidate([Ranker(0), Ranker(1)], ["early", "final"])
    with pytest.raises(DataError, match="group="):
        rankc.consistency(
            same, [rankc.Batch(Ranker().example_inputs(40))], early="early", final="final"
        )
    with pytest.raises(DataError, match="give data="):
        rankc.consistency(same, None, early="early", final="final")
