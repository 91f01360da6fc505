"""Serve many adapters by name on one trunk: its weights are held once, and an image is encoded once for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from glip_adapt.core.config import describe_unknown
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.load import load_adapter
from glip_adapt.engine.together import detect_together, show
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
        shown = {id(image): show(image, view) for image in {id(image): image for image in held}.values()}
        asked = [(models[name], shown[id(image)]) for image, name in zip(held, tasks, strict=True)]
        return detect_together(asked, view)
