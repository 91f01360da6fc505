"""Build the network of a ``GlipConfig``."""

from __future__ import annotations

from torch import nn

from glip_adapt.trunks.backbones import build_backbone
from glip_adapt.trunks.cross_attention import FusionLayer
from glip_adapt.trunks.glip.config import GlipConfig
from glip_adapt.trunks.glip.dyhead import DyHeadBlock
from glip_adapt.trunks.glip.fpn import FeaturePyramid, ImageEncoder
from glip_adapt.trunks.glip.head import AlignmentHead
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.glip.text import TextEncoder
from glip_adapt.trunks.glip.tower import FusionTower, TextLayer, TowerBlock


def build_glip(config: GlipConfig, *, text_encoder: nn.Module | None = None) -> Glip:
    """Return a detector with random weights, in eval mode; ``text_encoder`` may take the place of the config's."""
    backbone = build_backbone(config.backbone)
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
