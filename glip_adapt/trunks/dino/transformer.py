"""The two transformers of Grounding DINO: one fuses image and text, one moves queries over both.

arXiv 2303.05499, sections 3.2 to 3.4.

Shape letters: B batch, Q queries, A cells over all levels, L levels, T tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glip_adapt.core.structures import Pyramid, SizeHW, TextFeatures, may_hold_false
from glip_adapt.trunks.alignment import NoEvidence
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.dino.denoising import NoisyQueries
from glip_adapt.trunks.dino.geometry import Geometry, sines
from glip_adapt.trunks.dino.layers import DecoderLayer, EncoderLayer, Mlp
from glip_adapt.trunks.dino.output import QueryOutput
from glip_adapt.trunks.dino.text import places_in_phrase, seen_together

LOGIT_EPSILON = 1e-5  # shares of the image are this far from 0 and 1 before their logit
PRIOR_PROBABILITY = 0.01  # of a token at the start, where scores have a bias


class Scores(nn.Module):
    """Dot products of queries or cells with tokens."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.scale = config.width**-0.5 if config.scaled_scores else 1.0
        prior = torch.tensor(-math.log(1 / PRIOR_PROBABILITY - 1))
        self.bias = nn.Parameter(prior) if config.scaled_scores else None

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """Return (B, Q, T) logits of (B, Q, C) for tokens (B, T, C)."""
        logits = x @ words.transpose(-1, -2) * self.scale
        return logits if self.bias is None else logits + self.bias


class Encoder(nn.Module):
    """Layers in which image and text are fused."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.randn(len(config.strides), config.width))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.recompute = False

    def forward(self, pyramid: Pyramid, text: TextFeatures, where: Geometry) -> tuple[Tensor, Tensor]:
        """Return fused cells (B, A, C) and text (B, T, C)."""
        assert text.phrases is not None
        batch, shapes = len(pyramid.image_sizes_hw), pyramid.level_shapes_hw
        level = torch.cat([row.expand(h * w, -1) for row, (h, w) in zip(self.levels, shapes, strict=True)])
        cells, words = pyramid.cells, text.features.expand(batch, -1, -1)
        phrases = text.phrases.expand(batch, -1)
        places = places_in_phrase(phrases).unsqueeze(-1).to(words)
        positions = (where.position.to(cells) + level, sines(places, words.shape[-1]))
        masks = (text.mask.expand(batch, -1), seen_together(phrases))
        for layer in self.layers:
            inputs = (cells, words, positions, masks, shapes, where)
            cells, words = checkpoint(layer, *inputs, use_reentrant=False) if self.recompute else layer(*inputs)
        return cells, words


class Decoder(nn.Module):
    """Selection of the cells that are most like a token, and layers in which queries move their boxes."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.width
        self.proposal = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.proposal_scores = Scores(config)
        self.proposal_boxes = Mlp(width, width, width, 4)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.position = Mlp(2 * width, width, width)
        heads = 1 if config.shared_boxes else config.decoder_layers
        self.boxes = nn.ModuleList(Mlp(width, width, width, 4) for _ in range(heads))
        self.scores = nn.ModuleList(Scores(config) for _ in range(heads))
        self.evidence: nn.Module = NoEvidence(width)
        for mlp in (self.proposal_boxes, *self.boxes):
            nn.init.zeros_(mlp[-1].weight)
            nn.init.zeros_(mlp[-1].bias)
        self.recompute = False

    def select(self, likeness: Tensor) -> Tensor:
        """Return the Q cells (B, Q) of highest likeness (B, A) with a token, best first."""
        return likeness.topk(min(len(self.queries), likeness.shape[1])).indices

    def propose(self, cells: Tensor, text: TextFeatures, where: Geometry) -> QueryOutput:
        """Return predictions of the cells (B, A, C) that are most like a token, best first."""
        offered = self.proposal(cells * where.proposable.unsqueeze(-1))
        logits = self.proposal_scores(offered, text.features)
        best = self.select(logits.masked_fill(~text.mask.unsqueeze(1), float("-inf")).amax(-1)).unsqueeze(-1)

        def chosen(x: Tensor) -> Tensor:
            return x.gather(1, best.expand(-1, -1, x.shape[-1]))

        boxes = self.proposal_boxes(chosen(offered)) + chosen(where.proposals)
        return QueryOutput(chosen(logits), boxes.sigmoid())

    def forward(
        self,
        cells: Tensor,
        text: TextFeatures,
        where: Geometry,
        shapes: Sequence[SizeHW],
        noisy: NoisyQueries | None = None,
    ) -> list[QueryOutput]:
        """Return predictions of the proposals, and of each decoder layer; without gradients of the last one only.

        Predictions of ``noisy`` queries come behind the others.
        """
        outputs = [self.propose(cells, text, where)]
        boxes, seen = outputs[0].boxes.detach(), None
        queries = self.queries[: boxes.shape[1]].expand(len(boxes), -1, -1)
        if noisy is not None:
            seen = noisy.visible(boxes.shape[1])
            boxes, queries = torch.cat((boxes, noisy.boxes), 1), torch.cat((queries, noisy.content.to(queries)), 1)
        share = where.real_share.repeat(1, 1, 2).unsqueeze(1)  # (B, 1, L, 4)
        words = (text.features, text.mask.unsqueeze(1) if may_hold_false(text.mask) else None)
        for i, layer in enumerate(self.layers):
            places = boxes.unsqueeze(2) * share.to(boxes)
            position = self.position(sines(places[:, :, 0], cells.shape[-1] // 2))
            inputs = (queries, seen, position, places, words, cells, shapes, where.real)
            queries = checkpoint(layer, *inputs, use_reentrant=False) if self.recompute else layer(*inputs)
            head, start = i % len(self.boxes), boxes.logit(LOGIT_EPSILON)
            is_last = i + 1 == len(self.layers)
            if is_last or torch.is_grad_enabled():
                read = self.norm(queries)
                moved = (self.boxes[head](read) + start).sigmoid()
                logits = self.scores[head](read, text.features)
                if is_last:
                    outputs.append(QueryOutput(self.evidence(logits, read, text.token_map), moved, read))
                else:
                    outputs.append(QueryOutput(logits, moved))
            if not is_last:
                boxes = (self.boxes[head](queries) + start).sigmoid().detach()
        return outputs
