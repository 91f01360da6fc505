"""Translate names of tensors between ours and the public checkpoints (microsoft/GLIP, maskrcnn_benchmark/modeling)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from glip_adapt.trunks.glip.anchors import STRIDES
from glip_adapt.trunks.glip.config import GlipConfig, SwinConfig

PROMPT_TABLE = "rpn.tunable_linear.weight"
"""Entry that public prompt tuning trains: a row per token position, zero in a file without a prompt."""

# Entries of public files that the network does not need; * stands for anything.
IGNORED = (
    PROMPT_TABLE,  # not part of the trunk
    "rpn.anchor_generator.cell_anchors.*",  # derived from strides and sizes
    "rpn.head.cls_logits.*",  # unused with the token loss
    "rpn.head.token_logits.*",
    "rpn.head.mlm_head.*",  # masked-language head of pre-training
    "rpn.head.contrastive_align_*",  # of the contrastive losses, which are off
    "rpn.head.resizer.*",
    "rpn.resizer.*",
    "rpn.loss_evaluator.shallow_contrastive_*",
    "*.b_attn.shrink_lang.*",
    "language_backbone.body.model.pooler.*",
    "language_backbone.*.position_ids",  # buffers of older transformers
    "language_backbone.*.token_type_ids",
    "*.relative_position_index",  # derived from the window size
    "*.attn_mask",
)
_WRAPPERS = re.compile(r"^(module\.)+")  # one for each wrapper for training on several GPUs

T = TypeVar("T")


def is_ignored(key: str) -> bool:
    """Return whether the network does not need an entry of a public file."""
    return any(fnmatchcase(key, pattern) for pattern in IGNORED)


# Our prefix → public prefix, for the modules that are named once.
SINGLE_KEYS = {
    "image_encoder.backbone.patch_embed": "backbone.body.patch_embed",
    "image_encoder.fpn.p6": "backbone.fpn.top_blocks.p6",
    "image_encoder.fpn.p7": "backbone.fpn.top_blocks.p7",
    "text_encoder.bert": "language_backbone.body.model",
    "head.box_deltas": "rpn.head.bbox_pred",
    "head.centerness": "rpn.head.centerness",
    "head.text_projection": "rpn.head.dot_product_projection_text",
    "head.log_scale": "rpn.head.log_scale",
    "head.bias_lang": "rpn.head.bias_lang",
    "head.bias0": "rpn.head.bias0",
}
# Within one tower block; the public tower is one flat list of fusion, text and image layers.
FUSION_KEYS = {
    "fusion.scale_image": "b_attn.gamma_v",
    "fusion.scale_text": "b_attn.gamma_l",
    "fusion.norm_image": "b_attn.layer_norm_v",
    "fusion.norm_text": "b_attn.layer_norm_l",
    "fusion.attention.query_image": "b_attn.attn.v_proj",
    "fusion.attention.key_text": "b_attn.attn.l_proj",
    "fusion.attention.value_image": "b_attn.attn.values_v_proj",
    "fusion.attention.value_text": "b_attn.attn.values_l_proj",
    "fusion.attention.out_image": "b_attn.attn.out_v_proj",
    "fusion.attention.out_text": "b_attn.attn.out_l_proj",
}
TEXT_LAYER_KEYS = {
    "text_layer.query": "attention.self.query",
    "text_layer.key": "attention.self.key",
    "text_layer.value": "attention.self.value",
    "text_layer.out": "attention.output.dense",
    "text_layer.out_norm": "attention.output.LayerNorm",
    "text_layer.hidden": "intermediate.dense",
    "text_layer.hidden_out": "output.dense",
    "text_layer.hidden_norm": "output.LayerNorm",
}
DYHEAD_KEYS = {
    "dyhead.offset": "offset",
    "dyhead.coarser.conv": "DyConv.0.conv",
    "dyhead.coarser.norm": "DyConv.0.bn",
    "dyhead.same.conv": "DyConv.1.conv",
    "dyhead.same.norm": "DyConv.1.bn",
    "dyhead.finer.conv": "DyConv.2.conv",
    "dyhead.finer.norm": "DyConv.2.bn",
    "dyhead.scale_attention": "AttnConv.1",
    "dyhead.activation.squeeze": "relu.fc.0",
    "dyhead.activation.excite": "relu.fc.2",
}


def public_names(config: GlipConfig) -> dict[str, str]:
    """Return our module prefix → public module prefix for a detector with a Swin backbone."""
    assert isinstance(config.backbone, SwinConfig)
    table = dict(SINGLE_KEYS)
    for i in range(len(config.backbone.depths)):
        table[f"image_encoder.backbone.stages.{i}.blocks"] = f"backbone.body.layers.{i}.blocks"
        # Ours merges patches at the start of a stage, the public code at the end of the one before.
        table[f"image_encoder.backbone.stages.{i}.downsample"] = f"backbone.body.layers.{i - 1}.downsample"
    for i in range(len(config.backbone.depths) - 1):
        table[f"image_encoder.backbone.output_norms.{i}"] = f"backbone.body.norm{i + 1}"
        table[f"image_encoder.fpn.lateral.{i}"] = f"backbone.fpn.fpn_inner{i + 2}"
        table[f"image_encoder.fpn.output.{i}"] = f"backbone.fpn.fpn_layer{i + 2}"
    layers = (FUSION_KEYS, TEXT_LAYER_KEYS, DYHEAD_KEYS) if config.deep_fusion else (DYHEAD_KEYS,)
    for i in range(config.blocks):
        for j, keys in enumerate(layers):
            for ours, public in keys.items():
                table[f"tower.blocks.{i}.{ours}"] = f"rpn.head.dyhead_tower.{i * len(layers) + j}.{public}"
    for i in range(len(STRIDES)):
        table[f"head.level_scales.{i}"] = f"rpn.head.scales.{i}.scale"
    return table


def our_names(ours: Iterable[str], config: GlipConfig) -> dict[str, str]:
    """Return public name → our name of the entries ``ours``; none for a detector that has no public form."""
    if not isinstance(config.backbone, SwinConfig):
        return {}
    table = public_names(config)
    return {public_name(key, table): key for key in ours}


def in_our_names(entries: Mapping[str, T], ours: Iterable[str], config: GlipConfig) -> dict[str, T]:
    """Return the entries of a file under our names where those are in ``ours``, else without ``module.`` in front."""
    known = our_names(ours, config)
    plain = ((_WRAPPERS.sub("", name), value) for name, value in entries.items())
    return {known.get(name, name): value for name, value in plain}


def public_name(key: str, table: Mapping[str, str]) -> str:
    """Return the public name of one of our state dict keys: its longest known prefix is replaced."""
    prefix, rest = key, ""
    while prefix not in table:
        prefix, dot, last = prefix.rpartition(".")
        assert dot, f"{key} is not in the key table"
        rest = f".{last}{rest}"
    return table[prefix] + rest
