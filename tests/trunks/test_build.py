import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from glip_adapt.adapters.full import Full
from glip_adapt.trunks.backbones import TimmBackbone
from glip_adapt.trunks.cross_attention import CrossAttention
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_L, GLIP_NANO, GLIP_T, GLIP_T_A, GlipConfig, SwinConfig, TextConfig
from glip_adapt.trunks.glip.fpn import DropBlock
from glip_adapt.trunks.glip.names import public_name, public_names
from glip_adapt.trunks.released import trunk_spec
from glip_adapt.trunks.swin import SwinBackbone

PARITY = Path(__file__).resolve().parents[1] / "parity"
SMALL = GlipConfig(
    backbone=SwinConfig(width=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
    text=TextConfig(vocabulary_size=20, width=16, layers=1, heads=2, hidden_width=32),
    image_width=32,
    blocks=3,
    joint_width=32,
    joint_heads=2,
)


def build_shapes(config):
    """The detector without memory for its weights."""
    with torch.device("meta"):
        return build_glip(config)


@pytest.mark.parametrize(
    ("config", "variant"), [(GLIP_T, "glip_tiny"), (GLIP_T_A, "glip_a_tiny"), (GLIP_L, "glip_large")]
)
def test_names_and_shapes_are_those_of_the_public_files(config, variant):
    table = public_names(config)
    found = {public_name(key, table): list(x.shape) for key, x in build_shapes(config).state_dict().items()}
    public = json.loads((PARITY / f"{variant}.state_dict.json").read_text())
    unused = ("relative_position_index", "cell_anchors", "cls_logits")
    assert found == {key: shape for key, (shape, _) in public.items() if not any(part in key for part in unused)}


@pytest.mark.parametrize(
    ("config", "variant", "parameters", "tensors"),
    [(GLIP_T, "glip_tiny", 231_759_662, 726), (GLIP_T_A, "glip_a_tiny", 151_409_966, 522)],
)
def test_parameter_counts_are_those_of_the_public_models(config, variant, parameters, tensors):
    found = list(build_shapes(config).parameters())
    assert (sum(x.numel() for x in found), len(found)) == (parameters, tensors)
    public = json.loads((PARITY / "tuning_modes.json").read_text())[variant]["full"]
    assert (public["num_parameters"], public["num_tensors"]) == (parameters, tensors)


def test_full_freezes_by_default_what_the_public_recipe_does():
    """FREEZE_CONV_BODY_AT 2: stem and first stage, with the merging of patches that belongs to it there."""
    public = json.loads((PARITY / "glip_tiny.state_dict.json").read_text())
    prefixes = ("backbone.body.patch_embed.", "backbone.body.layers.0.")
    derived = ("relative_position_index",)
    expected = {name for name in public if name.startswith(prefixes) and not name.endswith(derived)}
    glip, table = build_shapes(GLIP_T), public_names(GLIP_T)
    frozen = set(glip.state_dict()) - set(Full(**trunk_spec("glip-t").settings.get("full", {})).owned(glip))
    assert {public_name(key, table) for key in frozen} == expected
    assert any("downsample" in name for name in expected)
    assert trunk_spec("glip-nano").settings.get("full", {}) == trunk_spec("glip-t").settings.get("prompt", {}) == {}


def test_the_config_reaches_the_parts_that_it_names():
    glip = build_glip(SMALL)
    assert isinstance(glip.image_encoder.backbone, SwinBackbone)
    assert glip.image_encoder.backbone.stages[0].window == 4
    assert len(glip.tower.blocks) == 3
    attentions = [module for module in glip.modules() if isinstance(module, CrossAttention)]
    assert [(a.heads, a.dropout, a.query_image.out_features) for a in attentions] == [(2, 0.1, 32)] * 3
    assert [module.rate for module in glip.modules() if isinstance(module, DropBlock)] == [0.3]
    assert glip.tower.blocks[0].text_layer.dropout.p == 0.1
    torch.testing.assert_close(glip.tower.blocks[0].fusion.scale_image, torch.full((32,), 1 / 3))


def test_without_deep_fusion_a_block_is_image_only():
    glip = build_glip(replace(SMALL, deep_fusion=False))
    assert all(block.fusion is None and block.text_layer is None for block in glip.tower.blocks)
    assert not [key for key in glip.state_dict() if "fusion" in key or "text_layer" in key]


def test_a_string_names_a_timm_backbone():
    glip = build_glip(replace(SMALL, backbone="test_convnext"))
    assert isinstance(glip.image_encoder.backbone, TimmBackbone)
    assert [conv.in_channels for conv in glip.image_encoder.fpn.lateral] == [32, 48, 64]


def test_the_released_sizes_are_those_of_the_paper():
    assert replace(GLIP_T, deep_fusion=False) == GLIP_T_A
    assert GLIP_T.backbone == SwinConfig()
    assert (GLIP_L.backbone.width, GLIP_L.backbone.window, GLIP_L.blocks) == (192, 12, 8)
    assert GLIP_NANO.deep_fusion


def test_a_detector_is_built_in_eval_mode_and_repeats_for_a_seed():
    torch.manual_seed(3)
    first = build_glip(SMALL)
    torch.manual_seed(3)
    second = build_glip(SMALL)
    assert not any(module.training for module in first.modules())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_nothing_is_shared_between_two_detectors():
    first, second = build_glip(SMALL), build_glip(SMALL)
    places = {x.data_ptr() for x in first.parameters()}
    assert not [x for x in second.parameters() if x.data_ptr() in places]
    assert isinstance(first.text_prompt, nn.Identity)
