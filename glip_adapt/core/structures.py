"""Data of the pipeline as frozen dataclasses: images, features, tokens, targets, detections.

Nobody writes into a structure received: derive a new one with ``dataclasses.replace``.

Box conventions: ``Detections.boxes_xyxy`` are *edges* in pixels, as in COCO, torchvision and supervision: a COCO box
``(x, y, w, h)`` is ``(x, y, x + w, y + h)``. ``Target.boxes_xyxy`` include the last pixel, ``(x, y, x + w - 1,
y + h - 1)``, as in the public GLIP code, which resizes and clips boxes in this form. ``core/boxes.py`` converts.

Shape letters: B batch, T tokens, K classes, N boxes, A anchors over all levels (one per feature cell), L levels,
C visual channels, D text channels, H W pixels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt.core.sizes import DIVISOR as DIVISOR
from glip_adapt.core.sizes import SizeHW

if TYPE_CHECKING:
    from glip_adapt.core.masks import Mask


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on ``device``; on the way to a GPU nothing waits, neither for the copy nor for the GPU."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def may_hold_false(mask: Tensor) -> bool:
    """Tell whether a mask may hold False, without looking where looking has a price.

    Only numbers on a CPU are read: a GPU would have to be waited for, and a graph that is traced has none.
    """
    return mask.device.type != "cpu" or torch.compiler.is_compiling() or not bool(mask.all())


@dataclass(frozen=True)
class ImageBatch:
    """RGB images padded on the right and at the bottom to one size.

    Attributes:
        pixels: (B, 3, H, W) uint8, RGB, 0–255; H and W are multiples of 32; padding is zero.
        image_sizes_hw: real (height, width) of each image inside the padding, in pixels.
    """

    pixels: Tensor
    image_sizes_hw: tuple[SizeHW, ...]

    @classmethod
    def stack(cls, parts: Sequence[ImageBatch]) -> ImageBatch:
        """Return several batches of one padded size as one."""
        return cls(torch.cat([part.pixels for part in parts]), _sizes(parts))

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return the batch on ``device``."""
        return ImageBatch(send(self.pixels, device), self.image_sizes_hw)


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of several strides in one buffer, channels last: fusion and head read it as one sequence.

    Attributes:
        cells: (B, A, C) float, levels finest first, row by row within a level.
        level_shapes_hw: L pairs (h, w) with Σ h·w = A.
        image_sizes_hw: real image sizes in pixels, carried from the ``ImageBatch``.
    """

    cells: Tensor
    level_shapes_hw: tuple[SizeHW, ...]
    image_sizes_hw: tuple[SizeHW, ...]

    @classmethod
    def from_levels(cls, levels: Sequence[Tensor], image_sizes_hw: tuple[SizeHW, ...]) -> Pyramid:
        """Return the pyramid of L maps (B, C, h, w), finest first."""
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        return cls(cells, tuple((level.shape[2], level.shape[3]) for level in levels), image_sizes_hw)

    @classmethod
    def stack(cls, parts: Sequence[Pyramid]) -> Pyramid:
        """Return several pyramids of the same level shapes as one."""
        return cls(torch.cat([part.cells for part in parts]), parts[0].level_shapes_hw, _sizes(parts))

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """L views (B, C, h, w) of the buffer."""
        return split_levels(self.cells, self.level_shapes_hw)


def split_levels(cells: Tensor, level_shapes_hw: Sequence[SizeHW]) -> tuple[Tensor, ...]:
    """Return one view (B, C, h, w), channels last, of (B, A, C) for each of the shapes."""
    parts = cells.split([h * w for h, w in level_shapes_hw], dim=1)
    return tuple(part.unflatten(1, hw).permute(0, 3, 1, 2) for part, hw in zip(parts, level_shapes_hw, strict=True))


@dataclass(frozen=True)
class Tokens:
    """Tokenised captions, one per image or one for the whole batch (first dimension 1), trimmed to real tokens.

    Attributes:
        ids: (B or 1, T) int64, WordPiece ids with [CLS] first and [SEP] last.
        mask: (B or 1, T) bool, True for real tokens.
        token_map: (B or 1, K, T) bool, True where token t belongs to the name of class k; an all-False row is a class
            that the caption does not hold.
    """

    ids: Tensor
    mask: Tensor
    token_map: Tensor

    @classmethod
    def stack(cls, parts: Sequence[Tokens]) -> Tokens:
        """Return the tokens of B captions, each with a first dimension of 1, as one batch; the shorter ones are padded.

        Padding has id 0, mask False and belongs to no class; missing classes are all-False rows.
        """
        length = max(tokens.ids.shape[1] for tokens in parts)
        classes = max(tokens.token_map.shape[1] for tokens in parts)
        padded = []
        for tokens in parts:
            right, below = length - tokens.ids.shape[1], classes - tokens.token_map.shape[1]
            maps = F.pad(tokens.token_map, (0, right, 0, below))
            padded.append((F.pad(tokens.ids, (0, right)), F.pad(tokens.mask, (0, right)), maps))
        return cls(*map(torch.cat, zip(*padded, strict=True)))

    def to(self, device: torch.device | str) -> Tokens:
        """Return the tokens on ``device``."""
        return Tokens(send(self.ids, device), send(self.mask, device), send(self.token_map, device))


@dataclass(frozen=True)
class TextFeatures:
    """Encoded captions, one per image or one for the whole batch (first dimension 1).

    Attributes:
        features: (B or 1, T, D) float, last hidden layer of the text encoder.
        mask: (B or 1, T) bool, carried from ``Tokens``.
        token_map: (B or 1, K, T) bool, carried from ``Tokens``.
        phrases: (B or 1, T) int64, the phrase of each token, where a network reads each by itself; else None.
    """

    features: Tensor
    mask: Tensor
    token_map: Tensor
    phrases: Tensor | None = None


@dataclass(frozen=True)
class Fused:
    """Both modalities after deep fusion."""

    pyramid: Pyramid
    text: TextFeatures

    @classmethod
    def stack(cls, parts: Sequence[Fused]) -> Fused:
        """Return several results for one caption as one; each image has text features of its own."""
        text = TextFeatures(
            torch.cat([part.text.features for part in parts]),
            torch.cat([part.text.mask for part in parts]),
            parts[0].text.token_map,
        )
        return cls(Pyramid.stack([part.pyramid for part in parts]), text)

    @property
    def image_sizes_hw(self) -> tuple[SizeHW, ...]:
        """Real image sizes in pixels."""
        return self.pyramid.image_sizes_hw


FrozenState = ImageBatch | Pyramid | Fused
"""The result of the last stage of a network that training cannot change; it is computed once per image and view."""


def _sizes(parts: Sequence[ImageBatch | Pyramid]) -> tuple[SizeHW, ...]:
    return tuple(size_hw for part in parts for size_hw in part.image_sizes_hw)


@dataclass(frozen=True)
class Target:
    """Ground truth of one image.

    Attributes:
        boxes_xyxy: (N, 4) float32, corners in pixels, the last pixel included.
        labels: (N,) int64 in 0..K-1.
        weights: (N,) float32 in (0, 1], what each box counts in the losses; None: 1.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Target:
        """Return the target on ``device``."""
        weights = None if self.weights is None else send(self.weights, device)
        return Target(send(self.boxes_xyxy, device), send(self.labels, device), weights)


@dataclass(frozen=True)
class Detections:
    """Final boxes of one image, best first.

    Attributes:
        boxes_xyxy: (N, 4) float32, left, top, right and bottom edge in pixels.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 in 0..K-1.
        class_names: name of label 0..K-1; empty inside the network, which knows none.
        spans: characters of the sentence whose phrase label 0..K-1 is, (start, end); empty for a list of classes.
        masks: N masks, from ``segment``; empty before.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    masks: tuple[Mask, ...] = ()

    @property
    def phrases(self) -> tuple[GroundedPhrase, ...]:
        """Each phrase of the sentence with its boxes, in the order of the labels; empty for a list of classes."""
        rows = [self.select(self.labels == label) for label in range(len(self.spans))]
        named = zip(self.class_names, self.spans, rows, strict=False)
        return tuple(GroundedPhrase(name, span, row.boxes_xyxy, row.scores) for name, span, row in named)

    def __len__(self) -> int:
        return len(self.labels)

    def above(self, score: float | Mapping[str, float]) -> Detections:
        """Return the detections that score at least ``score``, or the score that a mapping has for their class name."""
        return self.select(self.reach(score))

    def reach(self, score: float | Mapping[str, float]) -> Tensor:
        """Return (N,) bool, true for each detection that ``above`` keeps."""
        if isinstance(score, float | int):
            return self.scores >= score
        return self.scores >= self.scores.new_tensor([score[name] for name in self.class_names])[self.labels]

    def select(self, chosen: Tensor | slice) -> Detections:
        """Return the rows that a mask (N,) bool, indices (M,) int64 or a slice choose."""
        boxes_xyxy, scores, labels = self.boxes_xyxy[chosen], self.scores[chosen], self.labels[chosen]
        rows = torch.arange(len(self.masks))[chosen].tolist() if self.masks else ()
        masks = tuple(self.masks[row] for row in rows)
        return replace(self, boxes_xyxy=boxes_xyxy, scores=scores, labels=labels, masks=masks)

    def cpu(self) -> Detections:
        """Return the detections on the CPU."""
        return replace(self, boxes_xyxy=self.boxes_xyxy.cpu(), scores=self.scores.cpu(), labels=self.labels.cpu())


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase of a sentence, and where it is in the image.

    Attributes:
        text: of the phrase.
        span: (start, end) of its characters in the sentence, end exclusive.
        boxes_xyxy: (N, 4) float32, left, top, right and bottom edge in pixels, best first.
        scores: (N,) float32 in [0, 1].
    """

    text: str
    span: tuple[int, int]
    boxes_xyxy: Tensor
    scores: Tensor


def merge(parts: Sequence[Detections]) -> Detections:
    """Return the detections of several captions in one image as one, best first; captions must not share labels."""
    together = Detections(
        torch.cat([part.boxes_xyxy for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
    )
    return together.select(together.scores.argsort(descending=True, stable=True))
