"""Raw predictions of Grounding DINO.

Shape letters: B batch, Q queries, T tokens, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from glip_adapt.core.structures import SizeHW
from glip_adapt.trunks.dino.denoising import NoisyQueries


@dataclass(frozen=True)
class QueryOutput:
    """Predictions of the queries after one layer.

    Attributes:
        logits: (B, Q, T) float, alignment of each query with each token; padding has any value.
        boxes: (B, Q, 4) float, (centre x, centre y, width, height) in shares of the image without padding.
        features: (B, Q, C) float, what the logits were computed from, of the last layer; None of others.
    """

    logits: Tensor
    boxes: Tensor
    features: Tensor | None = None

    def __getitem__(self, index: Any) -> QueryOutput:
        """Return some images and queries."""
        features = None if self.features is None else self.features[index]
        return QueryOutput(self.logits[index], self.boxes[index], features)


@dataclass(frozen=True)
class NoisyOutput:
    """Predictions of queries that start from the truth.

    Attributes:
        queries: their starts and answers.
        layers: predictions after each decoder layer.
    """

    queries: NoisyQueries
    layers: tuple[QueryOutput, ...]


@dataclass(frozen=True)
class DinoOutput:
    """Predictions of a batch.

    Attributes:
        proposals: of the cells that start as queries.
        layers: of each decoder layer; without gradients of the last one only.
        token_mask: (B, T) bool and token_map: (B or 1, K, T) bool, carried from ``TextFeatures``.
        image_sizes_hw: real image sizes in pixels, carried from the ``ImageBatch``.
        noisy: of queries that start from the truth, if there are any.
    """

    proposals: QueryOutput
    layers: tuple[QueryOutput, ...]
    token_mask: Tensor
    token_map: Tensor
    image_sizes_hw: tuple[SizeHW, ...]
    noisy: NoisyOutput | None = None

    def apart(self, noisy: NoisyQueries) -> DinoOutput:
        """Return these predictions with those of the noisy queries, which lie behind the others, apart."""
        matched = self.proposals.boxes.shape[1]
        own = tuple(layer[:, :matched] for layer in self.layers)
        return replace(self, layers=own, noisy=NoisyOutput(noisy, tuple(layer[:, matched:] for layer in self.layers)))
