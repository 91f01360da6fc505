"""Prompt tuning: a learned offset on the text features, before the first fusion.

GLIP, arXiv 2112.03857, section 4.3; public mode ``language_prompt_v2``. The public table has 1000 × 768 rows indexed
by position, of which a caption of T tokens uses T; ours owns just those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.structures import TextFeatures, Tokens
from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class Prompt(Adapter):
    """Owns one vector per token of the caption, (T, D), zero at the start."""

    name: ClassVar[str] = "prompt"
    stage: ClassVar[Stage] = Stage.FUSE
    caption_bound: ClassVar[bool] = True
    purpose: ClassVar[str] = (
        "Learned changes to the text features of the class names. Take it first: from 1 shot on, and for many tasks on "
        "one trunk."
    )
    cost: ClassVar[str] = "low: image features are computed once; an adapter takes kilobytes"
    counted: ClassVar[str] = "tokens × text width"

    def insert(self, network: Network, tokens: Tokens) -> None:
        """Put the offset at the seam ``text_prompt``."""
        network.text_prompt = TextOffset(tokens.ids.shape[1], network.text_width).to(network.device)

    def owned(self, network: Network) -> tuple[str, ...]:
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
