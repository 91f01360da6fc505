"""Linear probing: train the head's prediction layers only.

GLIP, arXiv 2112.03857, section E.4; public mode ``linear_prob``. There, dropout of the frozen fusion stays on while
training. Here, frozen parts are in eval mode: their features are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage

if TYPE_CHECKING:
    from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Adapter):
    """Owns the prediction layers: of GLIP box, centerness, text projection, scale and biases."""

    name: ClassVar[str] = "linear_probe"
    stage: ClassVar[Stage] = Stage.PREDICT
    purpose: ClassVar[str] = (
        "Training of the last layers alone. Take it for many quick experiments, and as the simplest trained baseline."
    )
    cost: ClassVar[str] = "lowest: all features before the head are computed once"
    counted: ClassVar[int] = 198_919

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return the prediction layers."""
        return network.seams.prediction_layers
