"""Raw predictions of Grounding DINO.

Shape letters: B batch, Q queries, T tokens, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glip_adapt.core.structures import SizeHW


@dataclass(frozen=True)
class QueryOutput:
    """Predictions of the queries after one layer.

    Attributes:
        logits: (B, Q, T) float, alignment of each query with each token; padding has any value.
        boxes: (B, Q, 4) float, (centre x, centre y, width, height) in shares of the image without padding.
    """

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class DinoOutput:
    """Predictions of a batch.

    Attributes:
        proposals: of the cells that start as queries.
        layers: of each decoder layer; without gradients of the last one only.
        token_mask: (B, T) bool and token_map: (B or 1, K, T) bool, carried from ``TextFeatures``.
        image_sizes_hw: real image sizes in pixels, carried from the ``ImageBatch``.
    """

    proposals: QueryOutput
    layers: tuple[QueryOutput, ...]
    token_mask: Tensor
    token_map: Tensor
    image_sizes_hw: tuple[SizeHW, ...]
