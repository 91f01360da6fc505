"""Prompt tuning: a learned offset on the text features, before the first fusion.

GLIP, arXiv 2112.03857, section 4.3; public mode ``language_prompt_v2``. The public table has 1000 × 768 rows indexed
by position, of which a caption of T tokens uses T; ours owns just those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage

if TYPE_CHECKING:
    from glip_adapt.core.structures import Tokens
    from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class Prompt(Adapter):
    """Owns one vector per token of the caption, (T, D), zero at the start."""

    name: ClassVar[str] = "prompt"
    stage: ClassVar[Stage] = Stage.FUSE
    caption_bound: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    purpose: ClassVar[str] = (
        "Learned changes to the text features of the class names. Take it first: from 1 shot on, and for many tasks on "
        "one trunk."
    )
    cost: ClassVar[str] = "low: image features are computed once; an adapter takes kilobytes"
    counted: ClassVar[str] = "tokens × text width"

    def insert(self, network: Network, tokens: Tokens) -> None:
        """Put the offset at the seam ``text_prompt``."""
        from glip_adapt.adapters.modules import TextOffset

        network.text_prompt = TextOffset(tokens.ids.shape[1], network.text_width).to(network.device)

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return the offset."""
        return ("text_prompt.offset",)
