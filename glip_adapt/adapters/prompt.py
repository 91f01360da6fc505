"""Prompt tuning: a learned offset on the text features, before the first fusion.

GLIP, arXiv 2112.03857, section 4.3; public mode ``language_prompt_v2``. The public table has 1000 × 768 rows indexed
by position, of which a caption of T tokens uses T; ours owns just those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from glip_adapt.adapters.base import Stage
from glip_adapt.core.structures import TextFeatures, Tokens
from glip_adapt.trunks.glip.network import Glip


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Owns T × D numbers, one row per token of the caption, zero at the start."""

    name: ClassVar[str] = "prompt"
    stage: ClassVar[Stage] = Stage.FUSE

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Put the offset at the seam ``text_prompt``."""
        bias_lang = glip.head.bias_lang
        glip.text_prompt = TextOffset(tokens.ids.shape[1], len(bias_lang)).to(bias_lang.device)

    def owned(self, glip: Glip) -> tuple[str, ...]:
        """Return the offset."""
        return ("text_prompt.offset",)


class TextOffset(nn.Module):
    """Adds one learned vector per token position."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, text: TextFeatures) -> TextFeatures:
        """Return the features plus the offset, (B or 1, T, D)."""
        return replace(text, features=text.features + self.offset)
