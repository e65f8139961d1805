from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from rankc import models
from rankc.models.dcn import Cross, DCNv2, DCNv2Config, Structure
from rankc.models.dlrm import DLRM, DLRMConfig
from torch import Tensor, nn

every_model = pytest.mark.parametrize("name", sorted(models.ZOO))

PAPER: dict[str, Callable[[], nn.Module]] = {
    "dcnv2-lowrank": partial(models.DCNv2.paper, 50, Cross.LOW_RANK),
    "dcnv2-moe": partial(models.DCNv2.paper, 50, Cross.MIXTURE),
    **{
        path.split(":")[1].split(".")[0]: partial(
            getattr(models, path.split(":")[1].split(".")[0]).paper, max_rows=50
        )
        for path in models.ZOO.values()
    },
}


def leaves(nested: Any) -> list[Tensor]:
    """The tensors of nested tuples and dicts."""
    if isinstance(nested, Tensor):
        return [nested]
    items = nested.values() if isinstance(nested, dict) else nested
    return [leaf for item in items for leaf in leaves(item)]


def dynamic(nested: Any, batch: Any) -> Any:
    """The same nesting with a dynamic first dimension in the place of each tensor."""
    if isinstance(nested, Tensor):
        return {0: batch}
    if isinstance(nested, dict):
        return {name: dynamic(item, batch) for name, item in nested.items()}
    return tuple(dynamic(item, batch) for item in nested)


@every_model
def test_small_presets_score_a_batch(name: str) -> None:
    model = models.zoo()[name]().eval()
    for batch_size in (1, 5):
        inputs = model.example_inputs(batch_size)
        for leaf in leaves(inputs):
            assert leaf.dtype in (torch.float32, torch.int64, torch.bool)
            assert len(leaf) == batch_size
        for logits in leaves(model(*inputs)):
            assert logits.shape == (batch_size,)
            assert logits.dtype == torch.float32
            assert torch.isfinite(logits).all()


@every_model
def test_scores_tell_rows_apart(name: str) -> None:
    torch.manual_seed(0)  # a small tower may be born with no unit alive
    model = models.zoo()[name]().eval()
    for logits in leaves(model(*model.example_inputs(50))):
        assert logits.std() > 1e-4


def rows_of(nested: Any, rows: slice) -> Any:
    """The same nesting, with some rows of each tensor."""
    if isinstance(nested, dict):
        return {name: item[rows] for name, item in nested.items()}
    return nested[rows]


@every_model
def test_a_row_is_scored_alike_alone_and_in_a_batch(name: str) -> None:
    model = models.zoo()[name]().eval()
    inputs = model.example_inputs(9)
    row = [rows_of(part, slice(4, 5)) for part in inputs]
    for alone, batch in zip(leaves(model(*row)), leaves(model(*inputs)), strict=True):
        torch.testing.assert_close(alone, batch[4:5], rtol=1e-5, atol=1e-6)


@every_model
def test_example_inputs_are_the_same_at_every_call(name: str) -> None:
    make = models.zoo()[name]
    first, second = (leaves(make().example_inputs(7)) for _ in range(2))
    assert len(first) == len(second)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


@every_model
def test_example_ids_are_within_their_tables(name: str) -> None:
    model = models.zoo()[name]()
    # An id past the end of its table is an IndexError on the CPU.
    inputs = model.example_inputs(500)
    model(*inputs)
    assert all(leaf.min() >= 0 for leaf in leaves(inputs) if leaf.dtype is torch.int64)


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = models.zoo()[name]()
    outputs = leaves(model(*model.example_inputs(64)))
    torch.stack([output.square().sum() for output in outputs]).sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path


# The others are exported in test_capture; these are the kinds of inputs and outputs there are.
@pytest.mark.parametrize("name", ["dlrm", "dlrm-multihot", "dcnv2", "din", "mmoe", "two-tower"])
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = models.zoo()[name]().eval()
    inputs = model.example_inputs(4)
    with torch.no_grad():
        program = torch.export.export(
            model, inputs, dynamic_shapes=dynamic(inputs, torch.export.Dim("batch")), strict=False
        )
        inputs = model.example_inputs(9)
        exported, expected = leaves(program.module()(*inputs)), leaves(model(*inputs))
    for ours, theirs in zip(exported, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_paper_presets_score_a_batch(name: str) -> None:
    model = PAPER[name]().eval()
    tables = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    together = 26 if name == "AFM" else 1  # AFM's one table holds all features
    assert max(table.num_embeddings for table in tables) <= 50 * together
    with torch.no_grad():
        for scores in leaves(model(*model.example_inputs(2))):
            assert scores.shape == (2,)
            assert torch.isfinite(scores).all()


def test_dlrm_scores_what_the_paper_says() -> None:
    model = DLRM.small().eval()
    dense, ids = model.example_inputs(3)
    bottom = model.bottom(dense)
    vectors = [bottom, *(table.weight[ids[:, i]] for i, table in enumerate(model.tables))]
    dots = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    expected = model.top(torch.cat([bottom, torch.stack(dots, dim=1)], dim=1))[:, 0]
    torch.testing.assert_close(model(dense, ids), expected, rtol=1e-6, atol=1e-7)


def test_multihot_dlrm_sums_the_rows_of_a_bag() -> None:
    multihot, onehot = DLRM.small_multihot().eval(), DLRM.small().eval()
    onehot.load_state_dict(multihot.state_dict())
    dense, ids = multihot.example_inputs(3)
    assert ids.shape == (3, 4, 3)
    with torch.no_grad():
        # One hot rows that hold the sums must score the same.
        for i, table in enumerate(onehot.tables):
            table.weight[:3] = multihot.tables[i].weight[ids[:, i]].sum(dim=1)
        rows = torch.arange(3).unsqueeze(1).expand(3, 4)
        torch.testing.assert_close(multihot(dense, ids), onehot(dense, rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("structure", list(Structure))
def test_dcn_scores_what_the_paper_says(structure: Structure) -> None:
    config = DCNv2Config((9, 5), 3, embedding_dim=4, cross_layers=2, deep=(6,), structure=structure)
    model = DCNv2(config).eval()
    dense, ids = model.example_inputs(4)
    x0 = torch.cat([dense, *(t.weight[ids[:, i]] for i, t in enumerate(model.tables))], dim=1)
    x1 = x0 * (x0 @ model.cross[0].linear.weight.T + model.cross[0].linear.bias) + x0
    x2 = x0 * (x1 @ model.cross[1].linear.weight.T + model.cross[1].linear.bias) + x1
    features = model.deep(x2)
    if structure is Structure.PARALLEL:
        features = torch.cat([x2, model.deep(x0)], dim=1)
    torch.testing.assert_close(model(dense, ids), model.head(features)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "linear", "shape"),
    [
        ("DLRM", "top.0", (1024, 479)),
        ("DCNv2", "cross.0.linear", (1027, 1027)),
        ("DLRMDCNv2", "cross.0.down", (512, 3456)),
        ("DLRMDCNv2", "top.0", (1024, 3456)),
        ("DeepFM", "deep.0", (400, 273)),
        ("XDeepFM", "cin_head", (1, 400)),
        ("AutoInt", "head", (1, 39 * 64)),
        ("DIN", "attention.mlp.0", (80, 256)),
        ("TwoTower", "user.mlp.4", (128, 512)),
        ("ESMM", "click.0", (360, 481)),
    ],
)
def test_paper_presets_have_the_published_widths(
    name: str, linear: str, shape: tuple[int, int]
) -> None:
    layer = PAPER[name]().get_submodule(linear)
    assert (layer.out_features, layer.in_features) == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: DLRMConfig((), 4), "at least one row"),
        (lambda: DLRMConfig((3, 0), 4), "at least one row"),
        (lambda: DLRMConfig((3,), 0), "must be positive"),
        (lambda: DCNv2Config((3,), 4, cross_layers=0), "must be positive"),
        (lambda: DCNv2Config((3,), 4, deep=()), "deep not empty"),
        (lambda: DCNv2Config((3,), 4, rank=0), "rank must be positive"),
        (lambda: models.DCNConfig((3, 4), 4, (8,)), "2 tables need as many widths"),
        (lambda: models.DeepFMConfig((), 4), "at least one row"),
        (lambda: models.DeepFMConfig((3,), 4, deep=()), "deep must be positive and not empty"),
        (lambda: models.DLRMDCNv2Config((3, 4), (1,), 4), "2 tables need as many bag sizes"),
        (lambda: models.XDeepFMConfig((3,), 4, feature_maps=(5, 4)), "even to be split"),
        (lambda: models.FiBiNETConfig((3,), 4), "at least two tables"),
        (lambda: models.PNNConfig((3,), 4), "at least two tables"),
        (lambda: models.AFMConfig((3,), 4), "at least two features"),
        (lambda: models.DINConfig((3,), 0, 4), "at least one row"),
        (lambda: models.DHENConfig((3,), 4, interactions=()), "at least one interaction"),
        (lambda: models.DHENConfig((3,), 4, embedding_dim=9), "2 heads can't share 9"),
        (lambda: models.TwoSidedConfig((3,), 4, (3,), 4, heads=3), "3 heads can't share 64"),
        (lambda: models.TwoTowerConfig((3,), 4, (3,), 4, temperature=0), "above 0"),
        (lambda: models.MMoEConfig((3,), 4, tasks=("click", "click")), "all different"),
        (lambda: models.PLEConfig((3,), 4, tasks=()), "all different"),
        (
            lambda: models.EarlyStageConfig(
                (3,), 4, (3,), 4, tasks=("aux_click",), auxiliary=("click",)
            ),
            "all different",
        ),
    ],
)
def test_impossible_sizes_are_refused(config: object, message: str) -> None:
    assert callable(config)
    with pytest.raises(ValueError, match=message):
        config()


def test_importing_the_package_loads_no_model_and_no_pandas() -> None:
    code = (
        "import rankc.models as m, sys; "
        "late = ('rankc.models.dlrm', 'rankc.models.data', 'pandas'); "
        "print([name for name in late if name in sys.modules]); "
        "print(m.DLRM.__name__, m.data.__name__, m.train.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "DLRM rankc.models.data rankc.models.train"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        _ = models.Transformer
