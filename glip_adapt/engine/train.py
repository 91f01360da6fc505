"""One training loop for every method: ``fit`` returns a history and prints nothing.

The protocol is the few-shot one of GLIP (arXiv 2112.03857, section E.3; tools/finetune.py and
maskrcnn_benchmark/{engine/trainer.py,solver/} of the public code); its numbers are in recipes.py. Pictures of a batch
go through the network one by one, as they do there on four GPUs, or together where they are small and of one size;
either way their losses share the batch's normalisation.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from glip_adapt.adapters.protocol import Stage
from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import FitConfig
from glip_adapt.core.structures import SizeHW
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.data.transforms import View, training_views, view_target
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.batches import in_batches, stack
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import check_scorable, evaluate
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.optimise import Step, Stepper
from glip_adapt.trunks.catalogue import default_recipe

logger = logging.getLogger(__name__)

KEPT_SAMPLES = 500  # prepared targets, up to 200 kB each


@dataclass(frozen=True)
class Validation:
    """One evaluation on the validation split, after ``step`` steps; 0 is before training."""

    step: int
    ap: float
    is_best: bool


@dataclass
class History:
    """What happened during one fit."""

    total_steps: int
    "ceiling that the recipe allows"
    steps: list[Step] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    stopped_by: Literal["ceiling", "patience", "interrupt"] = "ceiling"

    @property
    def best_ap(self) -> float | None:
        """Validation AP of the state that was kept, as a fraction; None without a validation split."""
        best = [v.ap for v in self.validations if v.is_best]
        return best[-1] if best else None


def fit(
    model: AdaptedModel,
    train: Split,
    val: Split | None = None,
    config: FitConfig | None = None,
    *,
    cache: FeatureCache | None = None,
    on_step: Callable[[Step, int], None] | None = None,
    on_validation: Callable[[Validation], None] | None = None,
) -> History:
    """Train the tensors that ``model`` owns; afterwards it holds the state that was best on ``val``.

    The seed fixes every draw; on a CPU with one thread also every bit (kernels that add in parallel, on a GPU for
    example, differ in the last ones). Ctrl-C ends training and keeps the best state so far.

    Args:
        model: from ``attach``.
        train: pictures to learn from, all of them with boxes.
        val: what selects the best state and drives the plateau rule; without it the last state is kept and training
            runs to its ceiling.
        config: the recipe; by default that of the trunk and method for the shots of ``train`` (``default_recipe``).
        cache: keeps what the frozen stages make of each picture and view; by default one of 2 GiB for this training.
        on_step: called after each step with it and the total number of steps.
        on_validation: called after each evaluation.

    Raises:
        ValueError: if the method owns nothing, or the split is empty or has other classes.
        NonFiniteLossError: if a loss or gradient is NaN or infinite; names the step and the pictures. The best state
            is kept.
    """
    config = config or default_recipe(model.trunk_name, model.adapter.name, train.shots)
    _check_trainable(model, train)
    if val is not None:
        check_scorable(model, val)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        cache = cache or FeatureCache()
        cache.begin_run()
        return _Fit(model, train, val, config, cache, on_step, on_validation).run()


def _check_trainable(model: AdaptedModel, train: Split) -> None:
    if model.adapter.stage is Stage.NONE:
        raise ValueError(f"{model.adapter.name} owns nothing that could be trained. Attach another method.")
    if not len(train):
        raise ValueError(f"{train.name} has no pictures to learn from.")
    check_scorable(model, train)


class _Fit:
    """The state of one training run."""

    def __init__(
        self,
        model: AdaptedModel,
        train: Split,
        val: Split | None,
        config: FitConfig,
        cache: FeatureCache,
        on_step: Callable[[Step, int], None] | None,
        on_validation: Callable[[Validation], None] | None,
    ) -> None:
        self.model, self.train, self.val, self.config, self.cache = model, train, val, config, cache
        self.features = FrozenFeatures(model, cache, config.max_long_side, config.precision)
        self.sample = functools.lru_cache(maxsize=KEPT_SAMPLES)(self._build_sample)
        self.on_step, self.on_validation = on_step, on_validation
        self.stepper = Stepper(
            parameter_groups(model, config),
            device=model.device,
            precision=config.precision,
            clip_norm=config.clip_norm,
        )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.stepper.optimiser,
            mode="max",
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=config.min_learning_rate,
        )
        pictures = config.copies * len(train)
        self.validate_every = config.validate_every or max(1, pictures // config.batch_size)
        self.history = History(config.max_steps or max(1, config.epochs * pictures // config.batch_size))
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.stepper.optimiser, self.history.total_steps)
        self.best: dict[str, Tensor] | None = None
        self.bad_validations = 0

    def run(self) -> History:
        batches = _batches(len(self.train), self.config)
        self.model.network.set_recompute(self.config.recompute)
        try:
            if self.val is not None and self.config.keep_start:
                self._validate(0)
            for step in range(1, self.history.total_steps + 1):
                self._step(step, [self.sample(*drawn) for drawn in next(batches)])
                if self.val is not None and (step % self.validate_every == 0 or step == self.history.total_steps):
                    self._validate(step)
                    if self.bad_validations >= self.config.stop_patience:
                        self.history.stopped_by = "patience"
                        break
        except KeyboardInterrupt:
            logger.warning("Interrupted after %d steps; the best state so far is kept.", len(self.history.steps))
            self.history.stopped_by = "interrupt"
        finally:
            if self.best is not None:
                self.model.load_owned(self.best)
            self.model.train(False)
            self.model.network.set_recompute(False)
        return self.history

    def _step(self, step: int, batch: Sequence[_Sample]) -> None:
        self.model.train()
        ids = [sample.record.image_id for sample in batch]
        done = self.stepper.take(step, f"pictures {ids}", self._losses(batch))
        if self.config.schedule == "cosine":
            self.cosine.step()
        self.history.steps.append(done)
        if self.on_step:
            self.on_step(done, self.history.total_steps)

    def _losses(self, batch: Sequence[_Sample]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield what goes through the network together, and its share of the batch's losses."""
        objective = self.model.network.objective
        scale = objective.scale([sample.prepared for sample in batch])
        for together in in_batches((sample, sample.shape_hw) for sample in batch):
            prefix = stack([self.features.of([sample.record], sample.view) for sample in together])
            with autocast(self.model.device, self.config.precision):
                (output,) = self.model.finish(prefix)
            names = ", ".join(f"{sample.record.image_id} ({sample.record.path.name})" for sample in together)
            yield f"image {names}", objective.losses(output, [sample.prepared for sample in together], scale)

    def _build_sample(self, position: int, view: View) -> _Sample:
        """Return a picture of the split in one view; the picture itself is not opened beyond its size."""
        record = self.train.records[position]
        size_hw = record.header.size_hw
        target = view_target(record.target, size_hw, view, self.config.max_long_side).to(self.model.device)
        padded_hw = self.features.padded_shape(record, view)
        return _Sample(record, view, padded_hw, self.model.network.objective.prepare(target, padded_hw))

    def _validate(self, step: int) -> None:
        """Score, keep the state if it is at least as good as the best, and lower the rates on a plateau.

        As in the public trainer, a tie counts as best, and an AP of exactly 0 never advances the plateau rule.
        """
        assert self.val is not None
        ap = evaluate(self.model, self.val, self.config.view, cache=self.cache).ap or 0.0
        is_best = self.history.best_ap is None or ap >= self.history.best_ap
        self.bad_validations = 0 if is_best else self.bad_validations + 1
        if is_best:
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.owned_tensors().items()}
        if ap > 0 and self.config.schedule == "plateau":
            self.plateau.step(ap)
        done = Validation(step, ap, is_best)
        self.history.validations.append(done)
        if self.on_validation:
            self.on_validation(done)


def parameter_groups(model: AdaptedModel, config: FitConfig) -> list[dict[str, Any]]:
    """Return AdamW groups of the owned parameters: the text encoder has its own rate, biases theirs and no decay."""
    seams, groups = model.network.seams, dict[tuple[float, float], list[Tensor]]()
    for name, tensor in model.owned_tensors().items():
        if not tensor.requires_grad:  # running statistics are saved, not trained
            continue
        rate = config.text_learning_rate if name.startswith(f"{seams.text_encoder}.") else config.learning_rate
        is_bias = name.rpartition(".")[2] in seams.biases
        key = (rate * config.bias_rate_factor, 0.0) if is_bias else (rate, config.weight_decay)
        groups.setdefault(key, []).append(tensor)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


@dataclass(frozen=True)
class _Sample:
    """One image in one view, padded to a shape, with its prepared target."""

    record: ImageRecord
    view: View
    shape_hw: SizeHW
    prepared: Any


def _batches(pictures: int, config: FitConfig) -> Iterator[list[tuple[int, View]]]:
    """Yield positions and views for ever: shuffled epochs of ``copies`` × the pictures, a view drawn for each.

    A batch holds views of one short side, so that pictures of one size can go through the network together; a picture
    waits until there are enough of its side.
    """
    generator = torch.Generator().manual_seed(config.seed)
    views = training_views(config.short_sides, config.flip)
    waiting: dict[int, list[tuple[int, View]]] = {side: [] for side in config.short_sides}
    while True:
        for position in torch.randperm(config.copies * pictures, generator=generator).tolist():
            view = views[int(torch.randint(len(views), (1,), generator=generator))]
            waiting[view.short_side].append((position % pictures, view))
            if len(waiting[view.short_side]) == config.batch_size:
                yield waiting[view.short_side]
                waiting[view.short_side] = []
