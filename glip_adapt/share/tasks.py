"""Serve many adapters by name on one trunk: its weights are held once, and an image is encoded once for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from glip_adapt.core.config import describe_unknown
from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections, ImageBatch, Pyramid
from glip_adapt.data.transforms import View, collate, padded_shape, resize_shape, view_image
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.batches import in_batches
from glip_adapt.engine.detector import detections
from glip_adapt.engine.load import load_adapter
from glip_adapt.trunks.catalogue import Trunk


class TaskSet(Mapping[str, AdaptedModel]):
    """Adapted models of one trunk by name. The trunk itself never changes."""

    def __init__(self, trunk: Trunk) -> None:
        """Start without tasks."""
        self.trunk = trunk
        self._models: dict[str, AdaptedModel] = {}

    def add(self, name: str, model: AdaptedModel | str | Path) -> None:
        """Add a model of this trunk, or load one from its folder; its text is encoded at once.

        Args:
            name: of the task.
            model: from ``attach``, or the folder of a saved adapter.

        Raises:
            ValueError: if the name is taken, or the model belongs to another trunk.
        """
        if name in self._models:
            raise ValueError(f"There is a task {name!r} already. Remove it first, or choose another name.")
        if isinstance(model, str | Path):
            model = load_adapter(model, trunk=self.trunk)
        if model.trunk is not self.trunk:
            raise ValueError(
                f"The model of task {name!r} was attached to another copy of {model.trunk.name}. "
                "Attach it to the trunk of this set, TaskSet.trunk."
            )
        model.train(False)
        with torch.no_grad():
            model.texts()
        self._models[name] = model

    def remove(self, name: str) -> AdaptedModel:
        """Take a task out and return its model.

        Raises:
            KeyError: if there is no such task.
        """
        model = self[name]
        del self._models[name]
        return model

    def __getitem__(self, name: str) -> AdaptedModel:
        if name not in self._models:
            raise KeyError(f"Unknown task {describe_unknown(name, self._models)}.")
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @torch.no_grad()
    def predict(
        self, images: Sequence[Image.Image], tasks: Sequence[str], view: ViewConfig | None = None
    ) -> list[Detections]:
        """Return the detections of each task in its image, best first, as by ``predict`` of its model alone.

        Small images of one padded size are encoded together, and an image of several tasks is encoded once. Tasks that
        train the image encoder encode their images themselves.

        Args:
            images: N RGB images of any size; the same object may come several times.
            tasks: the name of the task for each of them.
            view: resizing and precision; by default those of the trunk.

        Raises:
            ValueError: if there are not as many tasks as images.
            KeyError: if there is no such task.
        """
        if len(images) != len(tasks):
            raise ValueError(f"Expected one task for each of {len(images)} images, got {len(tasks)}.")
        models = {name: self[name] for name in dict.fromkeys(tasks)}
        view = view or self.trunk.spec.view
        held = list(images)  # once, since a lazy sequence opens an image anew at each access
        keys = [(id(image), name) for image, name in zip(held, tasks, strict=True)]
        asked = set(keys)
        found: dict[tuple[int, str], Detections] = {}
        for batch in _batches(held, view):
            encoded = _Encoded(self.trunk, batch, view)
            for name, model in models.items():
                rows = [row for row, image in enumerate(batch) if (id(image), name) in asked]
                if rows:
                    model.train(False)
                    sizes_hw = [(batch[row].height, batch[row].width) for row in rows]
                    seen = detections(model, encoded.of(model, rows), sizes_hw, view)
                    found |= zip([(id(batch[row]), name) for row in rows], seen, strict=True)
        return [found[key] for key in keys]


class _Encoded:
    """A batch of images, encoded by the trunk at the first request."""

    def __init__(self, trunk: Trunk, images: Sequence[Image.Image], view: ViewConfig) -> None:
        shown = View(view.short_side, flip=False)
        batch = collate([view_image(image, shown, view.max_long_side) for image in images])
        self._trunk, self._batch, self._view = trunk, batch.to(trunk.network.device), view
        self._pyramid: Pyramid | None = None

    def of(self, model: AdaptedModel, rows: list[int]) -> ImageBatch | Pyramid:
        """Return the last result that the model shares with the trunk, for some of the images."""
        sizes_hw = tuple(self._batch.image_sizes_hw[row] for row in rows)
        if model.frozen_state is ImageBatch:
            return ImageBatch(self._batch.pixels[rows], sizes_hw)
        if self._pyramid is None:
            with autocast(model.device, self._view.precision):
                self._pyramid = self._trunk.network.encode_image(self._batch)
        return replace(self._pyramid, cells=self._pyramid.cells[rows], image_sizes_hw=sizes_hw)


def _batches(images: Sequence[Image.Image], view: ViewConfig) -> Iterator[list[Image.Image]]:
    """Yield the distinct images in batches of one padded size."""
    shaped = [
        (image, padded_shape(resize_shape((image.height, image.width), view.short_side, view.max_long_side)))
        for image in {id(image): image for image in images}.values()
    ]
    return in_batches(sorted(shaped, key=lambda entry: entry[1]))
