"""``GlipConfig`` and the released sizes: the only file with architecture numbers.

Sizes are those of configs/pretrain/*.yaml in the public GLIP code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from glip_adapt.trunks.encoder_config import BERT_BASE, SWIN_T, SwinConfig, TextConfig

ANCHOR_SCALE = 8  # side of an anchor over the stride of its level
# FREEZE_CONV_BODY_AT 2 of README.md of the public code (maskrcnn_benchmark/modeling/backbone/swint.py): the stem and
# the first stage of a Swin backbone, with the merging of patches after it; here that starts the next stage.
PUBLISHED_FROZEN = (
    "image_encoder.backbone.patch_embed",
    "image_encoder.backbone.stages.0",
    "image_encoder.backbone.stages.1.downsample",
)


@dataclass(frozen=True, kw_only=True)
class GlipConfig:
    """All sizes of one detector; the defaults are GLIP-T."""

    backbone: SwinConfig | str = SWIN_T
    "Swin, or the name of a timm model with feature strides 8, 16, 32"
    text: TextConfig = BERT_BASE
    "text encoder"
    image_width: int = 256
    "channels of the pyramid, the tower and the head"
    blocks: int = 6
    "tower blocks"
    deep_fusion: bool = True
    "cross attention and a text layer in every block; without, the head reads the text encoder's output"
    joint_width: int = 2048
    "channels of the cross attention"
    joint_heads: int = 8
    "heads of the cross attention"
    fusion_dropout: float = 0.1
    "of the cross attention while training"
    anchor_scale: int = ANCHOR_SCALE
    "side of an anchor over the stride of its level"
    drop_block: float = 0.3
    "rate at which patches are cut out of the pyramid while training"


GLIP_T = GlipConfig()
GLIP_T_A = replace(GLIP_T, deep_fusion=False)
GLIP_L = GlipConfig(
    backbone=SwinConfig(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12, drop_path=0.4), blocks=8
)
GLIP_NANO = GlipConfig(
    backbone="edgenext_xx_small",
    text=TextConfig(
        vocabulary_size=950, width=128, layers=2, heads=4, hidden_width=512, dropout=0.0, separators=(2, 3, 5)
    ),
    image_width=96,
    blocks=2,
    joint_width=128,
    joint_heads=4,
    fusion_dropout=0.0,
    anchor_scale=4,
    drop_block=0.0,
)
GLIP_NANO_A = replace(GLIP_NANO, deep_fusion=False)
