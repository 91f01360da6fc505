"""Attention in both directions between all image positions and the caption, with one score matrix.

GLIP, arXiv 2112.03857, section 3.2; behaviour follows ``BiMultiHeadAttention`` and ``BiAttentionBlock`` in
maskrcnn_benchmark/utils/fuse_helper.py. Grounding DINO (arXiv 2303.05499) took it over.

Shape letters: B batch, N image positions over all levels, T tokens, C visual channels, D text channels, E joint
channels, k heads, d = E / k.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import may_hold_false
from glip_adapt.trunks.linear import matrix

SCORE_LIMIT = 50_000.0  # the public code clamps scores against overflow in half precision


class CrossAttention(nn.Module):
    """Attention from image to text and from text to image, with one score matrix."""

    def __init__(self, *, image_width: int, text_width: int, joint_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_image = nn.Linear(image_width, joint_width)
        self.key_text = nn.Linear(text_width, joint_width)
        self.value_image = nn.Linear(image_width, joint_width)
        self.value_text = nn.Linear(text_width, joint_width)
        self.out_image = nn.Linear(joint_width, image_width)
        self.out_text = nn.Linear(joint_width, text_width)
        for name, parameter in self.named_parameters():
            (nn.init.zeros_ if name.endswith(".bias") else nn.init.xavier_uniform_)(parameter)

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the updates of image (B, N, C) and text (B, T, D), by the order with fewer multiplications.

        Args:
            image: (B, N, C).
            text: (B, T, D).
            text_mask: (B, T) bool, True for real tokens.
            image_mask: (B, N) bool, True for positions that text reads; None if it reads all, padding too.
        """
        tokens, width, joint_width = text.shape[1], image.shape[2], self.query_image.out_features
        # Multiplications per position, in units of three: scores, to image, to text. The public sizes favour the first.
        if width * self.heads * tokens <= joint_width * (width + tokens):
            return self.reassociated(image, text, text_mask, image_mask)
        return self.dense(image, text, text_mask, image_mask)

    def dense(
        self, image: Tensor, text: Tensor, text_mask: Tensor, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Project every image position to E channels, as the public code does; arguments as for ``forward``."""
        query = self._split_heads(self.query_image(image)) * self._scale
        key = self._split_heads(self.key_text(text))
        over_tokens, over_positions = self._probabilities(  # a name for the scores would keep their memory
            (query @ key.transpose(-1, -2)).transpose(1, 2), text_mask, image_mask
        )
        to_image = over_tokens.transpose(1, 2) @ self._split_heads(self.value_text(text))  # (B, k, N, d)
        to_text = over_positions.permute(0, 2, 3, 1) @ self._split_heads(self.value_image(image))  # (B, k, T, d)
        return self.out_image(merge_heads(to_image)), self.out_text(merge_heads(to_text))

    def reassociated(
        self, image: Tensor, text: Tensor, text_mask: Tensor, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Multiply the factors of size T first, without tensors of size N × E; arguments as for ``forward``."""
        batch, tokens = text.shape[:2]
        heads = (self.heads, -1)  # the joint channels of a weight, head by head

        # (v Wq + bq) Kᵀ = v (Wq Kᵀ) + bq Kᵀ
        key = self._split_heads(self.key_text(text)) * self._scale  # (B, k, T, d)
        weight, bias = matrix(self.query_image)
        score_weight = key @ weight.unflatten(0, heads)  # (B, k, T, C)
        score_bias = (key @ bias.view(self.heads, -1, 1)).view(batch, 1, -1)  # (B, 1, k·T)
        scores = torch.baddbmm(score_bias, image, score_weight.flatten(1, 2).transpose(1, 2))  # (B, N, k·T)
        scores = scores.unflatten(-1, (self.heads, tokens))
        over_tokens, over_positions = self._probabilities(scores, text_mask, image_mask)

        # A (L Wo): the value of each token goes through the output matrix before it meets the positions.
        value = self._split_heads(self.value_text(text))  # (B, k, T, d)
        weight, bias = matrix(self.out_image)
        value = value @ weight.unflatten(1, heads).permute(1, 2, 0)  # (B, k, T, C)
        to_image = torch.baddbmm(bias, over_tokens.flatten(2), value.flatten(1, 2))

        # (A' v) Wv + (Σ A') bv: raw features are pooled before they are projected. The sum is one but for dropout.
        over_positions = over_positions.flatten(2).transpose(1, 2)  # (B, k·T, N)
        pooled = (over_positions @ image).unflatten(1, (self.heads, tokens))  # (B, k, T, C)
        weight, bias = matrix(self.value_image)
        to_text = pooled @ weight.unflatten(0, heads).transpose(1, 2)  # (B, k, T, d)
        total = over_positions.sum(-1).view(batch, self.heads, tokens, 1)
        to_text = to_text + total * bias.view(self.heads, 1, -1)
        return to_image, self.out_text(merge_heads(to_text))

    def _probabilities(self, scores: Tensor, text_mask: Tensor, image_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Softmax of (B, N, k, T) scores over tokens, and over positions, with dropout on both."""
        scores = full_precision(scores).clamp(-SCORE_LIMIT, SCORE_LIMIT)
        if image_mask is None:
            over_positions = scores.softmax(1)
        else:
            over_positions = scores.masked_fill(~image_mask[:, :, None, None], float("-inf")).softmax(1)
        if may_hold_false(text_mask):
            scores = scores.masked_fill(~text_mask[:, None, None, :], float("-inf"))
        over_tokens = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return over_tokens, F.dropout(over_positions, self.dropout, self.training)

    @property
    def _scale(self) -> float:
        return (self.query_image.out_features // self.heads) ** -0.5

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, n, E) → (B, k, n, d)


def merge_heads(x: Tensor) -> Tensor:
    """Return (B, n, E) for (B, k, n, d)."""
    return x.transpose(1, 2).flatten(2)


class FusionLayer(nn.Module):
    """Cross attention with residuals on the *normalised* inputs, each scaled by a learned vector."""

    def __init__(
        self,
        *,
        image_width: int,
        text_width: int,
        joint_width: int,
        heads: int,
        initial_scale: float,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """Build with random weights; ``drop_path`` is the share of images whose update is left out in training."""
        super().__init__()
        self.drop_path = drop_path
        self.norm_image = nn.LayerNorm(image_width)
        self.norm_text = nn.LayerNorm(text_width)
        self.attention = CrossAttention(
            image_width=image_width, text_width=text_width, joint_width=joint_width, heads=heads, dropout=dropout
        )
        self.scale_image = nn.Parameter(torch.full((image_width,), initial_scale))
        self.scale_text = nn.Parameter(torch.full((text_width,), initial_scale))

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return fused (B, N, C) and (B, T, D)."""
        image, text = self.norm_image(image), self.norm_text(text)
        updates = self.attention(image, text, text_mask, image_mask)
        to_image, to_text = (stochastic_depth(x, self.drop_path, "row", self.training) for x in updates)
        # Scales of another type than the features would send these through a slow kernel.
        scale_image, scale_text = self.scale_image.to(image), self.scale_text.to(text)
        return torch.addcmul(image, scale_image, to_image), torch.addcmul(text, scale_text, to_text)
