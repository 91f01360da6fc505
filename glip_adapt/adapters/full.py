"""Fine-tuning of the whole network, or of its text encoder alone.

Public modes ``full`` and ``language_prompt_v1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glip_adapt.adapters.base import Stage
from glip_adapt.model.glip import Glip
from glip_adapt.structures import Tokens


@dataclass(frozen=True, kw_only=True)
class Full:
    """Owns every tensor except those below the modules listed as frozen."""

    name: ClassVar[str] = "full"
    stage: ClassVar[Stage] = Stage.ENCODE_IMAGE

    frozen: tuple[str, ...] = ()
    """modules that stay as they are, by exact name; the public few-shot recipe (FREEZE_CONV_BODY_AT 2) is
    ("image_encoder.backbone.patch_embed", "image_encoder.backbone.stages.0")"""

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
