from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from rankc import models
from rankc.models.dcn import DCNv2, DCNv2Config, Structure
from rankc.models.dlrm import DLRM, DLRMConfig


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_small_presets_score_a_batch(name: str) -> None:
    model = models.zoo()[name]().eval()
    for batch_size in (1, 5):
        dense, ids = model.example_inputs(batch_size)
        logits = model(dense, ids)
        assert dense.dtype == torch.float32
        assert ids.dtype == torch.int64
        assert logits.shape == (batch_size,)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_example_inputs_are_the_same_at_every_call(name: str) -> None:
    make = models.zoo()[name]
    for ours, theirs in zip(make().example_inputs(7), make().example_inputs(7), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_example_ids_are_within_their_tables(name: str) -> None:
    model = models.zoo()[name]()
    _, ids = model.example_inputs(500)
    assert ids.min() >= 0
    for table, rows in enumerate(model.config.cardinalities):
        assert ids[:, table].max() < rows


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = models.zoo()[name]()
    model(*model.example_inputs(64)).square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = models.zoo()[name]().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, model.example_inputs(4), dynamic_shapes=({0: batch}, {0: batch}), strict=False
    )
    inputs = model.example_inputs(9)
    assert torch.equal(program.module()(*inputs), model(*inputs))


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


@pytest.mark.parametrize(("model_class", "top"), [(DLRM, 479), (DCNv2, 1027)])
def test_paper_presets_have_the_published_widths(model_class: type, top: int) -> None:
    model = model_class.paper(max_rows=50)
    first = model.top[0] if model_class is DLRM else model.cross[0].linear
    assert first.in_features == top
    assert max(table.num_embeddings for table in model.tables) == 50
    assert model(*model.example_inputs(2)).shape == (2,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: DLRMConfig((), 4), "at least one row"),
        (lambda: DLRMConfig((3, 0), 4), "at least one row"),
        (lambda: DLRMConfig((3,), 0), "must be positive"),
        (lambda: DCNv2Config((3,), 4, cross_layers=0), "must be positive"),
        (lambda: DCNv2Config((3,), 4, deep=()), "deep not empty"),
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
