"""Modules that methods put at the seams of a network.

Shape letters: B batch, N candidates (anchors or queries), T tokens, K classes, C visual channels, D text channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_adapt.core.structures import TextFeatures
from glip_adapt.trunks.alignment import NoEvidence
from glip_adapt.trunks.protocol import Network


class TextOffset(nn.Module):
    """Adds one learned vector per token position."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, text: TextFeatures) -> TextFeatures:
        """Return the features plus the offset, (B or 1, T, D)."""
        return replace(text, features=text.features + self.offset)


class FreeTokens(nn.Module):
    """Word embeddings of one caption, ids → (…, D), with a learned offset where a token is free."""

    places: Tensor
    "(n,) int64, which tokens of the caption are free"
    rows: Tensor
    "(n,) int64, which row of the offset each of them reads"

    def __init__(self, words: nn.Module, places: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.words = words
        width = words.get_parameter("weight").shape[1]
        self.offset = nn.Parameter(torch.zeros(int(rows.max()) + 1, width, device=rows.device))
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, T, D) for the (B, T) ids of the caption."""
        embedded = self.words(ids)
        return embedded.index_add(1, self.places, self.offset[self.rows].expand(len(ids), -1, -1))


class ClassEvidence(nn.Module):
    """Adds a linear score of its features to what the text says of a candidate, for each class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, logits: Tensor, candidates: Tensor, token_map: Tensor) -> Tensor:
        """Return the logits (B, N, T) of candidates (B, N, C), each with the score of the class that its token names.

        The map of tokens is (B or 1, K, T) bool.
        """
        scores = F.linear(candidates, self.weight, self.bias)
        return logits + scores @ token_map.to(scores)


def add_evidence(network: Network, classes: int) -> None:
    """Put evidence of so many classes, all zero, at the seam of a network that has one."""
    assert network.evidence is not None
    nothing = network.get_submodule(network.evidence)
    assert isinstance(nothing, NoEvidence)
    like = next(network.parameters())
    network.set_submodule(network.evidence, ClassEvidence(classes, nothing.width).to(like))
