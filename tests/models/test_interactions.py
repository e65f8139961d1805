"""Each interaction against its formula, written out on tiny sizes."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from rankc import models
from rankc.models.afm import AttentionalPairs
from rankc.models.autoint import AutoInt, InteractingLayer
from rankc.models.cross import (
    CrossLayer,
    LowRankCrossLayer,
    MixtureCrossLayer,
    VectorCrossLayer,
)
from rankc.models.deepfm import FactorizationMachine
from rankc.models.dhen import (
    DHEN,
    Convolution,
    DHENConfig,
    DHENLayer,
    Dot,
    Ensemble,
    FlatCross,
    Interaction,
    TokenLinear,
)
from rankc.models.din import Dice, TargetAttention
from rankc.models.dlrm_dcnv2 import DLRMDCNv2
from rankc.models.early_stage import EarlyStage
from rankc.models.fibinet import Bilinear, SENet, Sharing
from rankc.models.masknet import Arrangement, MaskBlock, MaskNet, MaskNetConfig
from rankc.models.pnn import InnerProduct
from rankc.models.two_sided import HistoryAttention
from rankc.models.two_tower import Similarity, TwoTower, TwoTowerConfig
from rankc.models.wukong import FactorizationMachineBlock, Wukong
from rankc.models.xdeepfm import CompressedInteraction
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape)


# --- cross layers ---------------------------------------------------------------------------------


def test_vector_cross_is_the_outer_product_times_a_vector() -> None:
    layer, x0, x = VectorCrossLayer(5), draw(3, 5), draw(3, 5)
    nn.init.normal_(layer.bias)
    outer = torch.einsum("bi,bj->bij", x0, x)
    same(layer(x0, x), outer @ layer.weight.weight[0] + layer.bias + x)


def test_low_rank_cross_is_a_full_cross_of_the_product() -> None:
    low, full, x0, x = LowRankCrossLayer(5, 2), CrossLayer(5), draw(3, 5), draw(3, 5)
    with torch.no_grad():
        full.linear.weight.copy_(low.up.weight @ low.down.weight)
        full.linear.bias.copy_(low.up.bias)
    same(low(x0, x), full(x0, x))


def test_mixture_cross_weighs_its_experts() -> None:
    layer, x0, x = MixtureCrossLayer(5, 2, 3), draw(4, 5), draw(4, 5)
    nn.init.normal_(layer.bias)
    gates = torch.cat([gate(x) for gate in layer.gates], dim=1).softmax(dim=1)
    expected = x.clone()
    for e in range(3):
        inner = torch.tanh(torch.tanh(x @ layer.v[e]) @ layer.c[e].T)
        expected = expected + gates[:, e : e + 1] * x0 * (inner @ layer.u[e].T + layer.bias[:, 0])
    same(layer(x0, x), expected)


def test_dlrm_dcnv2_sums_bags_of_any_size() -> None:
    model = DLRMDCNv2.small().eval()
    dense, ids = model.example_inputs(3)
    ends = [0, 3, 4, 6, 11]
    pooled = [
        table.weight[ids[:, ends[i] : ends[i + 1]]].sum(dim=1)
        for i, table in enumerate(model.tables)
    ]
    x0 = torch.cat([model.bottom(dense), *pooled], dim=1)
    x = model.cross[1](x0, model.cross[0](x0, x0))
    same(model(dense, ids), model.top(x)[:, 0])


# --- pairs of fields ------------------------------------------------------------------------------


def pairs(fields: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(fields[:, i], fields[:, j]) for i, j in combinations(range(fields.shape[1]), 2)]


def test_fm_is_the_sum_of_all_dot_products() -> None:
    fields = draw(3, 5, 4)
    expected = sum((a * b).sum(dim=1, keepdim=True) for a, b in pairs(fields))
    same(FactorizationMachine()(fields), expected)


def test_inner_products_are_those_of_all_pairs() -> None:
    fields = draw(3, 5, 4)
    same(InnerProduct(5)(fields), torch.stack([(a * b).sum(1) for a, b in pairs(fields)], dim=1))


@pytest.mark.parametrize("sharing", list(Sharing))
def test_bilinear_multiplies_left_fields_by_their_matrix(sharing: Sharing) -> None:
    layer, fields = Bilinear(4, 3, sharing), draw(2, 4, 3)
    got = layer(fields)
    for pair, (i, j) in enumerate(combinations(range(4), 2)):
        matrix = {Sharing.ALL: 0, Sharing.EACH: i, Sharing.INTERACTION: pair}[sharing]
        weight = layer.linears[matrix].weight
        same(got[:, pair], fields[:, i] @ weight.T * fields[:, j])


def test_senet_weighs_fields_by_their_means() -> None:
    layer, fields = SENet(4, 2), draw(2, 4, 3)
    first, second = layer.excitation[0].weight, layer.excitation[2].weight
    weights = (fields.mean(dim=2) @ first.T).relu() @ second.T
    same(layer(fields), fields * weights.relu()[:, :, None])


def test_afm_weighs_pairs_by_attention() -> None:
    layer, fields = AttentionalPairs(4, 3, 2), draw(5, 4, 3)
    products = torch.stack([a * b for a, b in pairs(fields)], dim=1)
    scores = layer.projection(layer.attention(products).relu())[:, :, 0]
    pooled = torch.einsum("bp,bpd->bd", scores.softmax(dim=1), products)
    same(layer(fields), layer.head(pooled))


def test_afm_reads_each_feature_at_its_offset() -> None:
    model = models.AFM.small().eval()
    dense, ids = model.example_inputs(3)
    starts = torch.tensor([0, 50, 81, 93])
    fields = torch.stack([model.table.weight[ids[:, i] + starts[i]] for i in range(4)], dim=1)
    weights = sum(model.weights.weight[ids[:, i] + starts[i]] for i in range(4))
    same(model(dense, ids), (weights + model.dense(dense) + model.pairs(fields))[:, 0])


@pytest.mark.parametrize("split_half", [True, False])
def test_cin_compresses_all_products_of_maps_and_fields(split_half: bool) -> None:
    layer, fields = CompressedInteraction(3, (4, 2), split_half=split_half), draw(2, 3, 5)
    first, second = (c.weight[:, :, 0] for c in layer.convolutions)

    def compress(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        maps, width = weight.shape[0], hidden.shape[1]
        output = torch.zeros(2, maps, 5)
        for k in range(maps):
            for i in range(3):
                for j in range(width):
                    output[:, k] += weight[k, i * width + j] * fields[:, i] * hidden[:, j]
            output[:, k] += bias[k]
        return output.relu()

    with torch.no_grad():
        x1 = compress(fields, first, layer.convolutions[0].bias)
        output, hidden = (x1[:, :2], x1[:, 2:]) if split_half else (x1, x1)
        x2 = compress(hidden, second, layer.convolutions[1].bias)
        expected = torch.cat([output, x2], dim=1).sum(dim=2)
        assert layer.output_width == expected.shape[1]
        same(layer(fields), expected)


@pytest.mark.parametrize("name", ["deepfm", "xdeepfm", "fibinet"])
def test_first_order_terms_are_a_linear_model(name: str) -> None:
    terms = models.zoo()[name]().first_order
    dense, ids = models.DeepFM.small().example_inputs(3)
    expected = dense @ terms.dense.weight[0] + terms.dense.bias
    for i, table in enumerate(terms.tables):
        expected = expected + table.weight[ids[:, i], 0]
    same(terms(dense, ids)[:, 0], expected)


# --- attention ------------------------------------------------------------------------------------


def test_autoint_attends_over_fields() -> None:
    layer, fields = InteractingLayer(3, 2, 4), draw(2, 5, 3)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        query, key, value = (
            fields @ linear.weight[part].T for linear in (layer.query, layer.key, layer.value)
        )
        heads.append((query @ key.mT).softmax(dim=-1) @ value)
    same(layer(fields), (torch.cat(heads, dim=2) + layer.shortcut(fields)).relu())


def test_autoint_scales_a_vector_by_each_dense_value() -> None:
    model = AutoInt.small().eval()
    dense, ids = model.example_inputs(3)
    fields = [t.weight[ids[:, i]] for i, t in enumerate(model.tables)]
    fields += [dense[:, i : i + 1] * model.dense_vectors[i] for i in range(4)]
    x = torch.stack(fields, dim=1)
    attended = model.attention[1](model.attention[0](x))
    expected = model.head(attended.flatten(1)) + model.deep(x.flatten(1))
    same(model(dense, ids), expected[:, 0])


def test_din_scores_each_item_of_the_history() -> None:
    layer = TargetAttention(3, (5, 4))
    candidate, history = draw(2, 3), draw(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    expected = torch.zeros(2, 3)
    for b in range(2):
        for item, known in zip(history[b], mask[b], strict=True):
            q = candidate[b]
            score = layer.mlp(torch.cat([q, item, q - item, q * item]))
            expected[b] += score[0] * item * known
    same(layer(candidate, history, mask), expected)


def test_din_ignores_what_is_masked() -> None:
    model = models.DIN.small().eval()
    dense, ids, history, mask, candidate = model.example_inputs(5)
    other = torch.where(mask, history, 7)
    same(model(dense, ids, other, mask, candidate), model(dense, ids, history, mask, candidate))
    assert (~mask).any()


def test_dice_is_relu_like_and_soft() -> None:
    dice = Dice(2).eval()
    nn.init.constant_(dice.alpha, 0.25)
    x = torch.tensor([[-1.5, 2.0]])
    p = torch.sigmoid(x)
    same(dice(x), p * x + (1 - p) * 0.25 * x)


def test_history_attention_is_one_query_per_head() -> None:
    layer = HistoryAttention(4, 2)
    candidate, history = draw(3, 4), draw(3, 5, 4)
    mask = torch.arange(5) < torch.tensor([[1], [5], [3]])
    query, key, value = layer.query(candidate), layer.key(history), layer.value(history)
    pooled = torch.zeros(3, 4)
    for b in range(3):
        for h in range(2):
            part, known = slice(2 * h, 2 * h + 2), mask[b]
            scores = key[b, known, part] @ query[b, part] / math.sqrt(2)
            pooled[b, part] = scores.softmax(dim=0) @ value[b, known, part]
    same(layer(candidate, history, mask), layer.output(pooled))


def test_an_empty_history_has_finite_scores() -> None:
    for model in (models.TwoSided.small().eval(), EarlyStage.small().eval()):
        (features,) = model.example_inputs(3)
        output = model({**features, "user_history": torch.zeros_like(features["user_history"])})
        for scores in output.values() if isinstance(output, dict) else [output]:
            assert torch.isfinite(scores).all()


# --- masks, ensembles, stacks ---------------------------------------------------------------------


def test_mask_block_multiplies_by_the_instances_mask() -> None:
    block, instance, hidden = MaskBlock(3, 4, 2, 5), draw(2, 3), draw(2, 4)
    mask = block.mask[2](block.mask[0](instance).relu())
    expected = F.layer_norm((mask * hidden) @ block.hidden.weight.T, (5,)).relu()
    same(block(instance, hidden), expected)


@pytest.mark.parametrize("arrangement", list(Arrangement))
def test_mask_blocks_are_arranged_as_told(arrangement: Arrangement) -> None:
    config = MaskNetConfig(
        (9, 5), 2, embedding_dim=3, blocks=2, block_width=4, deep=(5,), arrangement=arrangement
    )
    model = MaskNet(config).eval()
    dense, ids = model.example_inputs(3)
    fields = [t.weight[ids[:, i]] for i, t in enumerate(model.tables)]
    fields += [dense[:, i : i + 1] * model.dense_vectors[i] for i in range(2)]
    instance = torch.cat(fields, dim=1)
    normed = torch.cat([F.layer_norm(field, (3,)) for field in fields], dim=1)
    first, second = model.blocks
    if arrangement is Arrangement.PARALLEL:
        hidden = torch.cat([first(instance, normed), second(instance, normed)], dim=1)
    else:
        hidden = second(instance, first(instance, normed))
    same(model(dense, ids), model.deep(hidden)[:, 0])


def test_wukong_may_be_associated_either_way() -> None:
    block, x = FactorizationMachineBlock(5, 4, 3, 2, (6,)).eval(), draw(2, 5, 4)
    cheap = x @ (x.mT @ block.projection)
    expected = block.mlp(block.norm(cheap.flatten(1))).view(2, 3, 4)
    same(block(x), expected)


def test_wukong_layers_add_a_shortcut_compressed_where_sizes_differ() -> None:
    model = Wukong.small().eval()
    first, second = model.layers
    x = draw(2, 5, 8)
    joined = torch.cat([first.fm(x), torch.einsum("ln,bnd->bld", first.linear.weight, x)], dim=1)
    same(first(x), F.layer_norm(joined + first.shortcut.weight @ x, (8,)))
    assert isinstance(second.shortcut, nn.Identity)
    x = draw(2, 6, 8)
    same(second(x), F.layer_norm(torch.cat([second.fm(x), second.linear(x)], 1) + x, (8,)))


def test_dhen_modules_are_what_they_say() -> None:
    x = draw(2, 4, 6)
    linear = TokenLinear(4, 3)
    mixed = torch.einsum("ot,btd->bod", linear.linear.weight, x) + linear.linear.bias[:, None]
    same(linear(x), mixed)
    dot = Dot(4, 6, 3, (5,))
    dots = torch.stack([(x[:, i] * x[:, j]).sum(1) for i in range(4) for j in range(i)], dim=1)
    hidden = dot.mlp(torch.cat([x[:, 0], dots], dim=1))
    same(dot(x), dot.projection(hidden).view(2, 3, 6))
    cross = FlatCross(4, 6, 3)
    flat = x.reshape(2, 24)
    crossed = flat * (flat @ cross.cross.weight.T + cross.cross.bias)
    same(cross(x), cross.mix(crossed.view(2, 4, 6)))
    convolution = Convolution(4, 3)
    padded, kernel = F.pad(x, (1, 1, 1, 1)), convolution.convolution.weight[0, 0]
    image = sum(kernel[i, j] * padded[:, i : i + 4, j : j + 6] for i in range(3) for j in range(3))
    same(convolution(x), convolution.mix(image + convolution.convolution.bias))


@pytest.mark.parametrize("ensemble", list(Ensemble))
@pytest.mark.parametrize("tokens", [2, 4, 5])
def test_dhen_layers_ensemble_norm_and_take_a_shortcut(ensemble: Ensemble, tokens: int) -> None:
    config = DHENConfig(
        (3,),
        2,
        embedding_dim=6,
        interactions=(Interaction.LINEAR, Interaction.CROSS),
        module_tokens=2,
        ensemble=ensemble,
    )
    layer, x = DHENLayer(config, tokens), draw(3, tokens, 6)
    first, second = (interaction(x) for interaction in layer.interactions)
    joined = torch.cat([first, second], 1) if ensemble is Ensemble.CONCAT else first + second
    assert isinstance(layer.shortcut, nn.Identity) == (tokens == config.layer_tokens)
    same(layer(x), F.layer_norm(joined + layer.shortcut(x), (6,)))
    model = DHEN(config).eval()
    assert model(*model.example_inputs(3)).shape == (3,)


# --- towers and tasks -----------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", list(Similarity))
def test_two_towers_are_compared_and_scaled(similarity: Similarity) -> None:
    config = TwoTowerConfig(
        (9,), 2, (5,), 3, embedding_dim=4, output_dim=3, similarity=similarity, temperature=0.1
    )
    model = TwoTower(config).eval()
    (features,) = model.example_inputs(4)
    user = model.user(features["user_dense"], features["user_ids"])
    item = model.item(features["item_dense"], features["item_ids"])
    expected = (user * item).sum(dim=1)
    if similarity is Similarity.COSINE:
        expected = torch.cosine_similarity(user, item, dim=1)
    same(model(features), expected / 0.1)


def test_mmoe_gates_mix_experts_per_task() -> None:
    model = models.MMoE.small().eval()
    dense, ids = model.example_inputs(3)
    x = torch.cat([dense, *(t.weight[ids[:, i]] for i, t in enumerate(model.tables))], dim=1)
    logits = model(dense, ids)
    assert tuple(logits) == ("click", "like", "share")
    for t, task in enumerate(logits):
        gate = (x @ model.gates[t][0].weight.T).softmax(dim=1)
        mixed = sum(gate[:, e : e + 1] * expert(x) for e, expert in enumerate(model.experts))
        same(logits[task], model.towers[t](mixed)[:, 0])


def test_ple_tasks_see_their_own_and_the_shared_experts() -> None:
    model = models.PLE.small().eval()
    first = model.levels[0]
    inputs = [draw(3, 36) for _ in range(3)]
    outputs = first(inputs)
    shared = [expert(inputs[2]) for expert in first.shared_experts]
    own = [[e(inputs[t]) for e in experts] for t, experts in enumerate(first.task_experts)]
    gates = [*first.task_gates, first.shared_gate]
    seen = [own[0] + shared, own[1] + shared, own[0] + own[1] + shared]
    for gate, x, experts, got in zip(gates, inputs, seen, outputs, strict=True):
        weights = gate(x).softmax(dim=1)
        same(got, sum(weights[:, e : e + 1] * expert for e, expert in enumerate(experts)))
    last = model.levels[-1]
    assert last.shared_gate is None
    assert len(last(outputs)) == 2


def test_esmm_multiplies_probabilities() -> None:
    model = models.ESMM.small().eval()
    dense, ids = model.example_inputs(6)
    x = torch.cat([dense, *(t.weight[ids[:, i]] for i, t in enumerate(model.tables))], dim=1)
    scores = model(dense, ids)
    same(scores["click"], model.click(x)[:, 0].sigmoid())
    expected = (model.click(x).sigmoid() * model.conversion(x).sigmoid())[:, 0]
    same(scores["click_and_conversion"], expected)


def test_early_stage_pools_the_history_by_its_mean() -> None:
    model = EarlyStage.small().eval()
    (features,) = model.example_inputs(4)
    history = features["user_history"]
    means = [model.history.weight[row[row != 0]].mean(dim=0) for row in history]
    dense = torch.cat([features["user_dense"], torch.stack(means)], dim=1)
    user = model.user(dense, features["user_ids"])
    item = model.item(features["item_dense"], features["item_ids"])
    hidden = model.shared(torch.cat([user, item, user * item], dim=1))
    outputs = model(features)
    assert tuple(outputs) == ("click", "quality", "aux_final_click", "aux_final_quality")
    for head, logits in zip(model.heads, outputs.values(), strict=True):
        same(logits, head(hidden)[:, 0])


def test_two_sided_attends_in_the_candidates_own_table() -> None:
    model = models.TwoSided.small().eval()
    (features,) = model.example_inputs(4)
    items, history = model.item_tables[0].weight, features["user_history"]
    attended = model.attention(items[features["item_ids"][:, 0]], items[history], history != 0)
    sides = {}
    for side in ("user", "item"):
        tables, ids = getattr(model, f"{side}_tables"), features[f"{side}_ids"]
        embedded = [table.weight[ids[:, i]] for i, table in enumerate(tables)]
        x = torch.cat([features[f"{side}_dense"], *embedded], dim=1)
        sides[side] = getattr(model, f"{side}_mlp")(x)
    expected = model.top(torch.cat([sides["user"], attended, sides["item"]], dim=1))
    same(model(features), expected[:, 0])
