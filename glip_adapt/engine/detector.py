"""Detectors: images in, ``Detections`` in their own pixels out.

``Detector`` is what prediction, evaluation and the feature cache work with. Adapted models and baked ones both are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glip_adapt.core.captions import Caption, ClassPrompt
from glip_adapt.core.precision import autocast
from glip_adapt.core.renamed import renamed
from glip_adapt.core.settings import Merging, Precision, ViewConfig, Views
from glip_adapt.core.structures import Detections, FrozenState, Fused, ImageBatch, Pyramid, SizeHW, TextFeatures, merge
from glip_adapt.data.images import load_rgb, to_rgb
from glip_adapt.data.transforms import ShownView, View, collate, padded_shape, view_image, views_of
from glip_adapt.engine.batches import in_batches
from glip_adapt.engine.feeding import ahead
from glip_adapt.engine.views import in_image, merge_views
from glip_adapt.trunks.protocol import Network

AnyImage = str | Path | Image.Image | np.ndarray
"""Path, PIL image of any mode, or (H, W, 3) uint8 array in RGB."""


class Detector(ABC):
    """A network and the text of one list of classes.

    Attributes:
        network: the network.
        trunk_name: the trunk that it was made from.
        view: how images are shown unless something else is asked for.
        prompts: wording of each class, in label order.
        class_counts: classes of each caption; there are several where zero-shot classes do not fit into one.
        frozen_state: type of the last stage output that training cannot change. Methods that agree in it share their
            features, such as zero-shot and prompt tuning.
        frozen_checksum: of the weights that the frozen stages run with; detectors that agree in it share features.
        thresholds: class name → lowest score of a box to show, chosen on held-out images; empty if none were.
        text_digest: of the text that the frozen state depends on; empty if it depends on none.
        sentence: whose phrases are detected; None for a list of classes.
    """

    network: Network
    trunk_name: str
    view: ViewConfig
    prompts: tuple[ClassPrompt, ...]
    class_counts: tuple[int, ...]
    frozen_state: type[FrozenState]
    frozen_checksum: str
    text_digest: str
    thresholds: Mapping[str, float] = MappingProxyType({})
    sentence: Caption | None = None

    if not TYPE_CHECKING:
        __getattr__ = renamed(glip="model.network", classes="model.prompts", bake="glip_adapt.bake(model)")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in label order."""
        return tuple(prompt.name for prompt in self.prompts)

    @property
    def frozen_network(self) -> Network:
        """A network whose image encoder gives the frozen features of all detectors of this ``frozen_checksum``."""
        return self.network

    @abstractmethod
    def texts(self) -> list[TextFeatures]:
        """Return the text features of each caption."""

    @abstractmethod
    def train(self, training: bool = True) -> None:
        """Set train mode for trained parts, or eval mode for all."""

    def prefix(self, images: ImageBatch) -> FrozenState:
        """Return the result of the frozen stages; it is constant, so that it may be kept and reused."""
        if self.frozen_state is ImageBatch:
            return images
        with torch.no_grad():
            pyramid = self.network.encode_image(images)
            return pyramid if self.frozen_state is Pyramid else self.network.fuse(pyramid, self.texts()[0])

    def finish(
        self, prefix: FrozenState, prepared: Sequence[Any] = (), texts: Sequence[TextFeatures] = ()
    ) -> list[Any]:
        """Return the raw predictions that follow from a frozen state, one per caption.

        Args:
            prefix: of B images.
            prepared: while training, the targets of these images, from ``network.objective.prepare``.
            texts: captions that are read instead of the model's own; one may hold a row for each image.
        """
        if isinstance(prefix, Fused):
            return [self.network.predict(prefix, prepared)]
        pyramid = self.network.encode_image(prefix) if isinstance(prefix, ImageBatch) else prefix
        return [self.network.predict(self.network.fuse(pyramid, text), prepared) for text in texts or self.texts()]

    def outputs(self, images: ImageBatch) -> list[Any]:
        """Return raw predictions, one per caption; the images are encoded once."""
        return self.finish(self.prefix(images))

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a string, and that an iterable of strings
        self, images: AnyImage, *, threshold: float = ..., view: ViewConfig | None = ..., views: Views | None = ...
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: Iterable[AnyImage],
        *,
        threshold: float = ...,
        view: ViewConfig | None = ...,
        views: Views | None = ...,
    ) -> list[Detections]: ...

    def predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        threshold: float = 0.0,
        view: ViewConfig | None = None,
        views: Views | None = None,
    ) -> Detections | list[Detections]:
        """Detect the classes in images: ``model.predict(["a.jpg", "b.jpg"], threshold=0.3)``.

        Args:
            images: one image or several; see ``AnyImage``. Files are turned as their EXIF orientation says.
            threshold: lowest score in [0, 1] of a box that is returned; ``decode`` of the trunk's family says what a
                score is. GLIP drops class scores up to 0.05 before.
            view: resizing and precision; by default those of the trunk.
            views: sizes, mirror images and tiles that are looked at one after the other; by default one view.

        Returns:
            For one image its detections, for several a list: boxes in pixels of the image, best first, as many as the
            family keeps per caption (GLIP 100, and more where scores tie; of several views 1000), with
            ``class_names``.

        Raises:
            FileNotFoundError: if an image is missing.
            ValueError: if a file cannot be decoded, or an array is not (H, W, 3) uint8.
        """
        every = [images] if isinstance(images, AnyImage) else images
        self.train(False)
        detected = self._in_one_view(every, view or self.view)
        if views is not None:
            detected = self._in_views(every, view or self.view, views)
        found = [one.above(threshold) for one in detected]
        return found[0] if isinstance(images, AnyImage) else found

    @torch.no_grad()
    def _in_views(self, images: Iterable[AnyImage], view: ViewConfig, views: Views) -> Iterator[Detections]:
        """Yield the detections of each image in several views."""

        def seen(opened: Image.Image, shown: ShownView) -> FrozenState:
            pixels = collate([view_image(opened, shown.view, view.max_long_side)])
            with autocast(self.device, view.precision):
                return self.prefix(pixels.to(self.device))

        for opened in ahead(open_image, images, self.device):
            size_hw = opened.height, opened.width
            states = ((shown, seen(opened, shown)) for shown in views_of(size_hw, views, view.short_side))
            yield merged_detections(self, states, size_hw, views.merging, view.precision)

    @torch.no_grad()
    def _in_one_view(self, images: Iterable[AnyImage], view: ViewConfig) -> Iterator[Detections]:
        """Yield the detections of each image; small images of one padded size go through the network together."""
        shown = View(view.short_side, flip=False)

        def open_and_resize(image: AnyImage) -> tuple[Tensor, SizeHW]:
            opened = open_image(image)
            return view_image(opened, shown, view.max_long_side), (opened.height, opened.width)

        resized = ahead(open_and_resize, images, self.device)
        for batch in in_batches((one, padded_shape((one[0].shape[1], one[0].shape[2]))) for one in resized):
            pixels, sizes_hw = zip(*batch, strict=True)
            with autocast(self.device, view.precision):
                prefix = self.prefix(collate(pixels).to(self.device))
            yield from detections(self, prefix, sizes_hw, view)

    def labelled(self, captions: Sequence[Detections]) -> Detections:
        """Return the detections of each caption in one image as one, best first, with the names of the classes.

        As in the public code (maskrcnn_benchmark/engine/inference.py), each caption keeps all its boxes: none
        suppresses a box of another caption, and no limit holds over all of them.
        """
        first = [sum(self.class_counts[:place]) for place in range(len(self.class_counts))]
        parts = [replace(found, labels=found.labels + label) for found, label in zip(captions, first, strict=True)]
        spans = self.sentence.spans if self.sentence else ()
        return replace(merge(parts).cpu(), class_names=self.class_names, spans=spans)


@torch.no_grad()
def detections(
    model: Detector,
    prefix: FrozenState,
    sizes_hw: Sequence[SizeHW],
    view: ViewConfig,
    limit: int | None = None,
) -> list[Detections]:
    """Return the detections that follow from the frozen state of B images, in pixels of each of ``sizes_hw``.

    The model must be in eval mode already when the frozen state is computed. ``limit`` is the number of boxes of a
    caption, by default that of the family.
    """
    asked = {} if limit is None else {"limit": limit}  # a family of one's own may keep a fixed number
    with autocast(model.device, view.precision):
        outputs = model.finish(prefix)
    captions = [model.network.decode(output, sizes_hw, **asked) for output in outputs]
    return [model.labelled(parts) for parts in zip(*captions, strict=True)]


@torch.no_grad()
def merged_detections(
    model: Detector,
    states: Iterable[tuple[ShownView, FrozenState]],
    size_hw: SizeHW,
    merging: Merging,
    precision: Precision,
) -> Detections:
    """Return the detections of one image in all its views, best first, as edges in pixels of the image.

    Of each caption the best 1000 boxes are kept, and those that tie with the last of them. The model must be in eval
    mode already when the frozen states are computed.

    Args:
        model: the detector.
        states: each view with the frozen state of the image in it.
        size_hw: (height, width) of the image, pixels.
        merging: one of ``MERGERS`` of ``engine/views.py``.
        precision: of the stages that are not frozen.
    """
    last_pixel = model.network.last_pixel
    captions: list[list[Detections]] = [[] for _ in model.class_counts]
    for shown, state in states:
        with autocast(model.device, precision):
            outputs = model.finish(state)
        for parts, output in zip(captions, outputs, strict=True):
            (candidates,) = model.network.candidates(output)
            parts.append(in_image(candidates.cpu(), shown, state.image_sizes_hw[0], size_hw, last_pixel))
    return model.labelled([merge_views(merge(parts), merging, last_pixel) for parts in captions])


def open_image(image: AnyImage) -> Image.Image:
    """Return an image in RGB."""
    if isinstance(image, str | Path):
        return load_rgb(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"Expected an array of (height, width, 3) uint8 in RGB, got {image.shape} {image.dtype}. Convert it first."
        )
    return Image.fromarray(image)
