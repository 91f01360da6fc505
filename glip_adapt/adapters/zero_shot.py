"""Zero-shot detection: the baseline that trains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage

if TYPE_CHECKING:
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
    counted: ClassVar[int] = 0

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return no name."""
        return ()
