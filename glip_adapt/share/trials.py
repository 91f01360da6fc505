"""Try methods on a few labelled images within a budget of time and memory, and say what each promises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glip_adapt.adapters import ADAPTERS, takes
from glip_adapt.core.config import override
from glip_adapt.core.memory import total_bytes
from glip_adapt.core.plain_text import duration
from glip_adapt.core.settings import FitConfig, RecipeName
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.fold_files import FoldFiles
from glip_adapt.engine.memory import estimate_memory
from glip_adapt.engine.ranks import current
from glip_adapt.engine.selection import (
    FACTORS,
    FOLDS,
    SHARES,
    START,
    CrossValidation,
    OnStep,
    bounded,
    cross_validate,
    shots_of,
)
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.released import default_recipe, method_settings

METHODS = ("exemplars", "prompt", "lora", "full")
"""What ``auto`` tries, cheapest first; see ``methods_for``. The first one trains nothing, so that a large detector
learns from a few images even where there is no time to train it, as on a CPU."""
NOISE = 0.25
"""Two standard errors of the difference in AP of two methods, times the root of the number of held-out images, by
redrawing images (three sets of glyphs13, 1 to 10 shots, a seed that no table reports: 0.1 to 0.4)."""
STEPS = (10, 15, 20, 30, 40, 50, 60, 80)
"""Numbers of steps for short time; a shorter training is not worth it."""
_STEP_COST = {"exemplars": 0.6, "prompt": 1.8, "lora": 3.0, "full": 5.5}
"""Seconds of a training step on an image over those of detection in it, GLIP-T at 480 × 640 on two cores
(benchmarks/README.md, "Speed"); of exemplars folds share what is encoded. Only the forecast uses them."""
_LOOK_COST = {"exemplars": 0.05}
"""Seconds of looking at an image once more, over those of the first look; 1 for others. Measured 0.01 on GLIP-T: all
but the scores is kept."""
_LIBRARIES_BYTES = 5e8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One method that was tried, or the reason why it was not.

    Attributes:
        method: its name.
        found: what held-out images tell; None if it was not tried.
        recipe: of its training.
        expected: AP to expect, a fraction in [0, 1]; None if it is not known.
        seconds: that the trial took.
        remark: one sentence, or empty.
    """

    method: str
    recipe: FitConfig
    found: CrossValidation | None = None
    expected: float | None = None
    seconds: float = 0.0
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the trials may cost.

    Attributes:
        minutes: of all trials and of the training that follows.
        seconds_per_image: that detection takes on this machine; forecasts are multiples of it.
    """

    minutes: float
    seconds_per_image: float


def methods_for(trunk: Trunk) -> list[str]:
    """Return what ``auto`` tries on a trunk: on one that reads no text, what works without."""
    return [name for name in METHODS if takes(trunk.name, ADAPTERS[name])]


def recipe_of(
    model: AdaptedModel, train: Split, seed: int, recipe: FitConfig | RecipeName, changes: Mapping[str, Any]
) -> FitConfig:
    """Return the recipe of a method for the number of images per class, with some fields changed."""
    if isinstance(recipe, FitConfig):
        return recipe
    named = default_recipe(model.trunk_name, model.adapter.name, shots_of(train), recipe)
    return override(replace(named, seed=seed), changes, "recipe")


def settings_of(trunk: Trunk, method: str, recipe: FitConfig | RecipeName) -> dict[str, Any]:
    """Return the fields of a method's adapter that a named recipe changes."""
    return {} if isinstance(recipe, FitConfig) else method_settings(trunk.name, method, recipe)


def try_methods(
    models: Sequence[AdaptedModel],
    recipes: Sequence[FitConfig],
    train: Split,
    val: Split | None,
    budget: Budget,
    *,
    kept: FoldFiles | None = None,
    cache: FeatureCache | None = None,
    on_trial: Callable[[str, float], None] | None = None,
    on_step: OnStep | None = None,
) -> list[Trial]:
    """Cross-validate methods in turn, as far as time and memory reach; the models are left as they were.

    Of several methods, one whose forecast does not fit into the rest of the time, or into memory, is left out. What
    comes first, and the first that trains, get fewer steps instead, if a useful number fits.

    Args:
        models: one per method, cheapest first.
        recipes: of their training.
        train: images to learn from.
        val: images to select on, instead of folds of ``train``.
        budget: of time; forecasts are corrected by the time that earlier trainings took.
        kept: where finished folds stay.
        cache: of frozen features, which the methods share.
        on_trial: called with method and forecast in seconds before each trial.
        on_step: called after each step of a trial.
    """
    started, pace, trials, ranks = time.perf_counter(), 1.0, list[Trial](), current()
    has_trained, is_new = False, ranks.agreed(kept is None or not kept.folder.exists())
    for model, given in zip(models, recipes, strict=True):
        trial = Trial(method=model.adapter.name, recipe=bounded(given, len(train)))
        left = ranks.agreed(60 * budget.minutes - (time.perf_counter() - started))
        cost = _Cost(trial, train, val, pace * budget.seconds_per_image)
        if not has_trained:
            trial = _shortened(trial, cost, left, budget, least=len(models) == 1)
        forecast = cost.seconds(trial.recipe.max_steps or 0)
        reason = _reason_against(model, trial, forecast, left, trials, train, val) if len(models) > 1 else ""
        if reason:
            trials.append(replace(trial, remark=f"not tried: {reason}"))
            continue
        if on_trial:
            on_trial(trial.method, forecast)
        begun = time.perf_counter()
        found = cross_validate(model, train, trial.recipe, val=val, kept=kept, cache=cache, on_step=on_step)
        seconds = ranks.agreed(time.perf_counter() - begun)
        trials.append(replace(trial, found=found, expected=found.estimate, seconds=seconds))
        if model.adapter.newton_ridge is None:
            has_trained = True
            if is_new or seconds > forecast:  # else folds may have been there already, and tell nothing about the pace
                pace *= seconds / forecast * (len(found.folds) + 1) / len(found.folds)
    return trials


@dataclass(frozen=True)
class _Cost:
    """Seconds of a trial and of the training after it, as a function of its steps."""

    trial: Trial
    train: Split
    val: Split | None
    seconds_per_image: float

    def seconds(self, steps: int) -> float:
        """Return the seconds of training, and of looking at held-out images whatever the steps."""
        folds = 1 if self.val else min(FOLDS, len(self.train))
        trained = (folds + 1) * steps * self.trial.recipe.batch_size * _STEP_COST.get(self.trial.method, 2.0)
        looks = 1 + _LOOK_COST.get(self.trial.method, 1.0) * len(FACTORS) * len(SHARES)
        return self.seconds_per_image * (trained + looks * len(self.val or self.train))


def _shortened(trial: Trial, cost: _Cost, left: float, budget: Budget, least: bool) -> Trial:
    """Return a trial with as many steps as fit into the time: one of ``STEPS``, so that a later call finds its folds.

    If even the least do not fit, it stays as it was, or gets them if it is the only one (``least``).
    """
    most = trial.recipe.max_steps or 0
    fitting = [steps for steps in STEPS if steps < most and cost.seconds(steps) <= left]
    if cost.seconds(most) <= left or not (fitting or least):
        return trial
    steps = max(fitting, default=min(STEPS[0], most))
    remark = f"{steps} steps instead of {most}, to stay within {budget.minutes:g} minutes"
    return replace(trial, recipe=replace(trial.recipe, max_steps=steps), remark=remark)


def _reason_against(
    model: AdaptedModel,
    trial: Trial,
    forecast: float,
    left: float,
    earlier: Sequence[Trial],
    train: Split,
    val: Split | None,
) -> str:
    """Return why a method is not tried, or nothing."""
    if len(train) == 1 and val is None and earlier:
        return "one image cannot compare methods"
    if forecast > left:
        return f"it takes about {duration(forecast)}, and {duration(max(left, 0.0))} were left"
    return current().agreed(_lack_of_memory(model, trial.recipe, train))


def best_trial(trials: Sequence[Trial], images: int) -> Trial | None:
    """Return the trial to take, see ``choose``; None if no method was tried."""
    tried = [trial for trial in trials if trial.found]
    if not tried:
        return None
    return tried[choose([(t.expected, t.found is not None and t.found.chosen != START) for t in tried], images)]


def choose(promises: Sequence[tuple[float | None, bool]], images: int) -> int:
    """Return the position of the method to take.

    It is the strongest of those that promise as much as the best up to the noise of a few images, and that training
    helps at all. More trained weights have done better at every number of shots (GLIP, arXiv 2112.03857, Tables 14 to
    16; benchmarks/README.md, "Data efficiency"), so a difference within the noise does not speak against them.

    Args:
        promises: of each method, weakest first: AP to expect, None if nothing could be held out, and whether a trained
            state was chosen.
        images: that were held out.
    """
    best = max((ap for ap, _ in promises if ap is not None), default=0.0)
    close = [ap is None or ap >= best - NOISE / math.sqrt(images) for ap, _ in promises]
    helped = [i for i, (_, is_trained) in enumerate(promises) if close[i] and is_trained]
    return helped[-1] if helped else close.index(True)


def _lack_of_memory(model: AdaptedModel, recipe: FitConfig, train: Split) -> str:
    """Return why a method does not fit into memory, or nothing if it does."""
    if model.trunk.spec.memory_gb <= 1:
        return ""
    height, width = max((record.header.size_hw for record in train.records), key=lambda size: size[0] * size[1])
    scale = min(max(recipe.short_sides) / min(height, width), recipe.max_long_side / max(height, width))
    size_hw = (round(scale * height), round(scale * width))
    needed = estimate_memory(model.trunk, model.adapter.name, size_hw, recipe.recompute).total + _LIBRARIES_BYTES
    there = total_bytes(model.device)
    if needed <= there:
        return ""
    return f"it needs about {needed / 1e9:.0f} GB of memory, and there are {there / 1e9:.0f}"
