"""Several detectors at several images in one go: small images in batches, each encoded once for all that share it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections, ImageBatch, Pyramid, SizeHW
from glip_adapt.data.transforms import View, collate, padded_shape, view_image
from glip_adapt.engine.batches import in_batches
from glip_adapt.engine.cache import FeatureCache, to
from glip_adapt.engine.cache_files import CacheKey
from glip_adapt.engine.detector import Detector, detections


@dataclass(frozen=True, eq=False)  # the same object is the same image
class Shown:
    """An image as a network sees it.

    Attributes:
        pixels: (3, h, w) uint8 RGB, resized.
        size_hw: (height, width) in pixels of the image itself.
    """

    pixels: Tensor
    size_hw: SizeHW

    @property
    def padded_hw(self) -> SizeHW:
        """(height, width) after padding."""
        return padded_shape((self.pixels.shape[1], self.pixels.shape[2]))


def show(image: Image.Image, view: ViewConfig) -> Shown:
    """Return an RGB image, resized for a network; any thread may do it."""
    shown = View(view.short_side, flip=False)
    return Shown(view_image(image, shown, view.max_long_side), (image.height, image.width))


@torch.no_grad()
def detect_together(
    asked: Sequence[tuple[Detector, Shown]], view: ViewConfig, cache: FeatureCache | None = None
) -> list[Detections]:
    """Return the detections of each pair of a detector and an image, best first, as by ``predict`` of it alone.

    Small images of one padded size go through the network together. An image is encoded once for all detectors that
    agree in ``frozen_checksum``; those that train the image encoder encode their images themselves.

    Args:
        asked: N pairs; the same ``Shown`` may come several times.
        view: with which the images were shown, and precision.
        cache: keeps features of images for later calls. Features that were computed in another batch may differ in the
            last bits.
    """
    models = list(dict.fromkeys(model for model, _ in asked))
    pairs = {(model, image) for model, image in asked}
    images = sorted(dict.fromkeys(image for _, image in asked), key=lambda image: image.padded_hw)
    found: dict[tuple[Detector, Shown], Detections] = {}
    for batch in in_batches((image, image.padded_hw) for image in images):
        encoded = _Encoded(batch, view, cache)
        for model in models:
            rows = [row for row, image in enumerate(batch) if (model, image) in pairs]
            if rows:
                model.train(False)
                sizes_hw = [batch[row].size_hw for row in rows]
                seen = detections(model, encoded.of(model, rows), sizes_hw, view)
                found |= zip([(model, batch[row]) for row in rows], seen, strict=True)
    return [found[pair] for pair in asked]


class _Encoded:
    """A batch of images of one padded size, encoded at the first request of those that share an image encoder."""

    def __init__(self, images: Sequence[Shown], view: ViewConfig, cache: FeatureCache | None) -> None:
        self._batch, self._view, self._cache = collate([image.pixels for image in images]), view, cache
        self._pyramids: dict[str, Pyramid] = {}

    def of(self, model: Detector, rows: list[int]) -> ImageBatch | Pyramid:
        """Return the last result that a model shares with others, for some of the images, on its device."""
        if model.frozen_state is ImageBatch:
            return self._images(rows).to(model.device)
        if model.frozen_checksum not in self._pyramids:
            self._pyramids[model.frozen_checksum] = self._encode(model)
        return _rows(self._pyramids[model.frozen_checksum], rows)

    def _images(self, rows: list[int]) -> ImageBatch:
        return ImageBatch(self._batch.pixels[rows], tuple(self._batch.image_sizes_hw[row] for row in rows))

    def _encode(self, model: Detector) -> Pyramid:
        """Return the features of all images, from the cache as far as it has them."""
        every = list(range(len(self._batch.image_sizes_hw)))
        if self._cache is None:
            return self._compute(model, every)
        keys = [self._key(model, row) for row in every]
        kept: dict[int, Any] = {row: state for row in every if (state := self._cache.find(keys[row])) is not None}
        if missing := [row for row in every if row not in kept]:
            computed = self._compute(model, missing)
            for place, row in enumerate(missing):
                kept[row] = self._cache.get(keys[row], functools.partial(_rows, computed, [place]))
        return to(Pyramid.stack([kept[row] for row in every]), model.device)

    def _compute(self, model: Detector, rows: list[int]) -> Pyramid:
        with autocast(model.device, self._view.precision):
            return model.frozen_network.encode_image(self._images(rows).to(model.device))

    def _key(self, model: Detector, row: int) -> CacheKey:
        """Return what the features of an image depend on within this process."""
        pixels, size_hw = self._batch.pixels[row], self._batch.image_sizes_hw[row]
        return CacheKey(
            trunk=model.frozen_checksum,
            image=hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            view=f"{size_hw} in {tuple(pixels.shape[1:])}",
            stage=Pyramid.__name__,
            text="",
            numerics=f"{model.device.type}-{self._view.precision}",
        )


def _rows(pyramid: Pyramid, rows: list[int]) -> Pyramid:
    """Return the features of some images of a batch; of all of them without a copy."""
    if rows == list(range(len(pyramid.image_sizes_hw))):
        return pyramid
    return replace(pyramid, cells=pyramid.cells[rows], image_sizes_hw=tuple(pyramid.image_sizes_hw[r] for r in rows))
