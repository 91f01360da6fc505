"""Learning rates: which one each weight has, and how they fall along a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from glip_adapt.core.settings import FitConfig
from glip_adapt.engine.adapted import AdaptedModel


def parameter_groups(model: AdaptedModel, config: FitConfig) -> list[dict[str, Any]]:
    """Return AdamW groups of the owned parameters.

    The text encoder has its own rate, biases theirs and no decay; ``config.rate_factors`` changes those of modules. A
    group that waits (``config.waiting``) has a rate of 0, and the one to come under ``"later"``.

    Raises:
        ValueError: if a module that the recipe names owns no parameter that is trained.
    """
    seams, groups = model.network.seams, dict[tuple[float, float, bool], list[Tensor]]()
    trained = {name: tensor for name, tensor in model.owned_tensors().items() if tensor.requires_grad}
    _check_modules(trained, config)
    for name, tensor in trained.items():  # running statistics are saved, not trained
        rate = config.text_learning_rate if _is_in(name, seams.text_encoder) else config.learning_rate
        for module, factor in config.rate_factors.items():
            rate *= factor if _is_in(name, module) else 1.0
        is_bias = name.rpartition(".")[2] in seams.biases
        waits = any(_is_in(name, module) for module in config.waiting)
        key = (rate * config.bias_rate_factor, 0.0, waits) if is_bias else (rate, config.weight_decay, waits)
        groups.setdefault(key, []).append(tensor)
    in_order = sorted(groups.items(), key=lambda item: item[0][2])  # the first group, which steps report, learns
    return [
        {"params": p, "lr": 0.0 if waits else rate, "weight_decay": decay, **({"later": rate} if waits else {})}
        for (rate, decay, waits), p in in_order
    ]


def _is_in(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _check_modules(trained: dict[str, Tensor], config: FitConfig) -> None:
    for module in (*config.rate_factors, *config.waiting):
        if not any(_is_in(name, module) for name in trained):
            tops = sorted({name.partition(".")[0] for name in trained})
            raise ValueError(
                f"The recipe names the module {module!r}, of which nothing is trained. Trained are parts of "
                f"{', '.join(tops)}; leave the module out, or take a method that trains it."
            )
    if config.waiting and all(any(_is_in(name, module) for module in config.waiting) for name in trained):
        raise ValueError("All that is trained would wait for rates to fall. Let some module learn from the start.")


class Rates:
    """The rates of an optimiser along a training: half a cosine, or the plateau rule of the public trainer."""

    def __init__(self, optimiser: torch.optim.Optimizer, config: FitConfig, total_steps: int) -> None:
        self._optimiser, self._config = optimiser, config
        self._cosine = self._plateau = None
        if config.schedule == "cosine":
            self._cosine = CosineAnnealingLR(optimiser, total_steps)
        else:
            self._plateau = ReduceLROnPlateau(
                optimiser,
                mode="max",
                factor=config.plateau_factor,
                patience=config.plateau_patience,
                cooldown=config.plateau_cooldown,
                min_lr=config.min_learning_rate,
            )

    def after_step(self) -> None:
        """Follow the cosine."""
        if self._cosine:
            self._cosine.step()

    def after_validation(self, ap: float) -> None:
        """Follow the plateau rule; as in the public trainer, an AP of 0 tells nothing."""
        if self._plateau is None or ap <= 0:
            return
        leading = self._optimiser.param_groups[0]
        before = leading["lr"]
        self._plateau.step(ap)
        if leading["lr"] < before:
            self._release(leading["lr"] / before)

    def _release(self, fallen: float) -> None:
        """Let those learn that have waited for the first fall."""
        waiting = [group for group in self._optimiser.param_groups if "later" in group]
        for group in waiting:
            group["lr"] = fallen * group.pop("later")
        if waiting and self._plateau:
            self._plateau.patience = self._config.later_patience
