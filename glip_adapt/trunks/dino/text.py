"""Encode tokens as text features: BERT that reads each phrase by itself.

Grounding DINO, arXiv 2303.05499, section 3.4: names in one caption do not see each other. The rule is that of
``generate_masks_with_special_tokens_and_transfer_map`` in transformers (models/grounding_dino).

Shape letters: B batch, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glip_adapt.core.structures import TextFeatures, Tokens
from glip_adapt.trunks.bert import build_bert
from glip_adapt.trunks.encoder_config import TextConfig


class PhraseEncoder(nn.Module):
    """BERT with attention and positions within a phrase, and a linear layer to the channels of the detector."""

    def __init__(self, config: TextConfig, width: int) -> None:
        """Build with random weights; the features have ``width`` channels."""
        super().__init__()
        self.separators = config.separators
        self.bert = build_bert(
            vocabulary_size=config.vocabulary_size,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            hidden_width=config.hidden_width,
        )
        self.projection = nn.Linear(config.width, width)

    def forward(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, C)."""
        phrases = phrase_of(tokens.ids, self.separators)
        together, places = seen_together(phrases), places_in_phrase(phrases)
        read = self.bert(input_ids=tokens.ids, attention_mask=together.unsqueeze(1), position_ids=places)
        return TextFeatures(self.projection(read.last_hidden_state), tokens.mask, tokens.token_map, phrases)


def phrase_of(ids: Tensor, separators: Sequence[int]) -> Tensor:
    """Return the phrase of each token, (B, T) int64, as the place of the separator that ends it.

    A separator belongs to the phrase that it ends. Tokens that stand alone are a phrase each, numbered from T on: those
    at either end of the caption, and all tokens after its last separator.
    """
    length = ids.shape[1]
    place = torch.arange(length, device=ids.device).expand_as(ids)
    ends = torch.stack([ids == separator for separator in separators]).any(0)
    phrase = place.where(ends, length).flip(1).cummin(1).values.flip(1)  # the next separator
    alone = (phrase == 0) | (phrase >= length - 1)
    return torch.where(alone, length + place, phrase)


def seen_together(phrases: Tensor) -> Tensor:
    """Return which tokens see each other, (B, T, T) bool, for the phrase of each token (B, T)."""
    return phrases[:, :, None] == phrases[:, None, :]


def places_in_phrase(phrases: Tensor) -> Tensor:
    """Return the place of each token in its phrase, (B, T) int64, for the phrase of each token (B, T)."""
    first = seen_together(phrases).int().argmax(-1)
    return torch.arange(phrases.shape[1], device=phrases.device) - first
