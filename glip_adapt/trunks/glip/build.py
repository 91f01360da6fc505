"""``GlipConfig`` and the released sizes: the only file with architecture numbers.

Sizes are those of configs/pretrain/*.yaml in the public GLIP code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from glip_adapt.trunks.glip.anchors import ANCHOR_SCALE
from glip_adapt.trunks.glip.dyhead import DyHeadBlock
from glip_adapt.trunks.glip.fpn import FeaturePyramid, ImageEncoder, TimmBackbone
from glip_adapt.trunks.glip.fusion import FusionLayer, FusionTower, TextLayer, TowerBlock
from glip_adapt.trunks.glip.head import AlignmentHead
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.glip.swin import SwinBackbone
from glip_adapt.trunks.glip.text import TextEncoder


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Swin Transformer backbone."""

    width: int = 96
    "channels of the first stage"
    depths: tuple[int, ...] = (2, 2, 6, 2)
    "blocks per stage"
    heads: tuple[int, ...] = (3, 6, 12, 24)
    "attention heads per stage"
    window: int = 7
    "side of an attention window, cells"
    drop_path: float = 0.2
    "stochastic depth of the last block while training"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """BERT text encoder; its layer sizes are also those of the tower's text layers."""

    vocabulary_size: int = 30_522
    "WordPiece entries"
    width: int = 768
    "channels"
    layers: int = 12
    "encoder layers"
    heads: int = 12
    "attention heads"
    hidden_width: int = 3072
    "channels of the feed-forward layer"
    dropout: float = 0.1
    "in the tower's text layers while training"
    separators: tuple[int, ...] = ()
    "WordPiece ids between which a phrase is read by itself; without, the whole caption is read as one"


@dataclass(frozen=True, kw_only=True)
class GlipConfig:
    """All sizes of one detector; the defaults are GLIP-T."""

    backbone: SwinConfig | str = SwinConfig()
    "Swin, or the name of a timm model with feature strides 8, 16, 32"
    text: TextConfig = TextConfig()
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


def build_glip(config: GlipConfig, *, text_encoder: nn.Module | None = None) -> Glip:
    """Return a detector with random weights, in eval mode; ``text_encoder`` may take the place of the config's."""
    if isinstance(config.backbone, SwinConfig):
        backbone: SwinBackbone | TimmBackbone = SwinBackbone(**vars(config.backbone))
    else:
        backbone = TimmBackbone(config.backbone)
    text = config.text
    encoder_sizes = {name: size for name, size in vars(text).items() if name != "dropout"}  # that is the tower's
    glip = Glip(
        image_encoder=ImageEncoder(
            backbone, FeaturePyramid(backbone.output_widths, config.image_width, drop_block=config.drop_block)
        ),
        text_encoder=text_encoder or TextEncoder(**encoder_sizes),
        tower=FusionTower([_build_block(config) for _ in range(config.blocks)]),
        head=AlignmentHead(image_width=config.image_width, text_width=text.width, anchor_scale=config.anchor_scale),
    )
    return glip.eval()


def _build_block(config: GlipConfig) -> TowerBlock:
    dyhead = DyHeadBlock(config.image_width)
    if not config.deep_fusion:
        return TowerBlock(dyhead, None, None)
    text = config.text
    return TowerBlock(
        dyhead,
        FusionLayer(
            image_width=config.image_width,
            text_width=text.width,
            joint_width=config.joint_width,
            heads=config.joint_heads,
            dropout=config.fusion_dropout,
            initial_scale=1 / config.blocks,
        ),
        TextLayer(text.width, heads=text.heads, hidden_width=text.hidden_width, dropout=text.dropout),
    )
