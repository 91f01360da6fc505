"""Translate names of tensors of checkpoints on the Hub (transformers, ``GroundingDinoForObjectDetection``) to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Public pattern → ours, one after the other. Files of any release of transformers are read: since 5.20 the backbone
# of a network in memory has other names than those on the Hub.
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^model\.(?=decoder\.(bbox|class)_embed\.)", "copied."),  # of the layers that stand outside of the model
        (r"^model\.backbone\.conv_encoder\.model\.(swin\.)?", "image_encoder.backbone."),
        (r"^(image_encoder\.backbone)\.embeddings\.patch_embeddings\.projection", r"\1.patch_embed.proj"),
        (r"^(image_encoder\.backbone)\.embeddings\.norm", r"\1.patch_embed.norm"),
        (r"^(image_encoder\.backbone)\.encoder\.layers", r"\1.stages"),
        (r"(blocks\.\d+)\.layernorm_before", r"\1.norm1"),
        (r"(blocks\.\d+)\.layernorm_after", r"\1.norm2"),
        (r"(blocks\.\d+)\.attention\.(self\.query|q_proj)", r"\1.attn.query"),
        (r"(blocks\.\d+)\.attention\.(self\.key|k_proj)", r"\1.attn.key"),
        (r"(blocks\.\d+)\.attention\.(self\.value|v_proj)", r"\1.attn.value"),
        (r"(blocks\.\d+)\.attention\.(output\.dense|o_proj)", r"\1.attn.proj"),
        (r"(blocks\.\d+)\.attention\.(self|relative_position_bias)\.relative", r"\1.attn.relative"),
        (r"(blocks\.\d+)\.(intermediate\.dense|mlp\.fc1)", r"\1.mlp.fc1"),
        (r"(blocks\.\d+)\.(output\.dense|mlp\.fc2)", r"\1.mlp.fc2"),
        (r"^model\.input_proj_vision", "image_encoder.projections"),
        (r"^model\.text_backbone", "text_encoder.bert"),
        (r"^model\.text_projection", "text_encoder.projection"),
        (r"^model\.level_embed", "encoder.levels"),
        (r"^model\.encoder\.layers", "encoder.layers"),
        (r"\.fusion_layer\.vision_param", ".fusion.scale_image"),
        (r"\.fusion_layer\.text_param", ".fusion.scale_text"),
        (r"\.fusion_layer\.layer_norm_vision", ".fusion.norm_image"),
        (r"\.fusion_layer\.layer_norm_text", ".fusion.norm_text"),
        (r"\.fusion_layer\.attn\.vision_proj", ".fusion.attention.query_image"),
        (r"\.fusion_layer\.attn\.text_proj", ".fusion.attention.key_text"),
        (r"\.fusion_layer\.attn\.values_vision_proj", ".fusion.attention.value_image"),
        (r"\.fusion_layer\.attn\.values_text_proj", ".fusion.attention.value_text"),
        (r"\.fusion_layer\.attn\.out_vision_proj", ".fusion.attention.out_image"),
        (r"\.fusion_layer\.attn\.out_text_proj", ".fusion.attention.out_text"),
        (r"\.text_enhancer_layer\.self_attn", ".text.attention"),
        (r"\.text_enhancer_layer\.layer_norm_before", ".text.norm"),
        (r"\.text_enhancer_layer\.layer_norm_after", ".text.feed_forward.norm"),
        (r"\.text_enhancer_layer\.fc", ".text.fc"),
        (r"\.deformable_layer\.self_attn_layer_norm", ".image.norm"),
        (r"\.deformable_layer\.self_attn", ".image.attention"),
        (r"\.deformable_layer\.final_layer_norm", ".image.feed_forward.norm"),
        (r"\.deformable_layer\.fc", ".image.fc"),
        (r"^model\.decoder\.layer_norm", "decoder.norm"),
        (r"^model\.decoder\.reference_points_head\.layers\.0", "decoder.position.0"),
        (r"^model\.decoder\.reference_points_head\.layers\.1", "decoder.position.2"),
        (r"^model\.decoder", "decoder"),
        (r"\.self_attn_layer_norm", ".among_norm"),
        (r"\.self_attn", ".among"),
        (r"\.encoder_attn_text_layer_norm", ".text_norm"),
        (r"\.encoder_attn_text", ".text"),
        (r"\.encoder_attn_layer_norm", ".image_norm"),
        (r"\.encoder_attn", ".image"),
        (r"\.final_layer_norm", ".feed_forward.norm"),
        (r"\.out_proj", ".out"),
        (r"\.output_proj", ".out"),
        (r"\.value_proj", ".value"),
        (r"\.attention_weights", ".weights"),
        (r"\.sampling_offsets", ".offsets"),
        (r"^((encoder|decoder)\.layers.*)\.fc1", r"\1.feed_forward.hidden"),
        (r"^((encoder|decoder)\.layers.*)\.fc2", r"\1.feed_forward.out"),
        (r"^model\.enc_output_norm", "decoder.proposal.1"),
        (r"^model\.enc_output", "decoder.proposal.0"),
        (r"^model\.encoder_output_class_embed", "decoder.proposal_scores"),
        (r"^model\.encoder_output_bbox_embed", "decoder.proposal_boxes"),
        (r"^model\.query_position_embeddings\.weight", "decoder.queries"),
        (r"^(copied\.decoder\.)?class_embed", r"\1scores"),
        (r"^(copied\.decoder\.)?bbox_embed", r"\1boxes"),
        (r"^(scores|boxes)", r"decoder.\1"),
        (r"(boxes.*)\.layers\.0", r"\1.0"),
        (r"(boxes.*)\.layers\.1", r"\1.2"),
        (r"(boxes.*)\.layers\.2", r"\1.4"),
    )
)
_PUBLIC = ("model.", "bbox_embed.", "class_embed.")  # what public names begin with, and ours do not
_NORMS = re.compile(r"^image_encoder\.backbone\.hidden_states_norms\.stage(\d+)")
_MERGING = re.compile(r"^(image_encoder\.backbone\.stages)\.(\d+)\.downsample")
# Entries that the network does not need.
_IGNORED = re.compile(
    r"(relative_position_index|position_ids|token_type_ids)$"  # derived from sizes
    r"|^image_encoder\.backbone\.layernorm\.|pooler\."  # of parts that are not used
    r"|^copied\."  # the same as those outside of the model
    r"|^decoder\.(boxes|scores)\.\d+\."  # where all layers share one
)


def is_ignored(name: str) -> bool:
    """Return whether the network does not need an entry, by the name that ``in_our_names`` gives it."""
    return _IGNORED.search(name) is not None


def in_our_names(entries: Mapping[str, Tensor], outputs: int) -> dict[str, Tensor]:
    """Return the entries of a file under our names; names that are not public stay.

    Args:
        entries: by their names in the file.
        outputs: maps of the backbone, of which the last one is of its fourth stage.
    """
    found = {_renamed(name, outputs) if name.startswith(_PUBLIC) else name: value for name, value in entries.items()}
    for name in [name for name in found if ".attn.query." in name]:
        parts = [found.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        if all(isinstance(part, Tensor) for part in parts):
            found[name.replace("query", "qkv")] = torch.cat([part for part in parts if part is not None])
    return _with_copies(found)


def _renamed(name: str, outputs: int) -> str:
    for pattern, ours in _RENAMES:
        name = pattern.sub(ours, name)
    # Ours merges patches at the start of a stage, theirs at the end of the one before.
    name = _MERGING.sub(lambda m: f"{m[1]}.{int(m[2]) + 1}.downsample", name)
    return _NORMS.sub(lambda m: f"image_encoder.backbone.output_norms.{int(m[1]) - 5 + outputs}", name)


def _with_copies(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries with those that a file keeps once: the heads of all decoder layers may be one."""
    layers = {int(match[1]) for name in found if (match := re.match(r"decoder\.layers\.(\d+)\.", name))}
    for name in [name for name in found if re.match(r"(copied\.)?decoder\.(boxes|scores)\.0\.", name)]:
        for layer in layers:
            ours = re.sub(r"^(?:copied\.)?(decoder\.\w+)\.0\.", rf"\1.{layer}.", name)
            copied = f"copied.{ours}"
            found.setdefault(ours, found.get(copied, found[name]))
    return found
