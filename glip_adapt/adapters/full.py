"""Fine-tuning of the whole network, or of its text encoder alone.

Public modes ``full`` and ``language_prompt_v1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage

if TYPE_CHECKING:
    from glip_adapt.core.structures import Tokens
    from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class Full(Adapter):
    """Owns every tensor except those below the modules listed as frozen."""

    name: ClassVar[str] = "full"
    stage: ClassVar[Stage] = Stage.ENCODE_IMAGE
    purpose: ClassVar[str] = "Training of nearly all weights. Take it for the best AP, if memory and file size allow."
    cost: ClassVar[str] = "highest in time and memory: nothing is computed once; an adapter is as large as the trunk"
    counted: ClassVar[int] = 231_455_576  # but for what the published recipe freezes

    frozen: tuple[str, ...] = ()
    "modules that stay as they are, by exact name; ``TrunkSpec.settings`` names those of the published recipe"

    denoising: int = 0
    """pairs of queries for each image that start from the truth while training, for detectors with queries (contrastive
    denoising, arXiv 2203.03605); published pre-training has 100, none is the default"""

    def __post_init__(self) -> None:
        if not 0 <= self.denoising <= 1000:
            raise ValueError(f"denoising must be a number of pairs of queries from 0 to 1000; got {self.denoising}.")

    def insert(self, network: Network, tokens: Tokens) -> None:
        """Have queries start from the truth, where that is asked for.

        Raises:
            ValueError: if it is, and the network has no queries.
        """
        if self.denoising:
            network.set_denoising(self.denoising)

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return all tensors but the frozen ones.

        Raises:
            ValueError: if a module listed as frozen does not exist, or nothing is left to train.
        """
        modules = {name for name, _ in network.named_modules()}
        if unknown := [name for name in self.frozen if name not in modules]:
            children = ", ".join(name for name, _ in network.named_children())
            raise ValueError(f"Cannot freeze {unknown}: no such module. Top-level modules: {children}.")
        prefixes = tuple(f"{name}." for name in self.frozen)
        owned = tuple(name for name in network.state_dict() if not name.startswith(prefixes))
        if not owned:
            raise ValueError(f"full has nothing to train: {', '.join(self.frozen)} are frozen. Leave one of them out.")
        return owned


@dataclass(frozen=True, kw_only=True)
class TextEncoderTuning(Adapter):
    """Owns the text encoder."""

    name: ClassVar[str] = "text_encoder"
    needs_text: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.ENCODE_TEXT
    purpose: ClassVar[str] = (
        "Training of the text encoder alone. Take it to compare with the paper; prompt does as well for less."
    )
    cost: ClassVar[str] = "medium: image features are computed once; text encoder, fusion and head run at each step"
    counted: ClassVar[int] = 108_891_648

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return all tensors of the text encoder."""
        return tuple(name for name in network.state_dict() if name.startswith(f"{network.seams.text_encoder}."))
