"""A running mean of the weights along a training, which is looked at and kept instead of the latest weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from glip_adapt.engine.adapted import AdaptedModel


class RunningMean:
    """An exponential mean of the owned tensors over steps.

    The decay is per step. It begins small, as in timm.utils.ModelEmaV3, so that a short training is not held back by
    the start. With a decay of 0 the mean is the latest weights, and nothing is copied.
    """

    def __init__(self, model: AdaptedModel, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self._mean: dict[str, Tensor] = model.copy_owned() if decay else {}

    def update(self) -> None:
        """Move the mean towards the present weights; counters and flags are taken as they are."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 9))
        tensors = self.model.owned_tensors()
        for name, mean in self._mean.items():
            present = tensors[name].detach()
            mean.lerp_(present, weight) if mean.is_floating_point() else mean.copy_(present)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the model hold the mean inside, and its own weights afterwards."""
        if not self.decay:
            yield
            return
        present = self.model.copy_owned()
        self.model.load_owned(self._mean)
        try:
            yield
        finally:
            self.model.load_owned(present)

    def settle(self) -> None:
        """Leave the model with the mean."""
        if self.decay:
            self.model.load_owned(self._mean)
