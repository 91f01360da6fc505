"""Cross-validation over a few labelled images: choose how far to train, and estimate what to expect.

Without validation images, the labelled ones tell when training helps. A model is trained without the images of a fold
and looks at them at several candidates: states after some steps, moved back by some factor towards the start. The
candidate with the best AP over the held-out images of all folds is then made from all images. The start, which is
zero-shot detection for a fresh adapter, is a candidate as well.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor

from glip_adapt.core.settings import FitConfig, Shots
from glip_adapt.core.timing import stage
from glip_adapt.data.captioned import CaptionedSplit
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel, AdaptedTrunk
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import predict_split
from glip_adapt.engine.fold_files import FoldFiles, Looks, fold_key
from glip_adapt.engine.held_out import Fold, Found, pooled_ap, split_up
from glip_adapt.engine.history import History, Validation
from glip_adapt.engine.optimise import Step
from glip_adapt.engine.ranks import current
from glip_adapt.engine.train import count_steps, train_captions, train_model
from glip_adapt.trunks.recipes import PUBLISHED_SHOTS
from glip_adapt.trunks.released import default_recipe

FOLDS = 3
FACTORS = (0.3, 0.5, 0.7, 0.85, 1.0)
"""Factors that are tried; a trial on glyphs13 had its best ones between 0.3 and 1."""
SHARES = (0.25, 0.5, 1.0)
"""Parts of the steps of a recipe after which candidates are looked at."""
GRID = (SHARES, FACTORS)
CAUTIOUS = (0.5, 0.5)
"""Share and factor of the candidate that is taken where nothing can be held out."""
MOST_STEPS = 100
"""Ceiling for recipes whose own end needs validation images."""

OnStep = Callable[[Step, int], None]
"""Called after each step with it and the number of steps of the whole training, those of the folds included."""


@dataclass(frozen=True, order=True)
class Candidate:
    """A state of an adapter: ``factor`` of the way from the start to the state after ``steps`` steps."""

    steps: int
    factor: float


START = Candidate(0, 0.0)
"""The state before training."""


def cautious_of(steps: int) -> Candidate:
    """Return the candidate of a training of ``steps`` steps that is taken where nothing can be held out."""
    return Candidate(max(1, round(CAUTIOUS[0] * steps)), CAUTIOUS[1])


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What held-out images tell about one method on a few labelled images.

    Attributes:
        chosen: the candidate to make from all images; ``START`` if none is better.
        scores: AP of each candidate over all held-out images, a fraction in [0, 1]; None if no class can be scored.
        estimate: AP to expect. A fold is scored at the candidate that the other folds choose, so that the choice does
            not flatter it; with ``val``, its AP at ``chosen``. None with a single image, or if no class can be scored.
        held_out: the predictions that ``estimate`` scores; no image was seen by the model that looked at it.
        held_out_start: predictions of the start on the same images.
        folds: image ids of each fold.
        scored: image id → the category ids that are scored there: those that the other images show.
    """

    chosen: Candidate
    scores: Mapping[Candidate, float | None]
    estimate: float | None
    held_out: Found
    held_out_start: Found
    folds: tuple[tuple[int | str, ...], ...]
    scored: Mapping[int | str, frozenset[int]]

    @property
    def start(self) -> float | None:
        """AP of the start on the held-out images."""
        return self.scores[START]


def fit(
    model: AdaptedModel | AdaptedTrunk,
    train: Split | CaptionedSplit,
    val: Split | None = None,
    config: FitConfig | None = None,
    *,
    cache: FeatureCache | None = None,
    on_step: OnStep | None = None,
    on_validation: Callable[[Validation], None] | None = None,
) -> History:
    """Train the tensors that ``model`` owns: ``fit(model, data.train.few_shot(5, seed=3))``.

    With ``val`` the model ends in the state that was best on it, as published. Without, cross-validation over ``train``
    chooses the number of steps and the way back towards the start, see ``cross_validate``.

    Images with captions of their own train an adapted trunk, ``fit(adapt(trunk, "lora"), load_captions(file))``, for
    its models of any classes and for its ``ground``. There nothing is held out without ``val``: the last state is kept.

    Args:
        model: from ``attach``, or from ``load_adapter`` to go on from there; for captions from ``adapt``.
        train: images to learn from, with boxes.
        val: images that select.
        config: the recipe; by default ``default_recipe`` for the images per class of ``train``.
        cache: keeps the features of the frozen stages; by default one of 2 GiB for this training.
        on_step: see ``OnStep``.
        on_validation: called after each evaluation on ``val``.

    Raises:
        ValueError, NonFiniteLossError: as ``train_model``.
    """
    cache = cache or FeatureCache()
    if isinstance(model, AdaptedTrunk) and isinstance(train, CaptionedSplit):
        config = config or default_recipe(model.trunk.name, model.adapter.name, "all")
        config = bounded(config, len(train)) if val is None else config
        return train_captions(model, train, val, config, cache=cache, on_step=on_step, on_validation=on_validation)
    if isinstance(model, AdaptedTrunk) or isinstance(train, CaptionedSplit):
        raise ValueError(
            "Captions train an adapted trunk, and labelled images a model for their classes: fit(adapt(trunk, method), "
            "captions), or fit(attach(trunk, method, classes=split.classes), split)."
        )
    config = config or default_recipe(model.trunk_name, model.adapter.name, shots_of(train))
    if val is not None:
        return train_model(model, train, val, config, cache=cache, on_step=on_step, on_validation=on_validation)
    config = bounded(config, len(train))
    found = cross_validate(model, train, config, cache=cache, on_step=on_step)
    return train_candidate(model, train, found, config, cache=cache, on_step=on_step)


def shots_of(split: Split) -> Shots:
    """Return the number of shots whose recipe fits a split.

    Where no number was drawn, it is the median of the images per class; all data, where that is more than twice the
    largest published number.
    """
    if split.shots != "all":
        return split.shots
    images = Counter(key for record in split.records for key in {a.category_id for a in split.annotations_of(record)})
    typical = int(median(images.values())) if images else 1
    return "all" if typical > 2 * PUBLISHED_SHOTS[-1] else typical


def bounded(config: FitConfig, images: int) -> FitConfig:
    """Return a recipe with a fixed number of steps.

    One that follows validation AP gets half a cosine instead; what would wait there for a fall of the rates learns from
    the start.
    """
    steps = count_steps(config, images)
    if config.schedule == "cosine":
        return replace(config, max_steps=steps)
    return replace(config, schedule="cosine", max_steps=min(MOST_STEPS, steps), waiting=())


def cross_validate(
    model: AdaptedModel,
    train: Split,
    config: FitConfig,
    *,
    val: Split | None = None,
    folds: int = FOLDS,
    kept: FoldFiles | None = None,
    cache: FeatureCache | None = None,
    on_step: OnStep | None = None,
) -> CrossValidation:
    """Score candidates on held-out folds of ``train``; afterwards ``model`` is as before.

    A class counts on the images of a fold if other images show it, as a model that never saw a class tells nothing
    about one that will. A single image cannot be held out: it is learned from and looked at, and only tells whether
    training hurts. With ``val``, its images are the only fold that is looked at.

    Args:
        model: in the state to start from.
        train: images to learn from, with boxes.
        config: the recipe, with a fixed number of steps, see ``bounded``.
        val: other images to hold out, instead of folds.
        folds: how many, at least 2; below four images, one per image.
        kept: where finished folds stay, so that a killed call goes on.
        cache: keeps the features of the frozen stages, which all folds share.
        on_step: see ``OnStep``.

    Raises:
        ValueError, NonFiniteLossError: as ``train_model``.
    """
    current().copy_first(model.owned_tensors().values())
    parts, start = split_up(train, folds, config.seed, val), model.copy_owned()
    steps = count_steps(config, len(train))
    found = []
    try:
        for number, part in enumerate(parts):
            shown = _counting(on_step, number * steps, (len(parts) + 1) * steps)
            look = functools.partial(_look, part, model, start, config, cache, shown)
            looks = (
                look() if kept is None else kept.get(fold_key(model, start, config, part.rest, part.held, GRID), look)
            )
            found.append({Candidate(count, factor): entries for count, factor, entries in looks})
    finally:
        model.load_owned(start)
    scores = _scores(parts, found)
    cautious = cautious_of(steps)
    others = [(parts[:i] + parts[i + 1 :], found[:i] + found[i + 1 :]) for i in range(len(parts))]
    if len(train) == 1 and val is None:
        chosen = cautious if (scores[cautious] or 0.0) > (scores[START] or 0.0) else START
        held_out = [found[0][chosen]]
    elif val is not None:
        chosen = _best(scores, cautious)
        held_out = [found[0][chosen]]
    else:
        chosen = _best(scores, cautious)
        held_out = [fold[_best(_scores(*rest), cautious)] for fold, rest in zip(found, others, strict=True)]
    result = CrossValidation(
        chosen=chosen,
        scores=scores,
        estimate=pooled_ap(parts, held_out) if len(train) > 1 or val else None,
        held_out=[entry for fold in held_out for entry in fold],
        held_out_start=[entry for fold in found for entry in fold[START]],
        folds=tuple(tuple(record.image_id for record in part.held.records) for part in parts),
        scored={record.image_id: part.learned for part in parts for record in part.held.records},
    )
    return current().agreed(result)  # processors may differ in the last bit


def train_candidate(
    model: AdaptedModel,
    train: Split,
    found: CrossValidation,
    config: FitConfig,
    *,
    cache: FeatureCache | None = None,
    on_step: OnStep | None = None,
) -> History:
    """Make the candidate that a cross-validation chose from all images; the history ends at its steps.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the model is as before.
    """
    steps = count_steps(config, len(train))
    shown = _counting(on_step, len(found.folds) * steps, (len(found.folds) + 1) * steps)
    return make(model, train, found.chosen, config, cache=cache, on_step=shown)


def make(
    model: AdaptedModel,
    train: Split,
    candidate: Candidate,
    config: FitConfig,
    *,
    cache: FeatureCache | None = None,
    on_step: OnStep | None = None,
) -> History:
    """Make a candidate from images; the model is in the state to start from.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the model is as before.
    """
    current().copy_first(model.owned_tensors().values())
    start = model.copy_owned()
    history = train_model(model, train, None, config, stop_after=candidate.steps, cache=cache, on_step=on_step)
    if history.stopped_by == "interrupt":
        model.load_owned(start)
        raise KeyboardInterrupt
    model.load_owned(model.adapter.between(start, model.copy_owned(), candidate.factor))
    return history


def _look(
    fold: Fold,
    model: AdaptedModel,
    start: Mapping[str, Tensor],
    config: FitConfig,
    cache: FeatureCache | None,
    on_step: OnStep | None,
) -> Looks:
    """Return the predictions of each candidate on the held-out images of a fold."""
    model.load_owned(start)
    looks: Looks = []

    def look_at(candidate: Candidate) -> None:
        with stage("validation"):
            found = predict_split(model, fold.held, config.view, cache=cache)
        looks.append((candidate.steps, candidate.factor, found))

    look_at(START)
    steps = count_steps(config, len(fold.rest))
    stops = {max(1, round(share * steps)) for share in SHARES}

    def look(step: Step, total: int) -> None:
        if step.step in stops:
            trained = model.copy_owned()
            for factor in FACTORS:
                model.load_owned(model.adapter.between(start, trained, factor))
                look_at(Candidate(step.step, factor))
            model.load_owned(trained)
        if on_step:
            on_step(step, total)

    if train_model(model, fold.rest, None, config, cache=cache, on_step=look).stopped_by == "interrupt":
        raise KeyboardInterrupt
    return looks


def _best(scores: Mapping[Candidate, float | None], cautious: Candidate) -> Candidate:
    """Return the candidate with the best AP, of equal ones the nearest to the start; ``cautious`` without any AP."""
    known = {candidate: ap for candidate, ap in sorted(scores.items()) if ap is not None}
    return max(known, key=known.__getitem__, default=cautious)


def _scores(folds: Sequence[Fold], found: Sequence[Mapping[Candidate, Found]]) -> dict[Candidate, float | None]:
    return {candidate: pooled_ap(folds, [fold[candidate] for fold in found]) for candidate in found[0]}


def _counting(on_step: OnStep | None, done: int, total: int) -> OnStep | None:
    """Return a callback that counts the steps of earlier trainings as well."""
    if on_step is None:
        return None
    return lambda step, _: on_step(replace(step, step=done + step.step), total)
