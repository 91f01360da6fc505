"""Class names as rows of a classifier: nothing of a name is read but its place in the list.

Shape letters: B batch, T tokens, one for each class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from glip_adapt.core.captions import Caption, ClassPrompt, build_caption
from glip_adapt.core.structures import TextFeatures, Tokens
from glip_adapt.trunks.tokenizer import Tokenizer


class ClassList(Tokenizer):
    """Gives each class one token, whose id is its place in the list."""

    def __init__(self, size: int) -> None:
        """Take lists of up to ``size`` classes."""
        self.size = size

    def encode(self, caption: Caption) -> Tokens:
        """Return the tokens of one list, first dimension 1.

        Raises:
            ValueError: if there are more classes than rows.
        """
        if len(caption.names) > self.size:
            raise ValueError(
                f"The classifier has rows for {self.size} classes, got {len(caption.names)}. Split the classes over "
                "several models."
            )
        ids = torch.arange(len(caption.names))[None]
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.eye(ids.shape[1], dtype=torch.bool)[None])

    def encode_in_chunks(self, classes: Sequence[str | ClassPrompt], most: int | None = None) -> list[Tokens]:
        """Return the tokens of all classes, in one list, whatever ``most`` is: no class is read beside another."""
        return [self.encode(build_caption(classes))]

    def doubts(self, classes: Sequence[ClassPrompt], encoded: Sequence[Tokens]) -> list[str]:
        """Return nothing: no two classes share a row, whatever their names."""
        return []

    def words(self, tokens: Tokens) -> list[str]:
        """Return a made-up word for each id."""
        return [f"class {i}" for i in tokens.ids[0].tolist()]


class NoText(nn.Module):
    """Stands where other detectors encode text; its features say nothing but how many classes there are."""

    def forward(self, tokens: Tokens) -> TextFeatures:
        """Return zeros, (B or 1, T, 1)."""
        zeros = torch.zeros(*tokens.ids.shape, 1, device=tokens.ids.device)
        return TextFeatures(zeros, tokens.mask, tokens.token_map)
