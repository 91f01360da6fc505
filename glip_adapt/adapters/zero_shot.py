"""Zero-shot detection: the baseline that trains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage

if TYPE_CHECKING:
    from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Adapter):
    """Owns nothing: the trunk as it is.

    Classes that do not fit into one caption are spread over several, which are read one by one. Each keeps all its
    boxes with their scores (TEST.CHUNKED_EVALUATION of the public code).
    """

    name: ClassVar[str] = "zero_shot"
    stage: ClassVar[Stage] = Stage.NONE
    purpose: ClassVar[str] = (
        "Detection by class names, without training. Take it when there are no labels, and as the baseline."
    )
    cost: ClassVar[str] = "none"
    counted: ClassVar[int] = 0

    names_per_caption: int | None = None
    "most class names in a caption, from 1: LVIS is published with 40. None: as many as fit"

    def __post_init__(self) -> None:
        if self.names_per_caption is not None and self.names_per_caption < 1:
            raise ValueError(f"names_per_caption is {self.names_per_caption}; expected at least 1.")

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return no name."""
        return ()
