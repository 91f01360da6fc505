"""What the frozen stages of a model make of the pictures of a dataset, through the cache, and in batches from there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from glip_adapt.adapters.base import AdaptedGlip, Detector, Precision, Prefix, autocast
from glip_adapt.core.structures import Fused, ImageBatch, SizeHW
from glip_adapt.data.split import ImageRecord
from glip_adapt.data.transforms import View, collate, padded_shape, resize_shape, view_image
from glip_adapt.engine.cache import CacheKey, FeatureCache, picture_digest, to

BATCH_PIXELS = 2**19  # of small pictures together: beyond, a batch gains nothing and takes memory

Item = TypeVar("Item")

# Kernels and decoders move the last bits from one release to the next.
VERSIONS = "-".join(f"{name}-{version(name)}" for name in ("torch", "torchvision", "timm", "transformers", "pillow"))


class FrozenFeatures:
    """The frozen prefix of one model for pictures in any view; its adapter decides which stage that is.

    Nothing here depends on the method: a picture that two methods freeze up to the same stage is encoded once for both.
    """

    def __init__(self, model: Detector, cache: FeatureCache | None, max_long_side: int, precision: Precision) -> None:
        """Bind what a key holds besides the picture and the view.

        Args:
            model: whose frozen stages run.
            cache: where results are kept; None keeps none.
            max_long_side: of every view, pixels.
            precision: in which the stages run.
        """
        self.model, self.cache, self.max_long_side, self.precision = model, cache, max_long_side, precision
        stage = model.frozen_result
        self._pixels_only = stage is ImageBatch
        products = f"{torch.get_float32_matmul_precision()}-{torch.get_num_threads()}"
        self._shared = {
            "trunk": "" if self._pixels_only else model.frozen_checksum,
            "stage": stage.__name__,
            "text": _text_digest(model) if isinstance(model, AdaptedGlip) and stage is Fused else "",
            "numerics": f"{model.device.type}-{precision}-{VERSIONS}-{products}",
        }

    def of(self, records: Sequence[ImageRecord], view: View) -> Prefix:
        """Return the prefix of pictures that have one padded size in this view, on the device of the model.

        They go through the frozen stages together and are kept together, so that the last bits do not depend on what
        the cache happens to hold.

        Raises:
            FileNotFoundError: if a picture is missing.
            ValueError: if Pillow cannot decode it.
        """
        if self.cache is None:
            return self._compute(records, view)
        pictures = "-".join(f"{picture_digest(r.path)}{_turned(r)}" for r in records)
        shown = f"{view.short_side}-{self.max_long_side}{'-flip' if view.flip else ''}"
        key = CacheKey(picture=pictures, view=shown, **self._shared)
        # Decoding a picture again costs no more than reading its pixels from a file.
        prefix = self.cache.get(key, lambda: self._compute(records, view), spill=not self._pixels_only)
        return to(prefix, self.model.device)

    def padded_shape(self, record: ImageRecord, view: View) -> SizeHW:
        """Return the (height, width) at which the network sees a picture; no more than its header is read."""
        return padded_shape(resize_shape(record.header.size_hw, view.short_side, self.max_long_side))

    def _compute(self, records: Sequence[ImageRecord], view: View) -> Prefix:
        pixels = [view_image(r.load(), view, self.max_long_side) for r in records]
        with autocast(self.model.device, self.precision):
            return self.model.frozen_prefix(collate(pixels).to(self.model.device))


def in_batches(pictures: Iterable[tuple[Item, SizeHW]]) -> Iterator[list[Item]]:
    """Yield neighbours of one padded size as one batch, up to ``BATCH_PIXELS``; what is larger goes by itself.

    Small networks on small pictures are bound by the number of operations, which a batch shares.

    Args:
        pictures: what a picture is, and its padded (height, width).
    """
    held: list[Item] = []
    held_hw: SizeHW | None = None
    for item, shape_hw in pictures:
        most = max(1, BATCH_PIXELS // (shape_hw[0] * shape_hw[1]))
        if held and (len(held) == most or shape_hw != held_hw):
            yield held
            held = []
        held.append(item)
        held_hw = shape_hw
    if held:
        yield held


def stack(prefixes: Sequence[Prefix]) -> Prefix:
    """Return the prefixes of several pictures of one padded size as one."""
    parts: list[Any] = list(prefixes)  # all of one kind
    return parts[0] if len(parts) == 1 else type(parts[0]).stack(parts)


def _turned(record: ImageRecord) -> str:
    """Return what a key holds of a picture that is turned; the digest is of the file alone."""
    return "" if record.header.applied == 1 else f"t{record.header.applied}"


def _text_digest(model: AdaptedGlip) -> str:
    """Return what stands for the caption: its token ids, and which of them name which class."""
    digest = hashlib.sha256()
    for tokens in model.captions:
        for tensor in (tokens.ids, tokens.mask, tokens.token_map):
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
