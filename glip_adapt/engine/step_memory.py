"""Memory of a step of any size from its figures on two small images, which ``engine/memory.py`` measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glip_adapt.core.sizes import SizeHW

CLASSES = 10  # in the caption, of two words each; a prompt owns one vector per token
COPIES = 4  # of a trained number: its gradient, the two moments of AdamW, and the best state so far


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Peak memory in bytes of one training step, or of one inference if the method does not train.

    Attributes:
        weights: of the network, in float32.
        trained: gradients, optimiser state and best state of the owned tensors.
        activations: of one image; the images of a batch go through one by one, so their number does not matter.
        features: of the frozen stages for one image in one view, as the cache keeps them; not part of ``total``.
    """

    weights: int
    trained: int
    activations: int
    features: int

    @property
    def total(self) -> int:
        """The sum; the libraries themselves take another half a gigabyte."""
        return self.weights + self.trained + self.activations


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one image of ``size_hw`` pixels takes: activations and features in bytes, as in ``MemoryEstimate``."""

    size_hw: SizeHW
    activations: int
    features: int


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of one step in bytes, measured on two images.

    Attributes:
        weights: of the network, in float32.
        trained: owned tensors that are trained.
        small: image of one size.
        large: image of another size.
    """

    weights: int
    trained: int
    small: Probe
    large: Probe

    def __post_init__(self) -> None:
        if math.prod(self.small.size_hw) == math.prod(self.large.size_hw):
            raise ValueError(f"Expected two images of different size; got {self.small.size_hw} twice.")

    def at(self, size_hw: SizeHW) -> MemoryEstimate:
        """Return the memory of a step on an image of ``size_hw`` pixels; it grows linearly with them."""
        pixels, least, most = (math.prod(size) for size in (size_hw, self.small.size_hw, self.large.size_hw))
        share = (pixels - least) / (most - least)

        def grown(small: int, large: int) -> int:
            return round(small + share * (large - small))

        return MemoryEstimate(
            weights=self.weights,
            trained=COPIES * self.trained,
            activations=grown(self.small.activations, self.large.activations),
            features=grown(self.small.features, self.large.features),
        )
