"""Layers of Grounding DINO: text and image after each fusion, and queries that read both.

arXiv 2303.05499, sections 3.2 and 3.4, figure 3.

Shape letters: B batch, Q queries, A cells over all levels, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glip_adapt.core.structures import SizeHW
from glip_adapt.trunks.cross_attention import FusionLayer, merge_heads
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.dino.deformable import DeformableAttention
from glip_adapt.trunks.dino.geometry import Geometry
from glip_adapt.trunks.linear import Linear, linear, matrix

CPU_ROWS = 512  # of a frozen feed-forward layer at a time on a CPU


class Attention(nn.Module):
    """Attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, Q, C) for (B, Q, C), (B, T, C), (B, T, C); ``mask`` (B, Q or 1, T) bool is True where it reads."""
        queries, keys, values = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = None if mask is None else mask.unsqueeze(1)
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out(merge_heads(read))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, a residual, and LayerNorm."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = Linear(width, hidden_width)
        self.out = Linear(hidden_width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        weights = (*self.hidden.parameters(), *self.out.parameters())
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        if learns or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self.norm(x + self.dropout(self.out(F.relu(self.hidden(x)))))
        moved: Tensor = _FrozenLayers.apply(x.flatten(0, -2), self.hidden, self.out)
        return self.norm(x + self.dropout(moved.view_as(x)))


class _FrozenLayers(torch.autograd.Function):
    """Two frozen linear layers with a ReLU between them, some rows at a time: the widest tensor stays in the cache.

    For the backward pass it is enough to know where the ReLU let through.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, hidden: nn.Linear, out: nn.Linear) -> Tensor:
        """Return (R, C) for (R, C)."""
        ctx.layers = hidden, out
        parts, passed = [], []
        for part in rows.split(CPU_ROWS):
            wide = hidden(part).relu_()
            if ctx.needs_input_grad[0]:
                passed.append((wide > 0).view(torch.uint8))  # a product with bytes is faster than with bool
            parts.append(out(wide))
        ctx.save_for_backward(*passed)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the rows."""
        narrow, wide = (matrix(layer)[0].t().contiguous() for layer in ctx.layers)
        pairs = zip(grad.split(CPU_ROWS), ctx.saved_tensors, strict=True)
        parts = [linear(linear(pull, wide).mul_(passed), narrow) for pull, passed in pairs]
        return torch.cat(parts), None, None


class TextLayer(nn.Module):
    """Attention among the tokens of a phrase."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        dropout = config.text.dropout
        self.attention = Attention(config.width, config.heads // 2)
        self.norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden_width // 2, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, position: Tensor, together: Tensor) -> Tensor:
        """Return (B, T, C); ``together`` (B, T, T) bool tells which tokens see each other."""
        placed = text + position
        return self.feed_forward(self.norm(text + self.dropout(self.attention(placed, placed, text, together))))


class ImageLayer(nn.Module):
    """Deformable attention among the cells of all maps."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        sizes = {"heads": config.heads, "levels": len(config.strides), "points": config.points}
        self.attention = DeformableAttention(config.width, **sizes)
        self.norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden_width, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cells: Tensor, position: Tensor, level_shapes_hw: Sequence[SizeHW], where: Geometry) -> Tensor:
        """Return (B, A, C)."""
        places = where.centres.unsqueeze(2) * where.real_share.unsqueeze(1)  # in shares of the maps, (B, A, L, 2)
        read = self.attention(cells + position, places, cells, where.real, level_shapes_hw)
        return self.feed_forward(self.norm(cells + self.dropout(read)))


class EncoderLayer(nn.Module):
    """Fusion of image and text, then a layer within each."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.fusion = FusionLayer(
            image_width=config.width,
            text_width=config.width,
            joint_width=config.hidden_width // 2,
            heads=config.heads // 2,
            initial_scale=1e-4,
            drop_path=config.fusion_drop_path,
        )
        self.text = TextLayer(config)
        self.image = ImageLayer(config)

    def forward(
        self,
        cells: Tensor,
        text: Tensor,
        positions: tuple[Tensor, Tensor],
        masks: tuple[Tensor, Tensor],
        level_shapes_hw: Sequence[SizeHW],
        where: Geometry,
    ) -> tuple[Tensor, Tensor]:
        """Return the next cells (B, A, C) and text (B, T, C).

        Args:
            cells: (B, A, C).
            text: (B, T, C).
            positions: of cells (B, A, C) and of tokens (B, T, C).
            masks: (B, T) bool, real tokens, and (B, T, T) bool, tokens that see each other.
            level_shapes_hw: (h, w) of each map.
            where: the places of the cells.
        """
        cells, text = self.fusion(cells, text, masks[0], where.real)
        text = self.text(text, positions[1], masks[1])
        return self.image(cells, positions[0], level_shapes_hw, where), text


class DecoderLayer(nn.Module):
    """Queries read each other, then the text, then the image around their boxes."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        sizes = {"heads": config.heads, "levels": len(config.strides), "points": config.points}
        self.among = Attention(config.width, config.heads)
        self.among_norm = nn.LayerNorm(config.width)
        self.text = Attention(config.width, config.heads)
        self.text_norm = nn.LayerNorm(config.width)
        self.image = DeformableAttention(config.width, **sizes)
        self.image_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden_width, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        queries: Tensor,
        seen: Tensor | None,
        position: Tensor,
        places: Tensor,
        text: tuple[Tensor, Tensor],
        cells: Tensor,
        level_shapes_hw: Sequence[SizeHW],
        real: Tensor | None,
    ) -> Tensor:
        """Return the next queries (B, Q, C).

        Args:
            queries: (B, Q, C).
            seen: (B, Q, Q) bool, which queries see which; None if all see all.
            position: (B, Q, C), made of their boxes.
            places: (B, Q, L, 4), their boxes in shares of each map.
            text: features (B, T, C) and (B, 1, T) bool, real tokens.
            cells: (B, A, C).
            level_shapes_hw: (h, w) of each map.
            real: (B, A) bool, False for padding; None without padding.
        """
        placed = queries + position
        queries = self.among_norm(queries + self.dropout(self.among(placed, placed, queries, seen)))
        words, mask = text
        queries = self.text_norm(queries + self.dropout(self.text(queries + position, words, words, mask)))
        read = self.image(queries + position, places, cells, real, level_shapes_hw)
        return self.feed_forward(self.image_norm(queries + self.dropout(read)))


class Mlp(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        """Build the layers between ``widths``, of which the first is that of the input."""
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])
