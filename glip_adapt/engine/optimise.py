"""One optimiser step of any training: precision, clipping, and a check that losses and gradients are finite."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.settings import Precision
from glip_adapt.engine.ranks import Ranks


@dataclass(frozen=True)
class Step:
    """One optimiser step: losses by name, learning rate of the first group, gradient norm before clipping, seconds.

    The norm is None if a float16 gradient overflowed: such a step is skipped and the loss scale halved.
    """

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float | None
    seconds: float

    @property
    def loss(self) -> float:
        """The sum of the losses."""
        return sum(self.losses.values())


class NonFiniteLossError(GlipAdaptError, ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


class Stepper:
    """AdamW over parameter groups, one step at a time.

    The groups are those of ``torch.optim.AdamW``, with their own rates and decays. The precision is that of the forward
    pass; float16 scales the loss. ``clip_norm`` is the limit of the L2 norm of all gradients together. Each of several
    ``ranks`` brings its parts of the batch, and takes the same step.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        device: torch.device,
        precision: Precision,
        clip_norm: float,
        betas: tuple[float, float] = (0.9, 0.999),
        ranks: Ranks | None = None,
    ) -> None:
        self.optimiser = torch.optim.AdamW(list(groups), betas=betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.clip_norm, self.ranks = clip_norm, ranks or Ranks()

    def take(self, step: int, batch: str, parts: Iterable[tuple[str, Mapping[str, Tensor]]]) -> Step:
        """Take one step on the sum of all losses.

        A GPU is waited for once, before the parameters move: all losses and the norm are read together.

        Args:
            step: its number, from 1.
            batch: names of its images, for an error message.
            parts: name of a part of the batch, and its losses by name; the graph of a part is freed before the next one
                is asked for.

        Raises:
            NonFiniteLossError: if a loss or gradient is NaN or infinite; the parameters are as before.
        """
        started = time.perf_counter()
        names: list[tuple[str, tuple[str, ...]]] = []  # of each part and its losses
        values: list[Tensor] = []
        self.optimiser.zero_grad()
        with self.ranks.together():
            for what, part in parts:
                self.scaler.scale(torch.stack(list(part.values())).sum()).backward()
                names.append((what, tuple(part)))
                values += [value.detach() for value in part.values()]
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.ranks.sum_gradients(parameters)
        self.scaler.unscale_(self.optimiser)
        total_norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        *found, norm = torch.stack([*values, total_norm]).tolist()
        with self.ranks.together():
            losses = _sum_losses(names, found, step, batch)
        losses = self.ranks.sum_losses(losses)
        overflowed = not math.isfinite(norm)
        # The loss scale starts high and is halved at each overflow; at one or below, the scale is not the cause.
        if overflowed and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
            raise NonFiniteLossError(
                f"The gradient of step {step} is not finite ({norm}) although its loss is: {losses}. "
                f"The batch holds {batch}. Lower the learning rate, or look at their boxes."
            )
        rate = self.optimiser.param_groups[0]["lr"]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return Step(step, losses, rate, None if overflowed else norm, time.perf_counter() - started)


def _sum_losses(
    names: Sequence[tuple[str, tuple[str, ...]]], found: Sequence[float], step: int, batch: str
) -> dict[str, float]:
    """Return the sum of each loss over the parts of a step; the first part with one that is not finite is an error."""
    numbers, losses = iter(found), dict[str, float]()
    for what, of_part in names:
        part = {name: next(numbers) for name in of_part}
        if not math.isfinite(sum(part.values())):
            values = ", ".join(f"{name} {value:.4g}" for name, value in part.items())
            raise NonFiniteLossError(
                f"The loss of {what} is not finite in step {step}: {values}. The batch holds {batch}. "
                "Lower the learning rate, or look at the boxes of these images."
            )
        for name, value in part.items():
            losses[name] = losses.get(name, 0.0) + value
    return losses
