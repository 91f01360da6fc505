"""Cached features of the frozen stages, per image and view."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import Precision
from glip_adapt.core.structures import FrozenState, ImageBatch, SizeHW
from glip_adapt.core.timing import stage
from glip_adapt.data.split import ImageRecord
from glip_adapt.data.transforms import View, collate, padded_shape, view_image
from glip_adapt.engine.cache import FeatureCache, image_digest, to
from glip_adapt.engine.cache_files import CacheKey, map_tensors
from glip_adapt.engine.detector import Detector

PACKAGES = ("torch", "torchvision", "timm", "transformers", "pillow")  # a release may move the last bits


@dataclass(frozen=True)
class Fetched:
    """Images on their way to the network: their frozen state if the cache has it, else their pixels."""

    key: CacheKey | None
    state: FrozenState
    is_kept: bool = True


class FrozenFeatures:
    """The frozen state of one detector for images in any view, from the cache or computed.

    Methods that freeze the same stages share their features: an image is encoded once for all of them. Without a cache
    none are kept. The longer side of every view has at most ``max_long_side`` pixels; the precision is that of the
    frozen stages.
    """

    def __init__(self, model: Detector, cache: FeatureCache | None, max_long_side: int, precision: Precision) -> None:
        self.model, self.cache, self.max_long_side, self.precision = model, cache, max_long_side, precision
        # Decoding an image again costs no more than reading its pixels from a file.
        self._spills = model.frozen_state is not ImageBatch
        products = f"{torch.get_float32_matmul_precision()}-{torch.get_num_threads()}"
        kept = "" if cache is None or cache.precision == "float32" else f"-kept as {cache.precision}"
        self._shared = {  # the parts of a cache key that are the same for every image and view
            "trunk": model.frozen_checksum if self._spills else "",
            "stage": model.frozen_state.__name__,
            "text": model.text_digest,
            "numerics": f"{model.device.type}-{precision}-{_versions()}-{products}{kept}",
        }

    def of(self, records: Sequence[ImageRecord], view: View) -> FrozenState:
        """Return the frozen state of images that have one padded size in this view, on the device of the model.

        They go through the frozen stages together and are kept together, so that the last bits do not depend on the
        content of the cache.

        Raises:
            FileNotFoundError: if an image is missing.
            ValueError: if Pillow cannot decode it.
        """
        return self.finish(self.fetch(records, view))

    def fetch(self, records: Sequence[ImageRecord], view: View) -> Fetched:
        """Do the part of ``of`` that needs no network, in any thread: read the cache, or else decode and resize."""
        key = None if self.cache is None else self._key(records, view)
        kept = self.cache.find(key, spill=self._spills) if self.cache and key else None
        if kept is not None:
            return Fetched(key, self._pinned(kept))
        images = [view_image(record.load(), view, self.max_long_side) for record in records]
        return Fetched(key, self._pinned(collate(images)), is_kept=False)

    def finish(self, fetched: Fetched) -> FrozenState:
        """Return the frozen state of images that ``fetch`` has prepared, on the device of the model."""
        if fetched.is_kept:
            return to(fetched.state, self.model.device)
        with stage("frozen features"):
            if self.cache is None or fetched.key is None:
                return self._compute(fetched.state)
            state = self.cache.get(fetched.key, lambda: self._compute(fetched.state), spill=self._spills)
            return to(state, self.model.device)

    def padded_shape(self, record: ImageRecord, view: View) -> SizeHW:
        """Return the (height, width) at which the network sees an image; no more than its header is read."""
        return padded_shape(view.seen_hw(record.header.size_hw, self.max_long_side))

    def _key(self, records: Sequence[ImageRecord], view: View) -> CacheKey:
        images = "-".join("-".join(map(image_digest, r.files)) + r.change for r in records)
        part = "".join(f"-{edge}" for edge in view.part or ())
        shown = f"{view.short_side}-{self.max_long_side}{'-flip' if view.flip else ''}{part and '-part'}{part}"
        return CacheKey(image=images, view=shown, **self._shared)

    def _compute(self, images: Any) -> FrozenState:
        with autocast(self.model.device, self.precision):
            return self.model.prefix(to(images, self.model.device))

    def _pinned(self, state: FrozenState) -> FrozenState:
        """Return a state from which a copy to a GPU does not wait; elsewhere the same."""
        return map_tensors(Tensor.pin_memory, state) if self.model.device.type == "cuda" else state


@functools.cache
def _versions() -> str:
    return "-".join(f"{name}-{version(name)}" for name in PACKAGES)
