"""Self-training: a model labels images that nobody labelled, and learns from them beside its few labelled ones.

Whether that helps is not taken for granted. Each round is made without the images of a fold as well, and is scored on
them; the number of rounds with the best AP over all folds is then made from all images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glip_adapt.core.settings import FitConfig
from glip_adapt.core.timing import stage
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import predict_split
from glip_adapt.engine.held_out import Fold, Found, pooled_ap, split_up
from glip_adapt.engine.history import History
from glip_adapt.engine.metrics.matching import balanced_thresholds, match
from glip_adapt.engine.pseudo_labels import label_images, together
from glip_adapt.engine.pseudo_labels import unlabelled as record_of
from glip_adapt.engine.ranks import current
from glip_adapt.engine.selection import (
    FOLDS,
    START,
    Candidate,
    CrossValidation,
    OnStep,
    bounded,
    cautious_of,
    cross_validate,
    make,
    shots_of,
)
from glip_adapt.engine.train import count_steps
from glip_adapt.trunks.released import default_recipe

NEVER = 2.0
"""Threshold above every score."""


@dataclass(frozen=True, kw_only=True)
class SelfTraining:
    """What labels of its own gave a model.

    Attributes:
        rounds: that were made; 0 if they did not help on held-out images.
        scores: AP on the held-out images after 0, 1, … rounds, fractions in [0, 1]; None if no class can be scored.
        thresholds: class name → lowest score of a label: that of the best F1 on held-out images.
        labels: the labels that the model learned from in the last round; None without rounds.
        held_out: the predictions on held-out images after this number of rounds, in COCO result form.
        history: of the last training.
    """

    rounds: int
    scores: tuple[float | None, ...]
    thresholds: Mapping[str, float]
    labels: Split | None
    held_out: Found
    history: History

    def summary(self, images: int) -> str:
        """Return a sentence for people: whether labels in so many images helped."""
        before, after = self.scores[0], max((ap for ap in self.scores if ap is not None), default=None)
        if before is None or after is None:
            return "Nothing could be held out to tell whether labels of its own help, so it has none."
        if not self.rounds:
            return f"What it finds in {images} unlabelled images did not help on held-out ones, and is not used."
        count = sum(len(record.annotations) for record in self.labels.records) if self.labels else 0
        gain = f"AP {100 * before:.1f} → {100 * after:.1f} on held-out images"
        return f"It also learned from {count} boxes that it found itself in {images} unlabelled images: {gain}."


def self_train(
    model: AdaptedModel,
    train: Split,
    unlabelled: Sequence[str | Path],
    config: FitConfig | None = None,
    *,
    val: Split | None = None,
    rounds: int = 1,
    found: CrossValidation | None = None,
    cache: FeatureCache | None = None,
    on_step: OnStep | None = None,
) -> SelfTraining:
    """Train on a few labelled images, and on what the model finds in unlabelled ones if that helps.

    In each round the model of the round before labels all unlabelled images; training then begins again from the
    start, with both, and trusts a label by its score. A class that no labelled image shows, such as a negative one,
    gets no labels. A single image cannot be held out, so that nothing tells whether labels help, and none are used.

    Args:
        model: from ``attach``.
        train: the labelled images.
        unlabelled: image files of the same kind.
        config: the recipe; by default that of the trunk and method for the shots of ``train``.
        val: other images to hold out, instead of folds of ``train``.
        rounds: most rounds to try.
        found: of ``cross_validate`` with the same images and recipe, if it is known; it tells steps and thresholds.
        cache: keeps the features of the frozen stages.
        on_step: called after each step with it and the number of steps of the training that is under way.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if there are no unlabelled images, one cannot be read, ``rounds`` is below 1, or as for ``fit``.
        KeyboardInterrupt: on Ctrl-C; the model is as before.
    """
    if not unlabelled:
        raise ValueError("Self-training needs unlabelled images, and there are none. Name a folder that holds some.")
    if rounds < 1:
        raise ValueError(f"Expected at least 1 round of self-training, got {rounds}. Without rounds, use fit.")
    cache = cache or FeatureCache()
    config = bounded(config or default_recipe(model.trunk_name, model.adapter.name, shots_of(train)), len(train))
    found = found or cross_validate(model, train, config, val=val, cache=cache, on_step=on_step)
    balanced = balanced_thresholds(match(found.held_out, coco_ground_truth(val or train)))
    shown = {one.category_id for record in train.records for one in train.annotations_of(record)}
    known = [key in shown for key in train.category_ids]
    thresholds = {
        name: balanced[name] if is_known else NEVER for name, is_known in zip(train.classes, known, strict=True)
    }
    run = _Run(
        model,
        [record_of(Path(file)) for file in unlabelled],
        config,
        _candidates(found, config, len(train)),
        thresholds,
        cache,
        on_step,
    )
    start = model.copy_owned()
    try:
        can_tell = len(train) > 1 or val is not None
        folds = split_up(train, FOLDS, config.seed, val)
        looks = run.hold_out(folds, rounds if can_tell else 0)
        scores = tuple(pooled_ap(folds, found) if can_tell else None for found in looks)
        by_rounds = {count: ap for count, ap in enumerate(scores) if ap is not None}
        chosen = current().agreed(max(by_rounds, key=by_rounds.__getitem__, default=0))
        *_, (labels, history) = run.rounds(train, chosen)
    except BaseException:
        model.load_owned(start)
        raise
    return SelfTraining(
        rounds=chosen,
        scores=scores,
        thresholds=thresholds,
        labels=labels,
        held_out=[entry for fold in looks[chosen] for entry in fold],
        history=history,
    )


def _candidates(found: CrossValidation, config: FitConfig, images: int) -> tuple[Candidate, Candidate]:
    """Return what to make without rounds, and in each round: the cautious candidate where training did not help."""
    return found.chosen, cautious_of(count_steps(config, images)) if found.chosen == START else found.chosen


@dataclass(frozen=True)
class _Run:
    """What all trainings of one call share."""

    model: AdaptedModel
    unlabelled: list[ImageRecord]
    config: FitConfig
    candidates: tuple[Candidate, Candidate]
    thresholds: Mapping[str, float]
    cache: FeatureCache
    on_step: OnStep | None

    def hold_out(self, folds: Sequence[Fold], rounds: int) -> list[list[Found]]:
        """Return predictions on held-out images, by number of rounds and fold; afterwards the model is as before."""
        looks: list[list[Found]] = [[] for _ in range(rounds + 1)]
        start = self.model.copy_owned()
        for fold in folds:
            for count, _ in enumerate(self.rounds(fold.rest, rounds)):
                with stage("validation"):
                    looks[count].append(predict_split(self.model, fold.held, self.config.view, cache=self.cache))
            self.model.load_owned(start)
        return looks

    def rounds(self, train: Split, count: int) -> Iterator[tuple[Split | None, History]]:
        """Make rounds 0, 1, … ``count`` in turn; yield the labels that each learned from, and its training.

        The model is in the state of that round.
        """
        model, view, cache = self.model, self.config.view, self.cache
        start, config = model.copy_owned(), replace(self.config, weights="score")
        labels: Split | None = None
        for number in range(count + 1):
            if number:
                with stage("pseudo-labels"):
                    labels = label_images(model, self.unlabelled, train, self.thresholds, view=view, cache=cache)
                model.load_owned(start)
            images, candidate = together(train, labels) if labels else train, self.candidates[number > 0]
            if model.adapter.newton_ridge is not None:  # it learns from what it has looked at, and from no more
                looks = math.ceil(candidate.steps * len(images) / len(train))
                candidate, config = replace(candidate, steps=looks), replace(config, max_steps=looks)
            yield labels, make(model, images, candidate, config, cache=cache, on_step=self.on_step)
