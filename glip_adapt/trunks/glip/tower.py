"""The tower of GLIP: cross attention between image and text in each block, and layers within each modality.

GLIP, arXiv 2112.03857, section 3.2; behaviour follows ``VLDyHead`` in maskrcnn_benchmark/modeling/rpn/vldyhead.py.

Shape letters: B batch, N image positions over all levels, T tokens, C visual channels, D text channels, E joint
channels, k heads, d = E / k.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glip_adapt.core.structures import Fused, Pyramid, SizeHW, TextFeatures
from glip_adapt.trunks.cross_attention import SCORE_LIMIT, FusionLayer, merge_heads
from glip_adapt.trunks.glip.dyhead import DyHeadBlock


class TextLayer(nn.Module):
    """One BERT encoder layer (arXiv 1810.04805) with clamped attention scores.

    Written out because transformers' own layer has no clamp (maskrcnn_benchmark/modeling/rpn/modeling_bert.py).
    """

    def __init__(self, width: int, *, heads: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.out_norm = nn.LayerNorm(width, eps=1e-12)
        self.hidden = nn.Linear(width, hidden_width)
        self.hidden_out = nn.Linear(hidden_width, width)
        self.hidden_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return (B, T, D) for (B, T, D) tokens, of which only those in ``text_mask`` (B, T) are attended to."""
        query, key, value = (
            projection(text).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )  # (B, k, T, d)
        scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).clamp(-SCORE_LIMIT, SCORE_LIMIT)
        attention = self.dropout(scores.masked_fill(~text_mask[:, None, None, :], float("-inf")).softmax(-1))
        text = self.out_norm(text + self.dropout(self.out(merge_heads(attention @ value))))
        return self.hidden_norm(text + self.dropout(self.hidden_out(F.gelu(self.hidden(text)))))


class TowerBlock(nn.Module):
    """One block of the tower: cross attention between the modalities, then layers within each.

    Without deep fusion (GLIP (A)) ``fusion`` and ``text_layer`` are absent and text passes unchanged.
    """

    def __init__(self, dyhead: DyHeadBlock, fusion: FusionLayer | None, text_layer: TextLayer | None) -> None:
        super().__init__()
        self.fusion = fusion
        self.text_layer = text_layer
        self.dyhead = dyhead

    def forward(
        self, image: Tensor, level_shapes_hw: tuple[SizeHW, ...], text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next image (B, N, C) and text (B, T, D)."""
        if self.fusion is not None and self.text_layer is not None:
            image, text = self.fusion(image, text, text_mask)
            text = self.text_layer(text, text_mask)
        return self.dyhead(image, level_shapes_hw), text


class FusionTower(nn.Module):
    """All blocks, one after the other."""

    def __init__(self, blocks: list[TowerBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False

    def forward(self, pyramid: Pyramid, text: TextFeatures) -> Fused:
        """Return both modalities after all blocks; one caption for the whole batch is repeated per image."""
        image, batch = pyramid.cells, len(pyramid.image_sizes_hw)
        features, mask = text.features.expand(batch, -1, -1), text.mask.expand(batch, -1)
        for block in self.blocks:
            inputs = (image, pyramid.level_shapes_hw, features, mask)
            image, features = checkpoint(block, *inputs, use_reentrant=False) if self.recompute else block(*inputs)
        return Fused(replace(pyramid, cells=image), TextFeatures(features, mask, text.token_map))
