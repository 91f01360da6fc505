from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from glip_adapt.core.structures import Pyramid, TextFeatures
from glip_adapt.trunks import cross_attention
from glip_adapt.trunks.cross_attention import CrossAttention, FusionLayer
from glip_adapt.trunks.glip.dyhead import DyHeadBlock
from glip_adapt.trunks.glip.head import AlignmentHead
from glip_adapt.trunks.glip.tower import FusionTower, TextLayer, TowerBlock

SIZES = {"image_width": 6, "text_width": 5, "joint_width": 16, "heads": 2}
ORDERS = ("dense", "reassociated")


def randomised(module, seed=0):
    """Give every parameter, the biases that start at zero included, a part to play."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def values_and_gradients(layer, order, image, text, mask):
    layer.forward = getattr(layer, order)
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    outputs = layer(image, text, mask)
    pull = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [image, text, *layer.parameters()], pull)]


@given(
    batch=st.integers(1, 2),
    positions=st.integers(1, 12),
    tokens=st.integers(1, 6),
    padded=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),  # in eval mode, where it does nothing
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_both_orders_agree_in_values_and_in_every_gradient(batch, positions, tokens, padded, dropout, seed):
    layer = randomised(CrossAttention(**SIZES, dropout=dropout).double().eval(), seed)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, positions, 6, generator=generator, dtype=torch.float64)
    text = torch.randn(batch, tokens, 5, generator=generator, dtype=torch.float64)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    if padded:
        mask[-1, tokens // 2 + 1 :] = False
    dense, reassociated = (values_and_gradients(layer, order, image, text, mask) for order in ORDERS)
    for a, b in zip(dense, reassociated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_a_mask_without_padding_which_a_gpu_applies_changes_no_bit(monkeypatch, order):
    layer = randomised(CrossAttention(**SIZES, dropout=0.0))
    given = torch.randn(2, 7, 6), torch.randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool)
    expected = values_and_gradients(layer, order, *given)
    monkeypatch.setattr(cross_attention, "may_hold_false", lambda mask: True)
    assert all(map(torch.equal, values_and_gradients(layer, order, *given), expected))


def test_both_orders_agree_where_dropout_has_thinned_the_probabilities():
    # The probabilities over positions no longer sum to one then, which the value's bias has to respect.
    class Thinned(CrossAttention):
        def _probabilities(self, *given):
            generator = torch.Generator().manual_seed(1)
            both = super()._probabilities(*given)
            return tuple(p * (2 * (torch.rand(p.shape, generator=generator) < 0.5)) for p in both)

    layer = randomised(Thinned(**SIZES, dropout=0.0).double())
    image, text = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    mask = torch.ones(2, 4, dtype=torch.bool)
    dense, reassociated = (values_and_gradients(layer, order, image, text, mask) for order in ORDERS)
    for a, b in zip(dense, reassociated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_dropout_acts_only_while_training(order):
    layer = randomised(CrossAttention(**SIZES, dropout=0.5))
    layer.forward = getattr(layer, order)
    inputs = torch.randn(1, 20, 6), torch.randn(1, 4, 5), torch.ones(1, 4, dtype=torch.bool)
    assert all(torch.equal(a, b) for a, b in zip(layer.eval()(*inputs), layer(*inputs), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(layer.train()(*inputs), layer(*inputs), strict=True))


@pytest.mark.parametrize(("tokens", "expected"), [(1, "reassociated"), (23, "reassociated"), (25, "dense")])
def test_auto_picks_the_cheaper_order(tokens, expected, monkeypatch):
    # Per position 3 × 12 channels × 2 heads × tokens multiplications, or 3 × 16 joint channels × (12 + tokens).
    layer, picked = CrossAttention(**{**SIZES, "image_width": 12}, dropout=0.0), []
    for order in ORDERS:
        monkeypatch.setattr(layer, order, lambda *_, order=order: picked.append(order))
    layer(torch.zeros(1, 3, 12), torch.zeros(1, tokens, 5), torch.ones(1, tokens, dtype=torch.bool))
    assert picked == [expected]


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@contextmanager
def saved_for_backward():
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        yield sizes


@pytest.mark.parametrize(("order", "small"), [("reassociated", True), ("dense", False)])
def test_nothing_of_positions_times_joint_width_exists_in_the_reassociated_order(order, small):
    batch, positions, tokens, joint_width = 2, 101, 5, 64
    layer = CrossAttention(image_width=16, text_width=12, joint_width=joint_width, heads=2, dropout=0.1)
    layer.forward = getattr(layer, order)
    image = torch.randn(batch, positions, 16, requires_grad=True)
    text = torch.randn(batch, tokens, 12, requires_grad=True)
    with saved_for_backward() as saved, LargestTensor() as largest:
        outputs = layer(image, text, torch.ones(batch, tokens, dtype=torch.bool))
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    assert (max(saved) < batch * positions * joint_width) == small
    assert (largest.numel < batch * positions * joint_width) == small


@pytest.mark.parametrize("order", ORDERS)
def test_scores_beyond_the_limit_are_tied(order):
    layer = CrossAttention(image_width=1, text_width=1, joint_width=1, heads=1, dropout=0.0)
    layer.forward = getattr(layer, order)
    with torch.no_grad():
        for projection in layer.children():
            projection.weight.fill_(1.0)
    image = torch.tensor([[[1000.0], [2000.0]]])
    text = torch.tensor([[[100.0], [200.0], [10.0]]])  # scores 1e5, 2e5, 1e4 and 2e5, 4e5, 2e4
    to_image, to_text = layer(image, text, torch.ones(1, 3, dtype=torch.bool))
    assert to_image.flatten().tolist() == [150, 150]  # two tokens at 50 000, the third far below
    assert to_text.flatten().tolist() == [1500, 1500, 2000]


def test_residuals_start_from_the_normalised_inputs():
    layer = FusionLayer(**SIZES, dropout=0.0, initial_scale=0.0)
    image, text = 5 + 3 * torch.randn(1, 4, 6), 5 + 3 * torch.randn(1, 3, 5)
    fused_image, fused_text = layer(image, text, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(fused_image, torch.nn.functional.layer_norm(image, (6,)))
    torch.testing.assert_close(fused_text, torch.nn.functional.layer_norm(text, (5,)))


def test_each_direction_is_added_with_its_own_scale():
    layer = randomised(FusionLayer(**SIZES, dropout=0.0, initial_scale=0.25))
    inputs = torch.randn(2, 4, 6), torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    image, text = layer.norm_image(inputs[0]), layer.norm_text(inputs[1])
    to_image, to_text = layer.attention(image, text, inputs[2])
    fused_image, fused_text = layer(*inputs)
    torch.testing.assert_close(fused_image, image + layer.scale_image * to_image)
    torch.testing.assert_close(fused_text, text + layer.scale_text * to_text)


def test_the_text_layer_equals_that_of_transformers():
    config = BertConfig(
        hidden_size=12, num_attention_heads=3, intermediate_size=20, num_hidden_layers=1, attn_implementation="eager"
    )
    theirs = randomised(BertLayer(config).double().eval())
    ours = TextLayer(12, heads=3, hidden_width=20, dropout=0.1).double().eval()
    names = {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "out": "attention.output.dense", "out_norm": "attention.output.LayerNorm",
        "hidden": "intermediate.dense", "hidden_out": "output.dense", "hidden_norm": "output.LayerNorm",
    }  # fmt: skip
    for own, name in names.items():
        getattr(ours, own).load_state_dict(theirs.get_submodule(name).state_dict())
    text, mask = torch.randn(2, 6, 12, dtype=torch.float64), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    additive = torch.where(mask, 0.0, float("-inf"))[:, None, None, :].double()
    with torch.no_grad():
        torch.testing.assert_close(ours(text, mask), theirs(text, additive), rtol=1e-9, atol=1e-10)


def test_the_text_layer_survives_scores_that_half_precision_would_not():
    layer = TextLayer(4, heads=1, hidden_width=8, dropout=0.0)
    with torch.no_grad():
        for projection in (layer.query, layer.key):
            torch.nn.init.eye_(projection.weight)
        layer.value.weight.copy_(torch.eye(4).roll(1, dims=0))  # the first channel goes into the second
        layer.out.weight.copy_(torch.eye(4))
    # Both scores of a token exceed the limit, so it attends to both equally.
    text = torch.tensor([[[1000.0, 0, 0, 0], [900.0, 0, 0, 0]]])
    with torch.no_grad():
        for bias in (layer.value.bias, layer.out.bias):
            bias.zero_()
        seen = layer.out_norm(text + torch.tensor([0, 950.0, 0, 0]))
        expected = layer.hidden_norm(seen + layer.hidden_out(torch.nn.functional.gelu(layer.hidden(seen))))
    torch.testing.assert_close(layer(text, torch.ones(1, 2, dtype=torch.bool)), expected)


def tower(blocks=2, deep_fusion=True, order="forward"):
    torch.manual_seed(0)

    def block():
        if not deep_fusion:
            return TowerBlock(DyHeadBlock(32), None, None)
        fusion = FusionLayer(image_width=32, text_width=12, joint_width=32, heads=2, dropout=0.1, initial_scale=0.5)
        fusion.attention.forward = getattr(fusion.attention, order)
        return TowerBlock(DyHeadBlock(32), fusion, TextLayer(12, heads=2, hidden_width=24, dropout=0.1))

    return FusionTower([block() for _ in range(blocks)]).eval()


def pyramid(batch=2):
    generator = torch.Generator().manual_seed(1)
    sides = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    levels = tuple(torch.randn(batch, 32, *side, generator=generator) for side in sides)
    return Pyramid.from_levels(levels, ((64, 96),) * batch)


def caption(batch=2, tokens=5):
    generator = torch.Generator().manual_seed(2)
    token_map = torch.zeros(batch, 2, tokens, dtype=torch.bool)
    token_map[:, 0, 1], token_map[:, 1, 2:4] = True, True
    features = torch.randn(batch, tokens, 12, generator=generator)
    return TextFeatures(features, torch.ones(batch, tokens, dtype=torch.bool), token_map)


@pytest.mark.parametrize("order", ORDERS)
def test_caption_padding_changes_nothing_for_real_tokens(order):
    network, head, text = tower(order=order), randomised(AlignmentHead(image_width=32, text_width=12)), caption()
    padding = 100 * torch.randn(2, 3, 12)  # whatever the text encoder left there
    padded = TextFeatures(
        torch.cat((text.features, padding), dim=1),
        torch.cat((text.mask, torch.zeros(2, 3, dtype=torch.bool)), dim=1),
        torch.cat((text.token_map, torch.zeros(2, 2, 3, dtype=torch.bool)), dim=2),
    )
    with torch.no_grad():
        trimmed, full = network(pyramid(), text), network(pyramid(), padded)
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(full.text.features[:, :5], trimmed.text.features, **close)
        torch.testing.assert_close(full.pyramid.cells, trimmed.pyramid.cells, **close)
        ours, theirs = head(trimmed), head(full)
    torch.testing.assert_close(theirs.token_logits[..., :5], ours.token_logits, **close)
    torch.testing.assert_close(theirs.box_deltas, ours.box_deltas, **close)
    assert torch.equal(theirs.token_mask, padded.mask)


def test_captions_of_different_length_in_one_batch_do_not_touch_each_other():
    network, text, images = tower(), caption(), pyramid()
    mask = text.mask.clone()
    mask[1, 4:] = False
    with torch.no_grad():
        together = network(images, TextFeatures(text.features, mask, text.token_map))
        short = TextFeatures(text.features[1:, :4], mask[1:, :4], text.token_map[1:, :, :4])
        alone = network(Pyramid(images.cells[1:], images.level_shapes_hw, images.image_sizes_hw[1:]), short)
    torch.testing.assert_close(together.text.features[1:, :4], alone.text.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.pyramid.cells[1:], alone.pyramid.cells, rtol=1e-4, atol=1e-4)


def test_a_block_fuses_then_each_modality_looks_at_itself():
    (block,), images, text = tower(blocks=1).blocks, pyramid(), caption()
    with torch.no_grad():
        found, words = block(images.cells, images.level_shapes_hw, text.features, text.mask)
        image, fused_words = block.fusion(images.cells, text.features, text.mask)
        torch.testing.assert_close(words, block.text_layer(fused_words, text.mask))
        torch.testing.assert_close(found, block.dyhead(image, images.level_shapes_hw))


def test_one_caption_for_a_batch_equals_one_per_picture():
    network, one = tower(), caption(batch=1)
    repeated = TextFeatures(*(x.repeat(2, 1, 1) for x in (one.features, one.mask[..., None], one.token_map)))
    repeated = TextFeatures(repeated.features, repeated.mask.squeeze(-1), repeated.token_map)
    with torch.no_grad():
        shared, own = network(pyramid(), one), network(pyramid(), repeated)
    assert torch.equal(shared.text.features, own.text.features)
    assert torch.equal(shared.pyramid.cells, own.pyramid.cells)


def test_the_tower_keeps_shapes_and_lets_both_modalities_learn_from_each_other():
    network, images, text = tower(), pyramid(), caption()
    other_words = TextFeatures(text.features.flip(0), text.mask, text.token_map)
    other_pictures = replace(images, cells=images.cells.flip(0))
    with torch.no_grad():
        fused = network(images, text)
        assert fused.pyramid.cells.shape == images.cells.shape
        assert replace(fused.pyramid, cells=images.cells) == images
        assert not torch.allclose(network(images, other_words).pyramid.cells, fused.pyramid.cells)
        assert not torch.allclose(network(other_pictures, text).text.features, fused.text.features)


def test_without_deep_fusion_the_text_passes_unchanged_and_unseen():
    network, images, text = tower(deep_fusion=False), pyramid(), caption()
    other_words = TextFeatures(text.features.flip(0), text.mask, text.token_map)
    with torch.no_grad():
        fused = network(images, text)
        assert torch.equal(fused.text.features, text.features)
        assert torch.equal(network(images, other_words).pyramid.cells, fused.pyramid.cells)


def test_the_received_structures_stay_as_they_were():
    network, images, text = tower(), pyramid(), caption()
    with torch.no_grad():
        network(images, text)
    assert torch.equal(images.cells, pyramid().cells)
    assert torch.equal(text.features, caption().features)
