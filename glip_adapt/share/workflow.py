"""Adapt a trunk to labelled images in one call: try methods, train, save, and say what to expect on a page."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.files import check_room
from glip_adapt.core.precision import cpu_threads
from glip_adapt.core.settings import FitConfig, RecipeName, Shots
from glip_adapt.core.timing import recorded, stage
from glip_adapt.data.dataset import Dataset
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel, adapt, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import evaluate, predict_split, score_ap
from glip_adapt.engine.fold_files import FoldFiles
from glip_adapt.engine.held_out import only_scored
from glip_adapt.engine.history import History
from glip_adapt.engine.metrics.coco import ap_interval
from glip_adapt.engine.metrics.matching import balanced_thresholds, match
from glip_adapt.engine.ranks import current
from glip_adapt.engine.selection import START, fit, train_candidate
from glip_adapt.engine.self_training import SelfTraining, self_train
from glip_adapt.share import trials
from glip_adapt.share.card import TrainingFacts, write_facts
from glip_adapt.share.destination import check_free, save_somewhere
from glip_adapt.share.outcome import PAGE_FILE, AdaptResult, Observer, Outcome
from glip_adapt.share.page import write_page
from glip_adapt.share.trials import Budget, Trial
from glip_adapt.trunks.catalogue import Trunk

AUTO = "auto"
FOLDS_FOLDER = ".folds"  # of a call that is under way or was killed
DESCRIPTION_BYTES = 2**16  # room for adapter.json and training.json


def adapt_dataset(
    trunk: Trunk,
    data: Dataset,
    method: str = AUTO,
    *,
    out: Path,
    shots: Shots = "all",
    seed: int = 3,
    classes: Sequence[str | ClassPrompt] | None = None,
    recipe: FitConfig | RecipeName = "published",
    changes: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    start: AdaptedModel | None = None,
    backgrounds: int = 0,
    negatives: Sequence[str] = (),
    unlabelled: Sequence[Path] = (),
    minutes: float | None = None,
    overwrite: bool = False,
    cache: FeatureCache | None = None,
    observer: Observer | None = None,
) -> AdaptResult:
    """Train an adapter, save it with its page, and tell what to expect: ``adapt_dataset(trunk, data, out=folder)``.

    ``auto`` tries the methods that fit the time and the memory by cross-validation, and takes the best. So does a named
    method without validation images, for the number of steps. A named method with validation images is trained by the
    published rule.

    Args:
        trunk: from ``load_trunk``.
        data: with the split train; val and test are used if they are there.
        method: one of ``ADAPTERS``, or ``auto``.
        out: folder for the adapter and its page.
        shots: images per class to draw from train; ``"all"`` takes all with boxes.
        seed: of the few-shot draw, of the folds and of the default recipes.
        classes: wording of the classes; by default their names.
        recipe: of training, or the name of that of trunk, method and shots, see ``default_recipe``.
        changes: fields of a named recipe that differ.
        settings: fields of a named method that differ from its defaults.
        start: an adapter for the same classes to go on from; its method is taken, unless that is zero-shot detection.
            What to expect is found by trainings from the beginning, as it has seen images of ``data``.
        backgrounds: images without boxes to learn from as well.
        negatives: names that are no class, see ``Dataset.with_negatives``; ``detect`` never shows them.
        unlabelled: image files of the same kind without labels; the method that is chosen learns from what it finds in
            them as well, if that helps on held-out images, see ``self_train``.
        minutes: that trials and training may take; by default those of the trunk for ``auto``, else any.
        overwrite: whether an adapter in ``out`` is replaced.
        cache: keeps features of the frozen stages.
        observer: callbacks for progress.

    Raises:
        FileExistsError: before training, if ``out`` holds a model that may not be replaced.
        OSError: before training, if ``out`` cannot be written. After training the adapter is saved in a temporary
            folder, and the message names it.
        ValueError, FileNotFoundError: as ``attach``, ``fit`` and ``Dataset``.
    """
    check_free(out, overwrite)
    check_room(out, DESCRIPTION_BYTES)
    data, classes = data.with_negatives(negatives), (*(classes or data.classes), *negatives)
    with cpu_threads(trunk.spec.threads), recorded() as seconds:
        run = _Run(trunk, data, out, seed, classes, cache or FeatureCache(), observer or Observer())
        train = run.draw(shots, backgrounds)
        if start is not None and unlabelled:
            raise ValueError(
                "An adapter to go on from has seen some of the images, so nothing would tell whether labels of its own "
                "help. Leave out the adapter, or the unlabelled images."
            )
        if start is not None and start.trained_parameters:
            _check_start(start, method, train)
            method, fresh = start.adapter.name, [adapt(trunk, start.adapter).for_prompts(start.prompts)]
        else:  # also from zero-shot detection, which has nothing to go on from
            start, names = None, trials.methods_for(trunk) if method == AUTO else [method]
            given = {name: {**trials.settings_of(trunk, name, recipe), **(settings or {})} for name in names}
            fresh = [attach(trunk, name, classes=run.classes, settings=given[name]) for name in names]
        recipes = [trials.recipe_of(model, train, seed, recipe, changes or {}) for model in fresh]
        if method != AUTO and "val" in data.splits and not unlabelled:
            outcome = run.select_published(start or fresh[0], train, recipes[0])
        else:
            limit = trunk.spec.minutes if method == AUTO else math.inf
            outcome = run.try_methods(fresh, recipes, train, minutes or limit, start, unlabelled)
        return run.finish(outcome, train, overwrite, negatives, seconds)


def _check_start(start: AdaptedModel, method: str, train: Split) -> None:
    """Raise ValueError unless an adapter can go on: with its own method, and for the classes of the images."""
    if method not in (AUTO, start.adapter.name):
        raise ValueError(
            f"The adapter to go on from is one of {start.adapter.name}, not {method}. Leave the method out."
        )
    if start.class_names not in (train.classes, train.aliases):
        raise ValueError(
            f"The adapter to go on from detects {', '.join(start.class_names)}, but the classes here, negatives "
            f"included, are {', '.join(train.classes)}. Give it the same, in the same order."
        )


class _Run:
    """One call of ``adapt_dataset``: what all its stages share."""

    def __init__(
        self,
        trunk: Trunk,
        data: Dataset,
        out: Path,
        seed: int,
        classes: Sequence[str | ClassPrompt],
        cache: FeatureCache,
        observer: Observer,
    ) -> None:
        self.trunk, self.data, self.out, self.seed = trunk, data, out, seed
        self.classes, self.cache, self.observer = classes, cache, observer
        self.zero = attach(trunk, "zero_shot", classes=classes)

    def draw(self, shots: Shots, backgrounds: int) -> Split:
        """Return the images to learn from."""
        whole = self.data.train
        drawn = whole.with_boxes() if shots == "all" else whole.few_shot(shots, self.seed)
        if not len(drawn):
            raise ValueError(f"No image of {whole.name} has a box to learn from. Label some first.")
        return replace(drawn, records=drawn.records + whole.backgrounds(backgrounds, self.seed))

    def select_published(self, model: AdaptedModel, train: Split, recipe: FitConfig) -> Outcome:
        """Train by the published rule, which selects a state on validation images."""
        val, watch = self.data.selection, self.observer
        start = self._look(val, recipe)
        before = time.perf_counter()
        history = fit(
            model, train, val, recipe, cache=self.cache, on_step=watch.on_step, on_validation=watch.on_validation
        )
        if history.stopped_by == "interrupt" and not history.validations:
            raise KeyboardInterrupt  # nothing tells whether the state is any good
        found, expected, seconds = history.best_found, score_ap(history.best_found, val), time.perf_counter() - before
        trial = Trial(method=model.adapter.name, recipe=recipe, expected=expected, seconds=seconds)
        return Outcome(
            model=model,
            history=history,
            tried=(trial,),
            looked_at=val,
            start=start,
            held_out=found,
            expected=expected,
            zero_shot=score_ap(start, val),
            note=f"The {len(val)} validation images chose the state that was kept, so they flatter it a little.",
        )

    def try_methods(
        self,
        models: Sequence[AdaptedModel],
        recipes: Sequence[FitConfig],
        train: Split,
        minutes: float,
        start_from: AdaptedModel | None,
        unlabelled: Sequence[Path],
    ) -> Outcome:
        """Try methods on held-out images, and train the best on all, with labels of its own if these help."""
        val, watch, kept = self.data.splits.get("val"), self.observer, FoldFiles(self.out / FOLDS_FOLDER)
        looked_at, before = val or train, time.perf_counter()
        start = self._look(looked_at, recipes[0])
        spent = current().agreed(time.perf_counter() - before)
        budget = Budget(minutes=minutes, seconds_per_image=spent / len(looked_at))
        tried = trials.try_methods(
            models,
            recipes,
            train,
            val,
            budget,
            kept=kept,
            cache=self.cache,
            on_trial=watch.on_trial,
            on_step=watch.on_step,
        )
        best = trials.best_trial(tried, len(looked_at))
        if best is None or best.found is None:
            return Outcome(
                model=self.zero,
                history=History(0),
                tried=tuple(tried),
                looked_at=looked_at,
                start=start,
                held_out=start,
                expected=score_ap(start, looked_at),
                zero_shot=score_ap(start, looked_at),
                note="No method could be tried, so this is zero-shot detection; the table says why.",
            )
        model = start_from or next(model for model in models if model.adapter.name == best.method)
        own: SelfTraining | None = None
        if unlabelled:
            own = self_train(
                model,
                train,
                unlabelled,
                best.recipe,
                val=val,
                found=best.found,
                cache=self.cache,
                on_step=watch.on_step,
            )
            history = own.history
        else:
            history = train_candidate(model, train, best.found, best.recipe, cache=self.cache, on_step=watch.on_step)
        how = f"by {len(val)} validation images" if val else f"by cross-validation in {len(best.found.folds)} parts"
        notes = [f"Chosen {how}."]
        if best.expected is None and len(train) == 1:
            notes.append("One image cannot tell what to expect of others.")
        elif best.expected is None:
            notes.append("No class is on images of two parts, so nothing tells what to expect.")
        elif any(learned < set(train.category_ids) for learned in best.found.scored.values()):
            notes.append("A class counts in the AP to expect where other images show it too.")
        if best.found.chosen == START and not (own and own.rounds):
            notes.append(
                "Training only made it worse on images that it had not seen, so it detects as before training."
            )
        if own is not None:
            notes.append(own.summary(len(unlabelled)))
        if start_from:
            notes.append("It went on from another adapter; what to expect was found by trainings from the beginning.")
        return Outcome(
            model=model,
            history=history,
            tried=tuple(tried),
            looked_at=looked_at,
            start=best.found.held_out_start,
            held_out=own.held_out if own and own.rounds else best.found.held_out,
            expected=best.expected,
            zero_shot=best.found.start,
            note=" ".join(notes),
            scored=best.found.scored,
        )

    def finish(
        self,
        outcome: Outcome,
        train: Split,
        overwrite: bool,
        negatives: Sequence[str],
        seconds: Mapping[str, float],
    ) -> AdaptResult:
        """Choose thresholds, save, score on test if there is one, write facts and page."""
        model, truth = outcome.model, coco_ground_truth(outcome.looked_at)
        view = outcome.tried[0].recipe.view
        thresholds = balanced_thresholds(match(outcome.held_out, truth)) | dict.fromkeys(negatives, 1.0)
        by_label = (thresholds[name] for name in outcome.looked_at.classes)  # a prompt may have another name
        model.thresholds = dict(zip(model.class_names, by_label, strict=True))
        ranks = current()
        folder = ranks.first(lambda: save_somewhere(model, self.out, overwrite))
        if folder == self.out:
            shutil.rmtree(self.out / FOLDS_FOLDER, ignore_errors=True)
        before = after = None
        if test := self.data.splits.get("test"):
            with stage("test"):
                before = evaluate(self.zero, test, view, cache=self.cache)
                after = evaluate(model, test, view, cache=self.cache)
        counted: Sequence[Mapping[str, Any]] = outcome.held_out
        if outcome.scored is not None:
            truth = truth | {"annotations": only_scored(truth["annotations"], outcome.scored)}
            counted = only_scored(outcome.held_out, outcome.scored)
        interval = ap_interval(counted, truth) if outcome.expected is not None else None
        scores = {"AP to expect": outcome.expected, "zero-shot AP on the same images": outcome.zero_shot}
        if before and after:
            scores |= {"test AP, zero-shot": before.ap, "test AP": after.ap}
        metrics = {name: ap for name, ap in scores.items() if ap is not None}
        facts = TrainingFacts(data=train.name, shots=train.shots, seed=self.seed, metrics=metrics)
        ranks.first(lambda: write_facts(facts, folder))
        result = AdaptResult(
            model=model,
            history=outcome.history,
            folder=folder,
            tried=outcome.tried,
            expected=outcome.expected,
            interval=interval,
            zero_shot=outcome.zero_shot,
            before=before,
            after=after,
            seconds=seconds,
        )
        ranks.first(lambda: write_page(folder / PAGE_FILE, result.to_page(outcome, train)))
        return result

    def _look(self, split: Split, recipe: FitConfig) -> list[dict[str, Any]]:
        with stage("zero-shot"):
            return predict_split(self.zero, split, recipe.view, cache=self.cache, on_image=self.observer.on_image)
