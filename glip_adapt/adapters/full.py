"""Fine-tuning of the whole network, or of its text encoder alone.

Public modes ``full`` and ``language_prompt_v1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glip_adapt.adapters.base import Stage
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.glip.network import Glip

# What the public few-shot recipe leaves alone in a Swin backbone (FREEZE_CONV_BODY_AT 2 of README.md, and
# maskrcnn_benchmark/modeling/backbone/swint.py): the stem and the first stage, to which the merging of patches after it
# belongs there; here that is at the start of the next one.
PUBLISHED_FROZEN = (
    "image_encoder.backbone.patch_embed",
    "image_encoder.backbone.stages.0",
    "image_encoder.backbone.stages.1.downsample",
)


@dataclass(frozen=True, kw_only=True)
class Full:
    """Owns every tensor except those below the modules listed as frozen."""

    name: ClassVar[str] = "full"
    stage: ClassVar[Stage] = Stage.ENCODE_IMAGE

    frozen: tuple[str, ...] = ()
    "modules that stay as they are, by exact name; ``default_settings`` names those of the published recipe"

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Insert nothing."""

    def owned(self, glip: Glip) -> tuple[str, ...]:
        """Return all tensors but the frozen ones.

        Raises:
            ValueError: if a module listed as frozen does not exist, or nothing is left to train.
        """
        modules = {name for name, _ in glip.named_modules()}
        unknown = [name for name in self.frozen if name not in modules]
        if unknown:
            raise ValueError(f"Cannot freeze {unknown}: no such module. Top-level modules: {_children(glip)}.")
        prefixes = tuple(f"{name}." for name in self.frozen)
        owned = tuple(name for name in glip.state_dict() if not name.startswith(prefixes))
        if not owned:
            raise ValueError(f"full has nothing to train: {', '.join(self.frozen)} are frozen. Leave one of them out.")
        return owned


@dataclass(frozen=True, kw_only=True)
class TextEncoderTuning:
    """Owns the text encoder."""

    name: ClassVar[str] = "text_encoder"
    stage: ClassVar[Stage] = Stage.ENCODE_TEXT

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Insert nothing."""

    def owned(self, glip: Glip) -> tuple[str, ...]:
        """Return all tensors of the text encoder."""
        return tuple(f"text_encoder.{name}" for name in glip.text_encoder.state_dict())


def _children(glip: Glip) -> str:
    return ", ".join(name for name, _ in glip.named_children())
