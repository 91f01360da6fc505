"""Encode tokens as text features. The only home of transformers.

BERT (arXiv 1810.04805) as in maskrcnn_benchmark/modeling/language_backbone/bert_model.py of the public GLIP code.

Shape letters: B batch, T tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glip_adapt.core.structures import TextFeatures, Tokens, may_hold_false


class TextEncoder(nn.Module):
    """BERT; the features are its last hidden layer."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden_width: int,
        separators: Sequence[int] = (),
    ) -> None:
        """Build with random weights; the arguments are fields of ``build.TextConfig``.

        With ``separators``, attention and positions stay within a phrase. A name then has the same features in every
        caption, as in Grounding DINO (arXiv 2303.05499, section 3.4).
        """
        super().__init__()
        self.separators = tuple(separators)
        from transformers import BertConfig, BertModel  # takes seconds, and a baked model does without

        config = BertConfig(
            vocab_size=vocabulary_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden_width,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

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
