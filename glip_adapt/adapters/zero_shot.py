"""Zero-shot detection: the baseline that trains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Adapter):
    """Owns nothing: the trunk as it is."""

    name: ClassVar[str] = "zero_shot"
    stage: ClassVar[Stage] = Stage.NONE
    purpose: ClassVar[str] = (
        "Detection by class names, without training. Take it when there are no labels, and as the baseline."
    )
    cost: ClassVar[str] = "none"

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return no name."""
        return ()
