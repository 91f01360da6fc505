"""DyHead, arXiv 2106.08322, as the supervised baseline of GLIP, arXiv 2112.03857, section 5.

It is GLIP without language: same image encoder, same DyHead blocks, boxes and losses, and a linear classifier.

Shape letters: B batch, A anchors over all levels, T tokens, one for each class, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from glip_adapt.trunks.backbones import build_backbone
from glip_adapt.trunks.dyhead.classes import NoText
from glip_adapt.trunks.dyhead.config import DyHeadConfig
from glip_adapt.trunks.glip.dyhead import DyHeadBlock
from glip_adapt.trunks.glip.fpn import FeaturePyramid, ImageEncoder
from glip_adapt.trunks.glip.head import PRIOR_LOGIT, AnchorHead
from glip_adapt.trunks.glip.network import BIASES, Glip
from glip_adapt.trunks.glip.tower import FusionTower, TowerBlock
from glip_adapt.trunks.protocol import Seams


class ClassHead(AnchorHead):
    """Score each anchor for each class by a row of a classifier."""

    prediction_layers = (*AnchorHead.prediction_layers, "classes.weight", "classes.bias")
    text_width = 1

    def add_scores(self, image_width: int, columns: int) -> None:
        """Add a classifier of ``columns`` rows. They start at zero, so that no class differs from another yet."""
        self.classes = nn.Linear(image_width, columns)
        nn.init.zeros_(self.classes.weight)
        nn.init.constant_(self.classes.bias, PRIOR_LOGIT)

    def score(self, image: Tensor, text: Tensor) -> Tensor:
        """Return (B, A, T) logits of positions (B, A, C) for the first T rows; ``text`` is (B, T, 1)."""
        rows = text.shape[1]
        return F.linear(image, self.classes.weight[:rows], self.classes.bias[:rows])


class DyHead(Glip):
    """The detector. Before it is trained it knows no class: all scores are below the threshold of a detection."""

    @property
    def seams(self) -> Seams:
        """The places that adapters use; there is no text, and nothing is fused."""
        return Seams(
            prediction_layers=tuple(f"head.{name}" for name in self.head.prediction_layers),
            text_encoder="text_encoder",
            word_embeddings="text_encoder",
            linear={"fusion": ()},
            biases=BIASES,
        )


def build_dyhead(config: DyHeadConfig, *, with_text: bool = True) -> DyHead:
    """Return a detector with random weights, in eval mode."""
    backbone, width = build_backbone(config.backbone), config.image_width
    fpn = FeaturePyramid(backbone.output_widths, width, drop_block=config.drop_block)
    return DyHead(
        image_encoder=ImageEncoder(backbone, fpn),
        text_encoder=NoText() if with_text else nn.Identity(),
        tower=FusionTower([TowerBlock(DyHeadBlock(width), None, None) for _ in range(config.blocks)]),
        head=ClassHead(image_width=width, columns=config.classes, anchor_scale=config.anchor_scale),
    ).eval()
