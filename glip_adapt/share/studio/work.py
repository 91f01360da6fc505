"""What the page has computed: boxes by names, an adapter, both side by side, pictures to label next."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glip_adapt.core.plain_text import duration
from glip_adapt.core.structures import Detections
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.images import load_rgb
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.load import load_adapter
from glip_adapt.engine.optimise import Step
from glip_adapt.share.destination import free_folder
from glip_adapt.share.outcome import Observer
from glip_adapt.share.prelabels import prelabels
from glip_adapt.share.studio.adapters import ADAPTER, adapters_in
from glip_adapt.share.studio.jobs import Job
from glip_adapt.share.studio.labels import LabelStore
from glip_adapt.share.suggesting import show_above, suggest
from glip_adapt.share.workflow import adapt_dataset
from glip_adapt.trunks.catalogue import Trunk

MOST_LOOKED_AT = 200
"""Unlabelled pictures that a suggestion looks at; of more, so many are drawn."""
_LEAST_SCORE = 0.05  # of a box that is sent to the page


class Work:
    """A trunk at work on the pictures of a store."""

    def __init__(self, store: LabelStore, trunk: Trunk) -> None:
        self.store, self.trunk = store, trunk
        self._cache, self._guard = FeatureCache(), threading.Lock()
        self._models: dict[tuple[str, ...], AdaptedModel] = {}

    def find(self, key: str, names: Sequence[str], adapter: str) -> list[dict[str, Any]]:
        """Return boxes that an adapter finds in a picture, or without one (``""``) the trunk by names alone.

        Raises:
            ValueError: if there is neither an adapter nor a name, or the picture cannot be read.
        """
        with self._guard:
            return self._look(self._model(names, adapter), key)

    def compare(self, key: str, adapter: str) -> dict[str, list[dict[str, Any]]]:
        """Return what is found in a picture by the names of the classes alone, and what by an adapter."""
        with self._guard:
            after = self._model((), adapter)
            before = self._model(after.class_names, "")
            return {"before": self._look(before, key), "after": self._look(after, key)}

    def adapt(self, job: Job, method: str, minutes: float | None) -> dict[str, Any]:
        """Adapt to the labelled pictures, and save the adapter in their folder."""
        job.tell("reading the labels")
        if not any(labels.boxes for *_, labels in self.store.overview()):
            raise ValueError("No picture has a box yet. Label a few first, with each class on one at least.")
        data = load_dataset(self.store.folder, format=self.store.format)
        out = free_folder(self.store.folder / ADAPTER)
        with self._guard:
            watch = _observer(job)
            done = adapt_dataset(self.trunk, data, method, out=out, minutes=minutes, cache=self._cache, observer=watch)
        facts = done.to_json()
        shown = ("method", "steps", "kept_start", "expected_ap", "interval", "zero_shot_ap", "trained_parameters")
        return {"adapter": done.folder.name} | {name: facts[name] for name in shown}

    def suggest(self, job: Job, count: int, names: Sequence[str], adapter: str) -> list[dict[str, str]]:
        """Return id and reason of pictures to label next, best first."""
        entries = self.store.overview()
        unlabelled = sorted(key for key, _, labels in entries if not labels.is_labelled)
        drawn = random.Random(0).sample(unlabelled, min(MOST_LOOKED_AT, len(unlabelled)))
        key_of = {self.store.pictures[key]: key for key in drawn}
        labelled = []
        if len(unlabelled) < len(entries):
            data = load_dataset(self.store.folder, format=self.store.format)
            labelled = [data.splits["train"]] if "train" in data.splits else []
        with self._guard:
            found = suggest(
                self._model(names, adapter),
                key_of,
                count,
                labelled=labelled,
                cache=self._cache,
                on_image=lambda done, total: job.tell("looking at pictures", done, total),
            )
        return [{"id": key_of[suggestion.path], "reason": suggestion.reason} for suggestion in found]

    def _model(self, names: Sequence[str], adapter: str) -> AdaptedModel:
        """Return the model of an adapter, or of names alone; the last ones are kept."""
        if adapter and adapter not in adapters_in(self.store.folder):
            raise ValueError(f"There is no adapter {adapter} in the folder. Load the page again.")
        if not (adapter or names):
            raise ValueError("Name at least one class, such as raccoon.")
        key = (adapter, *(() if adapter else names))
        if key not in self._models:
            for old in list(self._models)[:-3]:
                del self._models[old]
            folder = self.store.folder / adapter
            loaded = load_adapter(folder, trunk=self.trunk) if adapter else None
            self._models[key] = loaded or attach(self.trunk, "zero_shot", classes=names)
        return self._models[key]

    def _look(self, model: AdaptedModel, key: str) -> list[dict[str, Any]]:
        """Return the boxes that a model finds in a picture, one for each place."""
        image = load_rgb(self.store.pictures[key], self.store.size_of(key))
        found = model.predict(image)
        limit = found.boxes_xyxy.new_tensor((image.width, image.height)).repeat(2)
        inside = found.boxes_xyxy.clamp(min=0).minimum(limit)
        found = replace(found, boxes_xyxy=inside).select((inside[:, 2:] > inside[:, :2]).all(dim=1))
        found = found.select(prelabels(found, dict.fromkeys(model.class_names, _LEAST_SCORE)))
        return _to_json(found, show_above(model))


def _to_json(found: Detections, thresholds: dict[str, float]) -> list[dict[str, Any]]:
    """Return detections as the page draws them: left, top, width and height in pixels."""
    edges = found.boxes_xyxy.tolist()
    columns = zip(edges, found.scores.tolist(), found.labels.tolist(), found.reach(thresholds).tolist(), strict=True)
    return [
        {"name": found.class_names[label], "box": [x, y, right - x, bottom - y], "score": score, "shown": shown}
        for (x, y, right, bottom), score, label, shown in columns
    ]


def _observer(job: Job) -> Observer:
    """Return callbacks that tell a job how far an adaptation is, and stop it."""
    trying = ["training"]

    def on_trial(method: str, seconds: float) -> None:
        trying[0] = f"trying {method}, about {duration(seconds)}"
        job.tell(trying[0])

    def on_step(step: Step, total: int) -> None:
        job.add_loss(step.loss, step.step == 1)
        job.tell(trying[0], step.step, total)

    return Observer(
        on_image=lambda done, total: job.tell("looking at the pictures before training", done, total),
        on_trial=on_trial,
        on_step=on_step,
        on_validation=lambda found: job.tell(trying[0], job.done, job.total),
    )
