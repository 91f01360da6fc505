"""Encode tokens as text features.

BERT as in maskrcnn_benchmark/modeling/language_backbone/bert_model.py of the public GLIP code.

Shape letters: B batch, T tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glip_adapt.core.structures import TextFeatures, Tokens, may_hold_false
from glip_adapt.trunks.bert import build_bert


class TextEncoder(nn.Module):
    """BERT; the features are its last hidden layer."""

    def __init__(self, *, separators: Sequence[int] = (), **sizes: int) -> None:
        """Build with random weights; the arguments are fields of ``TextConfig``.

        With ``separators``, attention and positions stay within a phrase. A name then has the same features in every
        caption, as in Grounding DINO (arXiv 2303.05499, section 3.4).
        """
        super().__init__()
        self.separators = tuple(separators)
        self.bert = build_bert(**sizes)

    def forward(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, D)."""
        mask, positions = None, None
        if self.separators:
            mask, positions = phrase_attention(tokens.ids, self.separators)
        elif may_hold_false(tokens.mask):  # without padding, no mask keeps attention on its fastest path
            # One row per query: in a mask of one row per image, transformers would look for padding.
            mask = tokens.mask[:, None, None, :].expand(-1, -1, tokens.mask.shape[1], -1)
        features = self.bert(input_ids=tokens.ids, attention_mask=mask, position_ids=positions).last_hidden_state
        return TextFeatures(features, tokens.mask, tokens.token_map)


def phrase_attention(ids: Tensor, separators: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return which tokens see each other, (B, 1, T, T) bool, and the place of each in its phrase, (B, T) int64.

    A separator sees only itself. The tokens after the last one, [PAD] after [SEP], are a phrase like any other.
    """
    separates = torch.stack([ids == separator for separator in separators]).any(0)
    phrase = 2 * separates.cumsum(1) - separates.long()  # odd for separators, even for phrases
    together = phrase[:, None, :, None] == phrase[:, None, None, :]
    place = torch.arange(ids.shape[1], device=ids.device)
    first = together[:, 0].int().argmax(-1)  # of the tokens that one sees
    return together, place - first
