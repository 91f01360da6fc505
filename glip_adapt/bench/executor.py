"""Do one run: attach, fit, score, and measure its cost."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch

from glip_adapt.bench.events import RunOutcome
from glip_adapt.bench.plan import ZERO_SHOT, BenchPlan, ProtocolConfig, RunKey
from glip_adapt.bench.records import CrossValidated, RunCost, RunMetrics, capture_environment
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.config import from_mapping
from glip_adapt.core.memory import peak_bytes, reset_peak
from glip_adapt.core.precision import cpu_threads
from glip_adapt.core.settings import FitConfig, ViewConfig
from glip_adapt.core.timing import recorded, stage
from glip_adapt.data.dataset import Dataset, load_dataset
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.history import History
from glip_adapt.engine.selection import bounded, cross_validate, train_candidate
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.catalogue import Trunk, load_trunk
from glip_adapt.trunks.released import trunk_spec

CACHE_BYTES = 2 * 2**30  # of frozen features in memory, of all workers together


@dataclass(frozen=True, kw_only=True)
class BuildFitExecutor:
    """Makes the executor of a worker; it is sent to worker processes.

    Attributes:
        plan: checked, suites spelled out.
        device: where the networks go; workers on ``cuda`` are dealt the GPUs in turn.
        vocabulary: ``vocab.txt`` of bert-base-uncased, for trunks that read it and machines without a network.
        cache: what keeps frozen features: one of this process, or a folder that all share; None: memory of each worker.
        workers: how many there are on this machine.
    """

    plan: BenchPlan
    device: str = "cpu"
    vocabulary: Path | str | None = None
    cache: FeatureCache | Path | None = None
    workers: int = 1

    def __call__(self, worker: int) -> FitExecutor:
        """Return the executor of the worker at a position from 0."""
        device = self.device
        if device == "cuda" and self.workers > 1 and torch.cuda.device_count():
            device = f"cuda:{worker % torch.cuda.device_count()}"
        precision, cache = self.plan.protocol.kept_features, self.cache
        if cache is None:
            cache = FeatureCache(memory_bytes=CACHE_BYTES // self.workers, precision=precision)
        elif not isinstance(cache, FeatureCache):  # from a folder it is memory-mapped
            cache = FeatureCache(folder=cache, memory_bytes=0, precision=precision)
        elif cache.precision != precision:
            raise ValueError(f"The cache keeps {cache.precision}, but the plan asks for kept_features = {precision!r}.")
        return FitExecutor(self.plan, device, self.vocabulary, cache, self.workers)


class FitExecutor:
    """Does one run at a time; keeps the current trunk and all datasets. Keys of a plan come trunk by trunk."""

    def __init__(
        self, plan: BenchPlan, device: str, vocabulary: Path | str | None, cache: FeatureCache, workers: int
    ) -> None:
        """Load nothing yet; see ``BuildFitExecutor``."""
        self.plan, self.device, self.vocabulary, self.cache, self.workers = plan, device, vocabulary, cache, workers
        self.load_dataset = functools.cache(load_dataset)
        self._capture = functools.cache(capture_environment)
        self._zero_shot: dict[tuple[str, str], float | None] = {}  # by trunk and dataset
        self._trunk: Trunk | None = None

    def trunk(self, name: str) -> Trunk:
        """Return a trunk; only the last one is kept."""
        if self._trunk is None or self._trunk.name != name:
            self._trunk = None  # frees the memory before the next one is loaded
            checkpoint = self.plan.checkpoints.get(name)
            self._trunk = load_trunk(name, checkpoint=checkpoint, vocabulary=self.vocabulary, device=self.device)
        return self._trunk

    def environment(self, key: RunKey) -> Mapping[str, Any]:
        """Return where a run takes place."""
        return self._capture(_describe(self.device), threads_of(self.plan, key.trunk, self.workers))

    def execute(
        self, key: RunKey, config: Mapping[str, Any], directory: Path, on_step: Callable[[Any, int], None]
    ) -> RunOutcome:
        """Fit, score once, and leave predictions, history and adapter in ``directory``."""
        with cpu_threads(threads_of(self.plan, key.trunk, self.workers)), recorded() as stages:
            outcome = self._execute(key, config, directory, on_step)
        return replace(outcome, cost=replace(outcome.cost, stages=stages))

    def _execute(
        self, key: RunKey, config: Mapping[str, Any], directory: Path, on_step: Callable[[Any, int], None]
    ) -> RunOutcome:
        reset_peak(self.device)
        data, trunk = self.load_dataset(key.dataset), self.trunk(key.trunk)
        started = time.perf_counter()  # only the first run of a worker loads them
        protocol = from_mapping(ProtocolConfig, config["protocol"], key.name)
        data = data.scored(protocol.annotation_ids).with_negatives(protocol.negatives)
        shown = from_mapping(ViewConfig, config["predict"], key.name)
        model = attach(trunk, key.method, classes=_classes(data, protocol), settings=config["settings"])
        train_source, val_ap, selected_on, choice, adapter_bytes = None, None, None, None, 0
        if config["fit"] is not None:
            train, recipe = training_split(data, key, protocol), from_mapping(FitConfig, config["fit"], key.name)
            if protocol.selection == "cross_validation":
                history, choice = self._cross_validated(model, train, recipe, protocol.folds, on_step)
                selected_on = train.name
            else:
                val = selection_split(data, key, protocol)
                history = train_model(model, train, val, recipe, cache=self.cache, on_step=on_step)
                selected_on = val.name if val else None
            if history.stopped_by == "interrupt":
                raise KeyboardInterrupt  # half a run is no record
            val_ap, train_source = history.best_ap, train.source
            _write_json(directory / "history.json", history.to_json())
            model.save(directory / "adapter")
            adapter_bytes = sum(file.stat().st_size for file in (directory / "adapter").iterdir())
        with stage("test"):
            found = evaluate(
                model,
                _scored(data, protocol),
                shown,
                views=protocol.views,
                cache=self.cache,
                metric=data.metric,
                boxes_per_caption=data.boxes_per_caption,
            )
        _write_json(directory / "predictions.json", found.predictions)
        seconds, peak, trained = time.perf_counter() - started, peak_bytes(self.device), model.trained_parameters
        cost = RunCost(trained_parameters=trained, adapter_bytes=adapter_bytes, peak_bytes=peak, seconds=seconds)
        others = [entry for entry in protocol.retention if entry != key.dataset]
        retention = {PurePath(entry).name: self._retained(model, entry, protocol, shown) for entry in others}
        return RunOutcome(
            metrics=RunMetrics(values=found.values, per_class=found.per_class, val_ap=val_ap, retention=retention),
            cost=cost,
            train_source=train_source,
            selected_on=selected_on,
            cross_validated=choice,
        )

    def _cross_validated(
        self, model: AdaptedModel, train: Split, recipe: FitConfig, folds: int, on_step: Callable[[Any, int], None]
    ) -> tuple[History, CrossValidated]:
        """Train a model without validation images; return the history and what cross-validation chose."""
        recipe = bounded(recipe, len(train))
        found = cross_validate(model, train, recipe, folds=folds, cache=self.cache, on_step=on_step)
        history = train_candidate(model, train, found, recipe, cache=self.cache, on_step=on_step)
        return history, CrossValidated(
            expected_ap=found.estimate,
            start_ap=found.start,
            steps=found.chosen.steps,
            factor=found.chosen.factor,
            folds=len(found.folds),
        )

    def _retained(self, model: AdaptedModel, dataset: str, protocol: ProtocolConfig, shown: ViewConfig) -> float | None:
        """Return the AP of a model on another dataset, without training for it.

        Tensors that belong to a list of classes are left out under another one: there the model is the trunk.
        """
        data = self.load_dataset(dataset).scored(protocol.annotation_ids)
        classes, split, cell = _classes(data, protocol), _scored(data, protocol), (model.trunk.name, dataset)
        options: dict[str, Any] = {"views": protocol.views, "cache": self.cache}
        options |= {"metric": data.metric, "boxes_per_caption": data.boxes_per_caption}
        with stage("other datasets"):
            if not model.class_bound:
                return evaluate(model.for_classes(classes), split, shown, **options).ap
            if cell not in self._zero_shot:
                settings = {"names_per_caption": data.names_per_caption}
                fresh = attach(model.trunk, ZERO_SHOT, classes=classes, settings=settings)
                self._zero_shot[cell] = evaluate(fresh, split, shown, **options).ap
        return self._zero_shot[cell]


def threads_of(plan: BenchPlan, trunk: str, workers: int) -> int:
    """Return the CPU threads of a run.

    Threads share a sum between them and so move its last bits. ``BenchPlan.threads`` fixes their number. Otherwise the
    nano trunks, which a second one makes slower, have one, so that their numbers are the same for any workers.
    """
    if plan.threads is not None:
        return plan.threads
    return trunk_spec(trunk).threads or max(1, (os.cpu_count() or 1) // workers)


def training_split(data: Dataset, key: RunKey, protocol: ProtocolConfig) -> Split:
    """Return the images that a run learns from."""
    drawn = (
        data.train.with_boxes()
        if key.shots == "all"
        else data.train.few_shot(key.shots, key.seed, protocol.few_shot_source)
    )
    return replace(drawn, records=drawn.records + data.train.backgrounds(protocol.backgrounds, key.seed))


def selection_split(data: Dataset, key: RunKey, protocol: ProtocolConfig) -> Split | None:
    """Return the images that select a state while training, if any do.

    Those of ``best_on_few_val`` are what tools/finetune.py of the public code selects on with ``--use_prepared_data``.
    """
    if protocol.selection == "best_on_few_val" and key.shots != "all":
        return data.selection.few_shot(key.shots, key.seed, protocol.few_shot_source)
    return data.selection if protocol.selection in ("best_on_val", "best_on_few_val") else None


def _classes(data: Dataset, protocol: ProtocolConfig) -> tuple[str, ...] | tuple[ClassPrompt, ...]:
    return (data.prompts if protocol.prompts == "official" else None) or data.classes


def _scored(data: Dataset, protocol: ProtocolConfig) -> Split:
    return data.test if protocol.test_split == "test" else data.val


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _describe(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
