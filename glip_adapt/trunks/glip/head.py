"""Predict token alignment, boxes and centerness of all anchors.

GLIP, arXiv 2112.03857, section 3.1; behaviour follows ``VLDyHead`` in maskrcnn_benchmark/modeling/rpn/vldyhead.py.

Shape letters: B batch, A anchors over all levels, T tokens, C visual channels, D text channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_adapt.core.structures import Fused, SizeHW
from glip_adapt.trunks.alignment import NoEvidence
from glip_adapt.trunks.glip.anchors import ANCHOR_SCALE, STRIDES, anchor_grid, kept_anchor_grid
from glip_adapt.trunks.linear import matrix

LOGIT_LIMIT = 50_000.0
PRIOR_PROBABILITY = 0.01  # of an anchor being positive, the usual start of focal-loss detectors
PRIOR_LOGIT = -math.log(1 / PRIOR_PROBABILITY - 1)


@dataclass(frozen=True)
class HeadOutput:
    """Raw predictions over all anchors, levels concatenated finest first.

    Attributes:
        token_logits: (B, A, T) float, alignment of each anchor with each token.
        box_deltas: (B, A, 4) float, box codec units (dx, dy, dw, dh).
        centerness: (B, A) float, logits.
        anchors_xyxy: (A, 4) float32, pixels of the padded image.
        level_shapes_hw: L pairs (h, w) with Σ h·w = A.
        token_mask: (B or 1, T) bool and token_map: (B or 1, K, T) bool, carried from ``TextFeatures``.
        image_sizes_hw: real image sizes in pixels, carried from the ``ImageBatch``.
        candidates: (B, A, C) float, what each anchor was scored by.
    """

    token_logits: Tensor
    box_deltas: Tensor
    centerness: Tensor
    anchors_xyxy: Tensor
    level_shapes_hw: tuple[SizeHW, ...]
    token_mask: Tensor
    token_map: Tensor
    image_sizes_hw: tuple[SizeHW, ...]
    candidates: Tensor


class AnchorHead(nn.Module):
    """Predict box and centerness of each anchor, and score it against each token as a subclass does.

    Attributes:
        text_width: channels D of the tokens.
        prediction_layers: tensors that a linear probe trains.
    """

    text_width: int
    prediction_layers: tuple[str, ...] = (
        "box_deltas.weight",
        "box_deltas.bias",
        "centerness.weight",
        "centerness.bias",
    )

    def __init__(self, *, image_width: int, columns: int, anchor_scale: int = ANCHOR_SCALE) -> None:
        """Build with random weights; ``columns`` is the size that ``add_scores`` is given."""
        super().__init__()
        self.anchor_scale = anchor_scale
        self.box_deltas = nn.Conv2d(image_width, 4, kernel_size=1)
        self.centerness = nn.Conv2d(image_width, 1, kernel_size=1)
        self.add_scores(image_width, columns)
        self.evidence: nn.Module = NoEvidence(image_width)
        self.level_scales = nn.ParameterList(torch.ones(1) for _ in STRIDES)
        for layer in (self.box_deltas, self.centerness):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def add_scores(self, image_width: int, columns: int) -> None:
        """Add the layers of ``score``."""
        raise NotImplementedError

    def score(self, image: Tensor, text: Tensor) -> Tensor:
        """Return (B, A, T) logits of positions (B, A, C) and tokens (B, T, D)."""
        raise NotImplementedError

    def forward(self, fused: Fused) -> HeadOutput:
        """Return raw predictions over all anchors."""
        pyramid, text = fused.pyramid, fused.text
        deltas = _over_cells(self.box_deltas, pyramid.cells)
        per_level = deltas.split([h * w for h, w in pyramid.level_shapes_hw], dim=1)
        grid = anchor_grid if torch.compiler.is_compiling() else kept_anchor_grid  # sizes may be symbols in a graph
        return HeadOutput(
            token_logits=self.evidence(self.score(pyramid.cells, text.features), pyramid.cells, text.token_map),
            box_deltas=torch.cat([d * scale for d, scale in zip(per_level, self.level_scales, strict=True)], dim=1),
            centerness=_over_cells(self.centerness, pyramid.cells).squeeze(-1),
            anchors_xyxy=grid(pyramid.level_shapes_hw, pyramid.cells.device, self.anchor_scale),
            level_shapes_hw=pyramid.level_shapes_hw,
            token_mask=text.mask,
            token_map=text.token_map,
            image_sizes_hw=pyramid.image_sizes_hw,
            candidates=pyramid.cells,
        )


class AlignmentHead(AnchorHead):
    """Score each anchor against each token by a dot product."""

    # Trained by a linear probe, as in public mode ``linear_prob``: without the box scales of the levels.
    prediction_layers = (
        *AnchorHead.prediction_layers,
        *("text_projection.weight", "text_projection.bias", "log_scale", "bias_lang", "bias0"),
    )

    def __init__(self, *, image_width: int, text_width: int, anchor_scale: int = ANCHOR_SCALE) -> None:
        super().__init__(image_width=image_width, columns=text_width, anchor_scale=anchor_scale)

    def add_scores(self, image_width: int, columns: int) -> None:
        """Add the projection of (B, T, D) tokens with D ``columns``, and biases."""
        self.text_width = columns
        self.text_projection = nn.Linear(columns, image_width)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(columns))
        self.bias0 = nn.Parameter(torch.full((1,), PRIOR_LOGIT))

    def score(self, image: Tensor, text: Tensor) -> Tensor:
        """Return (B, A, T) dot products of positions (B, A, C) with projected tokens (B, T, D)."""
        text = F.normalize(text, dim=-1)
        projected = self.text_projection(text / 2) / self.log_scale.exp()  # scaled here: T rows instead of A
        bias = F.linear(text, self.bias_lang.unsqueeze(0), self.bias0).transpose(-1, -2)  # (B, 1, T)
        return (image @ projected.transpose(-1, -2) + bias).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def _over_cells(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """Return (B, A, C'): a 1 × 1 convolution of all levels at once."""
    return F.linear(cells, *matrix(conv))
