"""How a method learns from a batch: a step along gradients, or a Newton step from features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from glip_adapt.core.settings import FitConfig
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.newton import Newton
from glip_adapt.engine.optimise import Step, Stepper
from glip_adapt.engine.ranks import Ranks
from glip_adapt.engine.rates import Rates, parameter_groups
from glip_adapt.engine.samples import Sample, examples_of, losses_of


class Learner(Protocol):
    """Changes the tensors that a model owns, batch by batch."""

    def take(self, step: int, batch: Sequence[Sample]) -> Step:
        """Learn from a batch; ``step`` is its number, from 1.

        Raises:
            NonFiniteLossError: if a loss, gradient or feature is not finite; the tensors are as before.
        """

    def after_validation(self, ap: float) -> None:
        """Note the AP of the present state on validation images."""


def learner_of(
    model: AdaptedModel, features: FrozenFeatures, config: FitConfig, total_steps: int, ranks: Ranks
) -> Learner:
    """Return how the method of a model learns, for a training of so many steps."""
    ridge = model.adapter.newton_ridge
    if ridge is not None:
        return ByNewton(model, features, ridge, ranks)
    return ByGradient(model, features, config, total_steps, ranks)


class ByGradient:
    """Steps of AdamW, by rates that fall."""

    def __init__(
        self, model: AdaptedModel, features: FrozenFeatures, config: FitConfig, total_steps: int, ranks: Ranks
    ) -> None:
        self._model, self._features, self._ranks = model, features, ranks
        self._stepper = Stepper(
            parameter_groups(model, config),
            device=model.device,
            precision=config.precision,
            clip_norm=config.clip_norm,
            ranks=ranks,
        )
        self._rates = Rates(self._stepper.optimiser, config, total_steps)

    def take(self, step: int, batch: Sequence[Sample]) -> Step:
        """Take a step, and follow the schedule of rates."""
        self._model.train()
        losses = losses_of(self._model, self._features, batch, self._ranks)
        taken = self._stepper.take(step, names_of(batch), losses)
        self._rates.after_step()
        return taken

    def after_validation(self, ap: float) -> None:
        """Follow the plateau rule."""
        self._rates.after_validation(ap)


class ByNewton:
    """Evidence of classes from the features of all images so far; neither a rate nor a schedule has a part in it."""

    def __init__(self, model: AdaptedModel, features: FrozenFeatures, ridge: float, ranks: Ranks) -> None:
        self._model, self._features, self._ranks = model, features, ranks
        weight, bias = model.owned_tensors().values()
        self._newton = Newton(weight, bias, ridge, ranks)

    def take(self, step: int, batch: Sequence[Sample]) -> Step:
        """Add the images of a batch."""
        self._model.train()
        examples = examples_of(self._model, self._features, batch, self._ranks)
        return self._newton.take(step, names_of(batch), examples)

    def after_validation(self, ap: float) -> None:
        """Do nothing."""


def names_of(batch: Sequence[Sample]) -> str:
    """Return the images of a batch, for a message."""
    return f"images {[sample.record.image_id for sample in batch]}"
