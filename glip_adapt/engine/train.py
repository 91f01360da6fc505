"""Train an adapted model: one loop for every method, which returns a history and prints nothing.

The protocol is the few-shot one of GLIP (arXiv 2112.03857, section E.3; tools/finetune.py and
maskrcnn_benchmark/{engine/trainer.py,solver/} of the public code); its numbers are in trunks/recipes.py. Images of a
batch go through the network one by one, as they do there on four GPUs, or together if they are small and of one size.
Either way their losses share the batch's normalisation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor

from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.settings import FitConfig
from glip_adapt.core.timing import stage
from glip_adapt.data.captioned import CaptionedSplit
from glip_adapt.data.composing import composed
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel, AdaptedTrunk
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import check_scorable, predict_split, score_ap
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.history import History, Validation
from glip_adapt.engine.learners import learner_of
from glip_adapt.engine.metrics.protocol import Predictions
from glip_adapt.engine.optimise import Step
from glip_adapt.engine.ranks import Ranks, current
from glip_adapt.engine.samples import draw_batches

logger = logging.getLogger(__name__)

STEP_COST = 3  # of an image in a training step, in detections of an image: forward, and twice that backward


def train_model(
    model: AdaptedModel,
    train: Split | CaptionedSplit,
    val: Split | None,
    config: FitConfig,
    *,
    watcher: AdaptedModel | None = None,
    stop_after: int | None = None,
    cache: FeatureCache | None = None,
    on_step: Callable[[Step, int], None] | None = None,
    on_validation: Callable[[Validation], None] | None = None,
) -> History:
    """Train the tensors that ``model`` owns; afterwards it holds the state that was best on ``val``, or the last one.

    The seed fixes every draw; on a CPU with one thread also every bit (kernels that add in parallel, on a GPU for
    example, differ in the last ones). Ctrl-C ends training and keeps the best state so far.

    Several ranks (``engine/ranks.py``) divide the images of each batch and take the steps of one process, up to
    rounding; dropout draws other numbers on each.

    Args:
        model: from ``attach``; for captions from ``AdaptedTrunk.for_captions``.
        train: images to learn from, with boxes for classes or for the phrases of captions.
        val: images that select the best state and drive the plateau rule; without them the last state is kept and
            training runs to its ceiling.
        config: the recipe.
        watcher: model of the same tensors that is scored on ``val``; by default the one that is trained.
        stop_after: steps after which training ends at the latest, on the schedule of the whole recipe.
        cache: keeps the features of the frozen stages; by default one of 2 GiB for this training.
        on_step: called after each step with it and the total number of steps.
        on_validation: called after each evaluation.

    Raises:
        ValueError: if the method owns nothing, a split is empty or has other classes, or ``val`` has nothing to find.
        NonFiniteLossError: if a loss or gradient is NaN or infinite; names the step and the images. The best state is
            kept.
    """
    watcher = watcher or model
    _check_trainable(model, train)
    if val is not None:
        _check_selecting(watcher, val)
    cache = cache or FeatureCache()
    cache.begin_run()
    ranks = current()
    ranks.check_alike(_facts(model, train, config), model.device)
    ranks.copy_first(model.owned_tensors().values())
    history = History(count_steps(config, len(train)))
    shown = _composed(train, config)
    validate_every = config.validate_every or _interval(config, len(train), len(val or ()))
    features = FrozenFeatures(model, cache, config.max_long_side, config.precision)
    learner = learner_of(model, features, config, history.total_steps, ranks)
    looks_back = val is not None and bool(config.factors or config.module_factors)
    start = model.copy_owned() if looks_back else {}
    trained: dict[str, Tensor] = {}  # the best state after a step: from it and from the last one, ways lead back
    last = history.total_steps if stop_after is None else min(stop_after, history.total_steps)
    bad_validations, batches = 0, draw_batches(model, shown, features, config, ranks)
    with closing(batches), _training(model, config, history, ranks) as kept:
        for step in range(last + 1):
            if step > 0:
                with stage("training"):
                    with ranks.together():  # an image may be unreadable
                        batch = next(batches)
                    history.steps.append(learner.take(step, batch))
                if on_step:
                    on_step(history.steps[-1], history.total_steps)
            is_due = step % validate_every == 0 or step == last
            if val is not None and (is_due if step > 0 else config.keep_start):
                done, found = _validate(watcher, val, config, cache, history, step)
                leads = step > 0 and done.ap >= (history.best_trained.ap if history.best_trained else 0.0)
                if done.is_best or (leads and looks_back):
                    state = model.copy_owned()
                    kept.update(state if done.is_best else {})
                    trained = state if leads else trained
                history.note(done, found)
                if step > 0:  # the start is a candidate, and no mark that training must reach in time
                    bad_validations = 0 if leads else bad_validations + 1
                    learner.after_validation(done.ap)
                if on_validation:
                    on_validation(done)
                if bad_validations >= config.stop_patience:
                    history.stopped_by = "patience"
                    break
        if looks_back and val is not None and (far := history.best_trained):
            ends = {len(history.steps): model.copy_owned(), far.step: trained}

            def look(state: Mapping[str, Tensor], step: int, factor: float, module: str) -> None:
                model.load_owned(state)
                done, found = _validate(watcher, val, config, cache, history, step, factor, module)
                kept.update(state if done.is_best else {})
                history.note(done, found)
                if on_validation:
                    on_validation(done)

            _look_back(model.adapter, config, history, start, ends, kept, look)
    return history


def _look_back(
    adapter: Adapter,
    config: FitConfig,
    history: History,
    start: Mapping[str, Tensor],
    ends: Mapping[int, Mapping[str, Tensor]],
    kept: Mapping[str, Tensor],
    look: Callable[[Mapping[str, Tensor], int, float, str], None],
) -> None:
    """Look at states between the start and trained ones: of the whole network, then of one module after the other.

    Args:
        adapter: of the states.
        config: says which states.
        history: of the looks so far.
        start: state before training.
        ends: step → trained state.
        kept: the best state so far.
        look: scores a state of a step, a factor and a module; a better one is ``kept`` from then on.
    """
    for (step, end), factor in product(ends.items(), sorted(config.factors, reverse=True)):
        look(adapter.between(start, end, factor), step, factor, "")
    if not history.best_step or not history.best_factor:  # the start is best
        return
    step, end = history.best_step, ends[history.best_step]
    factors = {min(1.0, part * history.best_factor) for part in config.module_factors} - {history.best_factor}
    for module, factor in product(dict.fromkeys(map(_module_of, end)), sorted(factors, reverse=True)):
        moved = adapter.between(_part(start, module), _part(end, module), factor)
        look({**kept, **moved}, step, factor, module)


def _module_of(name: str) -> str:
    """Return the module of the network that holds a tensor."""
    return name.partition(".")[0]


def _part(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """Return the tensors of a module."""
    return {name: tensor for name, tensor in state.items() if _module_of(name) == module}


def train_captions(
    adapted: AdaptedTrunk, captions: CaptionedSplit, val: Split | None, config: FitConfig, **options: Any
) -> History:
    """Train the tensors of an adapted trunk on images with captions of their own; see ``train_model``.

    Args:
        adapted: from ``adapt``.
        captions: images to learn from.
        val: images with boxes of any classes that select, by a model of the same tensors.
        config: the recipe.
        options: of ``train_model``.

    Raises:
        ValueError: if the tensors belong to a list of classes, or as ``train_model``.
    """
    watcher = None if val is None else adapted.for_classes(val.classes)
    return train_model(adapted.for_captions(captions), captions, val, config, watcher=watcher, **options)


def count_steps(config: FitConfig, images: int) -> int:
    """Return the ceiling of a recipe in steps, for a number of training images."""
    return config.max_steps or max(1, config.epochs * config.copies * images // config.batch_size)


def _interval(config: FitConfig, images: int, val_images: int) -> int:
    """Return the steps between validations where a recipe leaves them open.

    By the published rule, whose learning rate hangs on them, that is an epoch. Otherwise validation takes no more time
    than training; it is told by numbers of images, so that the result does not depend on the speed of the machine.
    """
    epoch = max(1, config.copies * images // config.batch_size)
    if config.schedule == "plateau":
        return epoch
    return max(epoch, math.ceil(val_images / (STEP_COST * config.batch_size)))


def _check_trainable(model: AdaptedModel, train: Split | CaptionedSplit) -> None:
    if model.adapter.stage is Stage.NONE:
        raise ValueError(f"{model.adapter.name} owns nothing that could be trained. Attach another method.")
    if len(train) == 0:
        raise ValueError(f"{train.name} has no images to learn from.")
    if isinstance(train, Split):
        check_scorable(model, train)


def _check_selecting(model: AdaptedModel, val: Split) -> None:
    check_scorable(model, val)
    if all(box.iscrowd for record in val.records for box in val.annotations_of(record)):
        raise ValueError(
            f"{val.name} has no labelled object that could be found, so that all states would do alike on it. Label "
            "some of its images, or leave it out: then cross-validation chooses."
        )


def _composed(train: Split | CaptionedSplit, config: FitConfig) -> Split | CaptionedSplit:
    """Return the images that batches are drawn from.

    Raises:
        ValueError: if images with captions of their own are to be composed.
    """
    if config.compositions is None:
        return train
    if isinstance(train, CaptionedSplit):
        raise ValueError(f"{train.name} has captions, which a composition would not follow. Leave compositions out.")
    return composed(train, config.compositions, config.seed)


def _facts(model: AdaptedModel, train: Split | CaptionedSplit, config: FitConfig) -> dict[str, Any]:
    """Return what all ranks must have alike, by name."""
    images: list[Any]
    if isinstance(train, Split):
        images = [(record.image_id, train.annotations_of(record)) for record in train.records]
    else:
        images = [(one.record.image_id, one.caption, one.record.target.labels.tolist()) for one in train.images]
    return {
        "weights": model.trunk.checksum,
        "classes": repr(model.prompts),
        "settings": (repr(model.adapter), config),
        "images": images,
    }


@contextmanager
def _training(model: AdaptedModel, config: FitConfig, history: History, ranks: Ranks) -> Iterator[dict[str, Tensor]]:
    """Seed torch, and yield where the best state so far is kept; at the end or Ctrl-C, the model gets it back."""
    kept = dict[str, Tensor]()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        _seed_dropout(model.device, config.seed + ranks.rank)
        model.network.set_recompute(config.recompute)
        try:
            yield kept
        except KeyboardInterrupt:
            logger.warning("Interrupted after %d steps; the best state so far is kept.", len(history.steps))
            history.stopped_by = "interrupt"
        finally:
            if kept:
                model.load_owned(kept)
            model.train(False)
            model.network.set_recompute(False)


def _seed_dropout(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from, and no generator of other devices; views have a generator of their own."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _validate(
    model: AdaptedModel,
    val: Split,
    config: FitConfig,
    cache: FeatureCache,
    history: History,
    step: int,
    factor: float = 1.0,
    module: str = "",
) -> tuple[Validation, Predictions]:
    """Score the model: return the result, to be noted once the state is kept, and the predictions.

    As in the public trainer, a tie counts as best. A part of the way is no better where all scores are zero: they tell
    nothing.
    """
    with stage("validation"):
        found = predict_split(model, val, config.view, cache=cache)
        ap = current().agreed(score_ap(found, val) or 0.0)  # processors may differ in the last bit
    is_best = history.best_ap is None or (ap >= history.best_ap and (ap > 0 or factor == 1))
    return Validation(step, ap, is_best, factor, module), found
