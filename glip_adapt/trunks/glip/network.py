"""The detector: four public stages in a row.

GLIP, arXiv 2112.03857, figure 2. Adapters replace or wrap the parts named here; Glip never asks whether one is present.
"""

from __future__ import annotations

from torch import nn

from glip_adapt.core.structures import Fused, HeadOutput, ImageBatch, Pyramid, TextFeatures, Tokens
from glip_adapt.trunks.glip.fpn import ImageEncoder
from glip_adapt.trunks.glip.fusion import FusionTower
from glip_adapt.trunks.glip.head import AlignmentHead
from glip_adapt.trunks.glip.swin import SwinBackbone


class Glip(nn.Module):
    """Grounded Language-Image Pre-training, the detector.

    Seams for adapters: ``text_prompt`` (features → features, identity here), ``text_encoder``,
    ``head.prediction_layers``, and every module by its exact name.
    """

    def __init__(
        self, *, image_encoder: ImageEncoder, text_encoder: nn.Module, tower: FusionTower, head: AlignmentHead
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.text_prompt: nn.Module = nn.Identity()
        self.tower = tower
        self.head = head

    def set_recompute(self, recompute: bool) -> None:
        """Choose whether Swin and tower blocks are computed again in the backward pass: slower, much less memory."""
        for module in self.modules():
            if isinstance(module, SwinBackbone | FusionTower):
                module.recompute = recompute

    def forward(self, images: ImageBatch, tokens: Tokens) -> HeadOutput:
        """Return raw predictions for B pictures and one caption, or one caption per picture."""
        pyramid = self.encode_image(images)
        text = self.encode_text(tokens)
        fused = self.fuse(pyramid, text)
        return self.predict(fused)

    def encode_image(self, images: ImageBatch) -> Pyramid:
        """Return five feature maps (B, C, h, w) of strides 8 … 128."""
        return self.image_encoder(images)

    def encode_text(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, D)."""
        return self.text_encoder(tokens)

    def fuse(self, pyramid: Pyramid, text: TextFeatures) -> Fused:
        """Return both modalities after the tower; a learned prompt enters here."""
        return self.tower(pyramid, self.text_prompt(text))

    def predict(self, fused: Fused) -> HeadOutput:
        """Return token logits, box deltas and centerness over all anchors."""
        return self.head(fused)
