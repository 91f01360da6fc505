"""Learned context: free tokens before each class name, read by the frozen text encoder.

CoOp, arXiv 2109.01134, for the caption of a detector: names stay as they are, and the words before them are learned as
input embeddings.

Shape letters: B batch, T tokens, K classes, D text channels, M free tokens per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.captions import MAX_TOKENS, ClassPrompt

if TYPE_CHECKING:
    from glip_adapt.core.structures import Tokens
    from glip_adapt.trunks.protocol import Network

BLANK = "[MASK]"  # BERT's own word for "any word"; no text holds it, so its id tells which tokens are free
MOST_TOKENS = MAX_TOKENS - 3  # all of a caption but [CLS], [SEP] and a name of one token


@dataclass(frozen=True, kw_only=True)
class Context(Adapter):
    """Owns M vectors per class, (K × M, D), or M shared ones, added to the embeddings of M blanks before each name.

    They are zero at the start. Fresh, it is zero-shot detection with the manual prompt ``"[MASK] [MASK] … name"``.
    """

    name: ClassVar[str] = "context"
    stage: ClassVar[Stage] = Stage.ENCODE_TEXT
    caption_bound: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    purpose: ClassVar[str] = (
        "Learned words before each class name (CoOp). Take it to compare prompts inside and behind the text encoder."
    )
    cost: ClassVar[str] = "medium: image features are computed once; text encoder, fusion and head run at each step"
    counted: ClassVar[str] = "classes × free tokens × text width"

    tokens: int = 4
    "free tokens before each name (M)"
    per_class: bool = True
    """whether every class has its own; shared ones, which CoOp prefers for few shots, hardly part two classes that the
    trunk confuses (glyphs13, 10 shots, four sets: validation AP 19.0 shared, 27.9 of their own)"""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(
                f"tokens is {self.tokens}; expected at least one free token before each name, and at most "
                f"{MOST_TOKENS}, which leaves room for the name."
            )

    def word(self, prompts: Sequence[ClassPrompt]) -> tuple[ClassPrompt, ...]:
        """Return the classes with the blanks before their prompts; those that have them stay as they are."""
        blanks = f"{BLANK} " * self.tokens
        return tuple(p if p.prefix.startswith(blanks) else replace(p, prefix=blanks + p.prefix) for p in prompts)

    def insert(self, network: Network, tokens: Tokens) -> None:
        """Let the text encoder read the blanks as free tokens.

        Raises:
            ValueError: if the caption was not made from classes that ``word`` returned.
        """
        import torch

        from glip_adapt.adapters.modules import FreeTokens

        blanks = (tokens.ids[0] == tokens.ids[0, 1]).nonzero().flatten()
        if len(blanks) != self.tokens * tokens.token_map.shape[1] or tokens.token_map[0, :, blanks].any():
            raise ValueError(f"context reads {self.tokens} blanks before each name. Attach by glip_adapt.attach.")
        rows = torch.arange(len(blanks), device=blanks.device) % (len(blanks) if self.per_class else self.tokens)
        parent, _, leaf = network.seams.word_embeddings.rpartition(".")
        words = network.get_submodule(network.seams.word_embeddings)
        setattr(network.get_submodule(parent), leaf, FreeTokens(words, blanks, rows))

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return the offset of the free tokens."""
        return (f"{network.seams.word_embeddings}.offset",)
