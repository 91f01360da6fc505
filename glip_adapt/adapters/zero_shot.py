"""The baseline: nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glip_adapt.adapters.base import Stage
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.glip.network import Glip


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Owns nothing: the trunk as it is."""

    name: ClassVar[str] = "zero_shot"
    stage: ClassVar[Stage] = Stage.NONE

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Insert nothing."""

    def owned(self, glip: Glip) -> tuple[str, ...]:
        """Return no name."""
        return ()
