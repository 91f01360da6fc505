"""Tasks at work behind a service: images of many requests are decoded in threads and detected in batches."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from glip_adapt.adapters import storage
from glip_adapt.core.config import describe_unknown
from glip_adapt.core.files import file_sha256
from glip_adapt.core.memory import give_back, used_bytes
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.sizes import SizeHW
from glip_adapt.core.structures import Detections
from glip_adapt.data.images import TooManyPixelsError, decode_rgb
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.load import load_adapter
from glip_adapt.engine.together import Shown, detect_together, show
from glip_adapt.share.baked import load_baked
from glip_adapt.share.detecting import SCHEMA, THRESHOLD
from glip_adapt.share.serving.batcher import Batcher
from glip_adapt.share.serving.metrics import Metrics
from glip_adapt.share.serving.uploads import Limits, RefusedError
from glip_adapt.trunks.catalogue import Trunk

MOST_IN_BATCH = 16
WAIT_SECONDS = 0.003  # for further images: little beside what one takes
CACHE_BYTES = 2**27  # of features, which several tasks share
GIVE_BACK_EVERY = 256  # images; without it the heap grows by some 20 kB at each small one
DECODERS = min(4, os.cpu_count() or 1)  # threads

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A detector by name.

    Attributes:
        name: in requests.
        model: the detector.
        view: how images are shown to it.
        version: changes with the file of the adapter.
    """

    name: str
    model: Detector
    view: ViewConfig
    version: str

    @property
    def thresholds(self) -> Mapping[str, float]:
        """Class name → lowest score of a box, unless a request names another one."""
        return self.model.thresholds or dict.fromkeys(self.model.class_names, THRESHOLD)

    def to_json(self) -> dict[str, Any]:
        """Return what a program may want to know."""
        return {
            "task": self.name,
            "version": self.version,
            "trunk": self.model.trunk_name,
            "classes": list(self.model.class_names),
            "thresholds": dict(self.thresholds),
        }


@dataclass(frozen=True)
class Seen:
    """The detections of a task in one image of (height, width) ``size_hw``, and the seconds from upload to result."""

    task: Task
    found: Detections
    size_hw: SizeHW
    seconds: float

    def above(self, threshold: float | None) -> Detections:
        """Return the boxes that reach a score, or without one the threshold of their class."""
        return self.found.above(self.task.thresholds if threshold is None else threshold)

    def to_json(self, threshold: float | None) -> dict[str, Any]:
        """Return the boxes above a threshold; they are edges in pixels of the upright image."""
        found = self.above(threshold)
        columns = (found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist())
        boxes = [
            {"class": found.class_names[label], "score": score, "box_xyxy": box}
            for box, score, label in zip(*columns, strict=True)
        ]
        height, width = self.size_hw
        start = {"schema": SCHEMA, "task": self.task.name, "width": width, "height": height}
        return start | {"seconds": round(self.seconds, 4), "detections": boxes}


def load_tasks(
    folders: Mapping[str, Path],
    open_trunk: Callable[[Path], Trunk],
    view_of: Callable[[ViewConfig], ViewConfig] = lambda view: view,
    device: torch.device | str | None = None,
) -> dict[str, Task]:
    """Return tasks by name: adapters on one trunk, and baked models, each with a network of its own.

    Args:
        folders: name → folder saved by ``adapt`` or ``bake``.
        open_trunk: returns the trunk of an adapter; it is called once, if there is an adapter.
        view_of: returns how images are shown, from how the trunk is shown them.
        device: of baked models.

    Raises:
        FileNotFoundError: if there is no model in a folder.
        AdapterMismatchError: if adapters belong to several trunks, or a file is damaged.
    """
    trunk: Trunk | None = None
    tasks = {}
    for name, folder in folders.items():
        model: Detector
        if (file := folder / storage.BAKED_DESCRIPTION_FILE).is_file():
            model = load_baked(folder, device)
        else:
            trunk, file = trunk or open_trunk(folder), folder / storage.DESCRIPTION_FILE
            model = load_adapter(folder, trunk=trunk)
        model.train(False)
        with torch.no_grad():
            model.texts()
        version = f"{name}-{file_sha256(file)[:8]}"
        tasks[name] = Task(name=name, model=model, view=view_of(model.view), version=version)
    return tasks


class Service:
    """Tasks, and all that their requests share: threads, features of images, limits, numbers."""

    def __init__(self, tasks: Mapping[str, Task], limits: Limits | None = None) -> None:
        self.tasks, self.limits = dict(tasks), limits or Limits()
        self._cache = FeatureCache(memory_bytes=CACHE_BYTES)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoding")
        self._batcher = Batcher(self._detect, most=MOST_IN_BATCH, wait_seconds=WAIT_SECONDS)
        self._waiting, self._seconds_of_image, self._since_given_back = 0, 0.0, 0
        self.metrics = Metrics(self._gauges())

    def close(self) -> None:
        """Finish what was asked for, and end the threads."""
        self._decoders.shutdown()
        self._batcher.close()

    def task(self, name: str | None) -> Task:
        """Return a task by its name, which may be left out where there is one only.

        Raises:
            RefusedError: 404 if there is no such task, 400 if a name is needed.
        """
        if name is None and len(self.tasks) > 1:
            raise RefusedError(400, f"Say which task: {', '.join(self.tasks)}. GET /tasks describes them.")
        chosen = next(iter(self.tasks)) if name is None else name
        if chosen not in self.tasks:
            raise RefusedError(404, f"Unknown task {describe_unknown(chosen, self.tasks)}.")
        return self.tasks[chosen]

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request, from before its body is read, since bodies take memory; the event loop alone calls it.

        Raises:
            RefusedError: 503 if there are too many.
        """
        if self._waiting >= self.limits.most_waiting:
            wait = max(1, math.ceil(self._waiting * self._seconds_of_image))
            raise RefusedError(
                503,
                f"{self._waiting} requests wait already. Come again in {wait} s.",
                {"Retry-After": str(wait), "Connection": "close"},
            )
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def detect(self, task: Task, image: bytes) -> Seen:
        """Return what a task finds in the bytes of an image.

        Raises:
            RefusedError: 413 if it has too many pixels, 422 if it is no image.
        """
        started = time.perf_counter()
        shown = await self.aside(self._shown, task, image)
        found = await asyncio.wrap_future(self._batcher.submit((task, shown)))
        return Seen(task, found, shown.size_hw, time.perf_counter() - started)

    async def aside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return the result of a function that waits or decodes, from another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    def _gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        kept = self._cache
        return {
            "glip_adapt_waiting_requests": ("Requests that are being answered.", lambda: self._waiting),
            "glip_adapt_feature_cache_hits": ("Images with kept features.", lambda: kept.statistics.memory_hits),
            "glip_adapt_feature_cache_misses": ("Images encoded anew.", lambda: kept.statistics.misses),
            "glip_adapt_feature_cache_bytes": ("Features that are kept.", lambda: kept.statistics.memory_bytes),
            "process_resident_memory_bytes": ("Memory of the process.", used_bytes),
        }

    def _shown(self, task: Task, image: bytes) -> Shown:
        try:
            return show(decode_rgb(image, self.limits.most_pixels), task.view)
        except TooManyPixelsError as error:
            raise RefusedError(413, str(error)) from error
        except ValueError as error:
            raise RefusedError(422, str(error)) from error

    def _detect(self, asked: Sequence[tuple[Task, Shown]]) -> list[Detections]:
        """Return the detections of a batch; the thread of the batcher alone calls it."""
        started = time.perf_counter()
        self._cache.begin_run()  # what no batch has used for longest makes room
        found: dict[int, Detections] = {}
        for view in {task.view for task, _ in asked}:
            places = [place for place, (task, _) in enumerate(asked) if task.view == view]
            pairs = [(asked[place][0].model, asked[place][1]) for place in places]
            found |= zip(places, detect_together(pairs, view, self._cache), strict=True)
        self._count(asked, time.perf_counter() - started)
        self._tidy(len(asked))
        return [found[place] for place in range(len(asked))]

    def _count(self, asked: Sequence[tuple[Task, Shown]], seconds: float) -> None:
        self._seconds_of_image += 0.2 * (seconds / len(asked) - self._seconds_of_image)
        self.metrics.batch_images.observe(len(asked))
        self.metrics.batch_seconds.observe(seconds)
        for task, _ in asked:
            self.metrics.images.labels(task.name).inc()

    def _tidy(self, images: int) -> None:
        """Now and then return to the system what features that left the cache have taken."""
        self._since_given_back += images
        if self._since_given_back >= GIVE_BACK_EVERY:
            self._since_given_back = 0
            give_back()
