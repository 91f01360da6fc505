"""Linear probing: only the head's prediction layers are trained.

GLIP, arXiv 2112.03857, section E.4; public mode ``linear_prob``. There the dropout of the frozen fusion stack stays
on while training; here everything frozen is in eval mode, so that its features are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glip_adapt.adapters.base import Stage
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.glip.network import Glip


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Owns ``head.prediction_layers``: box, centerness, text projection, scale and biases."""

    name: ClassVar[str] = "linear_probe"
    stage: ClassVar[Stage] = Stage.PREDICT

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Insert nothing."""

    def owned(self, glip: Glip) -> tuple[str, ...]:
        """Return the prediction layers."""
        return tuple(f"head.{name}" for name in glip.head.prediction_layers)
