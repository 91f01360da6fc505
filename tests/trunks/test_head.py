import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.structures import Fused, Pyramid, TextFeatures
from glip_adapt.trunks.glip.anchors import anchor_grid
from glip_adapt.trunks.glip.config import GLIP_T, GLIP_T_A
from glip_adapt.trunks.glip.head import AlignmentHead

SHAPES_HW = ((4, 6), (2, 3), (1, 2), (1, 1), (1, 1))


def head():
    torch.manual_seed(0)
    layer = AlignmentHead(image_width=6, text_width=5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def fused(batch=2, tokens=4, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    levels = tuple(scale * torch.randn(batch, 6, *shape, generator=generator) for shape in SHAPES_HW)
    features = torch.randn(batch, tokens, 5, generator=generator)
    text = TextFeatures(features, torch.ones(batch, tokens, dtype=torch.bool), torch.zeros(batch, 2, tokens).bool())
    return Fused(Pyramid.from_levels(levels, ((30, 47),) * batch), text)


@given(batch=st.integers(1, 3), tokens=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_every_anchor_gets_a_box_a_centerness_and_a_logit_per_token(batch, tokens):
    inputs = fused(batch, tokens)
    output = head()(inputs)
    anchors = sum(h * w for h, w in SHAPES_HW)
    assert output.token_logits.shape == (batch, anchors, tokens)
    assert output.box_deltas.shape == (batch, anchors, 4)
    assert output.centerness.shape == (batch, anchors)
    assert output.level_shapes_hw == SHAPES_HW
    assert torch.equal(output.anchors_xyxy, anchor_grid(SHAPES_HW))
    assert output.image_sizes_hw == inputs.pyramid.image_sizes_hw
    assert output.token_mask is inputs.text.mask
    assert output.token_map is inputs.text.token_map


def test_the_logits_are_those_of_the_formula():
    layer, inputs = head(), fused()
    image = inputs.pyramid.cells
    e = inputs.text.features / inputs.text.features.norm(dim=-1, keepdim=True)
    projected = e / 2 @ layer.text_projection.weight.T + layer.text_projection.bias
    bias = (e @ layer.bias_lang + layer.bias0)[:, None]
    expected = torch.einsum("bac,btc->bat", image, projected) / layer.log_scale.exp() + bias
    torch.testing.assert_close(layer(inputs).token_logits, expected)


def test_only_the_direction_of_a_token_counts():
    layer, inputs = head(), fused()
    longer = TextFeatures(7 * inputs.text.features, inputs.text.mask, inputs.text.token_map)
    found = layer(Fused(inputs.pyramid, longer)).token_logits
    torch.testing.assert_close(found, layer(inputs).token_logits, rtol=1e-4, atol=1e-5)


def test_logits_are_clamped():
    logits = head()(fused(scale=1e7)).token_logits
    assert logits.abs().max() == 50_000


def test_anchors_run_row_by_row_and_each_level_has_its_own_box_scale():
    layer, inputs = head(), fused(batch=1)
    output, start = layer(inputs), 0
    for level, scale, (h, w) in zip(inputs.pyramid.levels, layer.level_scales, SHAPES_HW, strict=True):
        deltas, centerness = layer.box_deltas(level) * scale, layer.centerness(level)
        for i in range(h * w):
            y, x = divmod(i, w)
            torch.testing.assert_close(output.box_deltas[0, start + i], deltas[0, :, y, x])
            torch.testing.assert_close(output.centerness[0, start + i], centerness[0, 0, y, x])
        start += h * w


def test_one_caption_serves_the_whole_batch():
    layer, inputs = head(), fused()
    one = TextFeatures(inputs.text.features[:1], inputs.text.mask[:1], inputs.text.token_map[:1])
    shared = layer(Fused(inputs.pyramid, one)).token_logits
    own = layer(inputs).token_logits
    torch.testing.assert_close(shared[0], own[0])
    assert not torch.allclose(shared[1], own[1])


def test_a_fresh_head_starts_at_the_prior():
    layer = AlignmentHead(image_width=6, text_width=5)
    blank = Fused(Pyramid(torch.zeros(1, 34, 6), SHAPES_HW, ((30, 47),)), fused(1).text)
    torch.testing.assert_close(layer(blank).token_logits.sigmoid(), torch.full((1, 34, 4), 0.01))


@pytest.mark.parametrize("config", [GLIP_T, GLIP_T_A], ids=["deep", "a"])
def test_the_prediction_layers_are_the_198919_numbers_of_the_public_linear_probe(config):
    with torch.device("meta"):
        layer = AlignmentHead(image_width=config.image_width, text_width=config.text.width)
    owned = dict(layer.named_parameters())
    assert sum(owned[name].numel() for name in layer.prediction_layers) == 198_919
    assert set(owned) - set(layer.prediction_layers) == {f"level_scales.{i}" for i in range(5)}
