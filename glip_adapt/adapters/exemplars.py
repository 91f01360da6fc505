"""Exemplars: the looks of the labelled boxes as evidence beside the names of their classes, without training.

A linear score of each class is added to the scores from text. It is the posterior mode of a logistic regression on the
features of anchors or queries, to first order around zero-shot detection: one Newton step, which is a linear system for
each class (``engine/newton.py``). Exemplars beside text, for classification: Tip-Adapter, arXiv 2111.03930.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.adapters.protocol import Adapter, Stage

if TYPE_CHECKING:
    from glip_adapt.core.structures import Tokens
    from glip_adapt.trunks.protocol import Network


@dataclass(frozen=True, kw_only=True)
class Exemplars(Adapter):
    """Owns a weight for each channel and a bias, for each class: (K, C) and (K,), zero at the start."""

    name: ClassVar[str] = "exemplars"
    stage: ClassVar[Stage] = Stage.PREDICT
    caption_bound: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    purpose: ClassVar[str] = (
        "Looks of the labelled boxes as evidence beside the names. Take it for a detector within seconds, and to see "
        "what a few labels are worth before anything is trained."
    )
    cost: ClassVar[str] = "lowest: each image is encoded a few times, nothing is trained; an adapter takes kilobytes"
    counted: ClassVar[str] = "classes × (visual width + 1)"

    ridge: float = 50.0
    "precision of the Gaussian prior of a weight, for features of unit deviation; that of a bias is a tenth"

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0; got {self.ridge}.")

    @property
    def newton_ridge(self) -> float:
        """The precision."""
        return self.ridge

    def insert(self, network: Network, tokens: Tokens) -> None:
        """Put the scores at the seam ``evidence``.

        Raises:
            ValueError: if the network has no such seam.
        """
        from glip_adapt.adapters.modules import add_evidence

        if network.evidence is None:
            raise ValueError(f"{type(network).__name__} has no seam for evidence of classes. Take another method.")
        add_evidence(network, tokens.token_map.shape[1])

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return weights and biases."""
        return (f"{network.evidence}.weight", f"{network.evidence}.bias")
