"""A split: images with boxes, from any dataset format.

Readers in ``formats/`` build these objects. Training, prediction and evaluation use them without knowing a format.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from glip_adapt.core.settings import Shots
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data import fewshot
from glip_adapt.data.federated import Federated
from glip_adapt.data.images import Header, load_rgb, read_header

if TYPE_CHECKING:
    from glip_adapt.core.structures import Target

logger = logging.getLogger(__name__)

_OUTSIDE_TOLERANCE = 0.01  # pixels; conversions between formats overshoot by rounding
_AMBIGUOUS = (
    "are turned by their EXIF orientation, and their size does not tell whether boxes were drawn before or after that"
)
_NOT_APPLIED = (
    "have an EXIF orientation that is not applied, as the annotation file states the size of the stored pixels; but "
    "boxes leave the image, as if drawn on the turned one"
)

AnnotationIds = Literal["renumbered", "as_in_file"]


@dataclass(frozen=True)
class Annotation:
    """One box as the annotation file states it.

    Attributes:
        category_id: the id in the file; it is not a label.
        bbox_xywh: left, top, width, height in pixels.
        area: square pixels, of the segmentation if the file has one.
        iscrowd: whether scoring ignores detections in this region.
        annotation_id: the id in the file, if it has one.
        score: how sure a detector was of the box, in (0, 1]; 1 for one drawn by hand.
    """

    category_id: int
    bbox_xywh: tuple[float, float, float, float]
    area: float
    iscrowd: bool
    annotation_id: int | str | None = None
    score: float = 1.0


@dataclass(frozen=True)
class ImageRecord:
    """One image of a split.

    Attributes:
        image_id: the id in the annotation file.
        path: the image file; ``load`` opens it.
        size_hw: (height, width) in pixels from the annotation file; if it states none, the size of the upright image.
        learned: the boxes that training learns from, or a function that makes them: a split may be checked, counted and
            written in another format without a tensor, and so without torch.
        annotations: the boxes that scoring compares with; if empty, scoring uses ``target``.
    """

    image_id: int | str
    path: Path
    size_hw: SizeHW
    learned: Target | Callable[[], Target]
    annotations: tuple[Annotation, ...] = ()

    def load(self) -> Image.Image:
        """Return the image as RGB, turned like its boxes; errors as ``load_rgb``."""
        return load_rgb(self.path, self.size_hw)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the pixels come from."""
        return (self.path,)

    @property
    def change(self) -> str:
        """How the pixels differ from those in ``files``; two images with the same files and changes look the same."""
        return "" if self.header.applied == 1 else f"t{self.header.applied}"

    @functools.cached_property
    def target(self) -> Target:
        """The boxes that training learns from; made once."""
        return self.learned() if callable(self.learned) else self.learned

    @functools.cached_property
    def header(self) -> Header:
        """Size and orientation from the start of the image file; read once, errors as ``read_header``."""
        header = read_header(self.path, self.size_hw)
        if header.is_ambiguous:
            warn_once(self.path.parent, _AMBIGUOUS)
        elif header.applied != header.orientation and any(
            is_outside(a.bbox_xywh, self.size_hw) for a in self.annotations
        ):
            warn_once(self.path.parent, _NOT_APPLIED)
        return header


@dataclass(frozen=True)
class Split:
    """Images with boxes, such as the training part of a dataset.

    Attributes:
        name: shown in messages and stored in records, for example ``"Raccoon/train"``.
        records: the images, by rising image id; in a few-shot subset, in the order of drawing.
        classes: name of label 0..K-1.
        category_ids: id in the annotation file of label 0..K-1.
        annotation_file: the file with the boxes, or for formats of one file per image their folder, for messages; None
            if there is none.
        source: ``"full"``, ``"sampled"``, or ``"official FILE"`` for a prepared few-shot subset.
        image_dir: written file names are relative to this folder; None writes whole paths.
        aliases: other names of label 0..K-1 that a prompt may use; empty if there are none.
        annotation_ids: how boxes are numbered for scoring. ``"as_in_file"`` is the way of the public evaluator, which
            never matches a box with id 0. See ``coco_ground_truth``.
        shots: images per class that were asked for; ``"all"`` if nothing was drawn.
        prepared: set by the reader; returns the few-shot subset that the dataset itself brings for this split, a number
            of shots and a seed, or None if it brings none.
        federated: what LVIS adds to COCO, for its metrics; None if the annotation file is no LVIS file.
    """

    name: str
    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotation_file: Path | None = None
    source: str = "full"
    image_dir: Path | None = None
    aliases: tuple[str, ...] = ()
    annotation_ids: AnnotationIds = "renumbered"
    shots: Shots = "all"
    prepared: Callable[[Split, int, int], Split | None] | None = field(default=None, repr=False)
    federated: Federated | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def few_shot(self, shots: int, seed: int, source: Literal["official", "sampled"] = "official") -> Split:
        """Return a subset with at least ``shots`` images of each class, with all their boxes.

        A class that is on fewer images gives all of them, and a warning names it.

        Args:
            shots: images per class, at least 1.
            seed: of the draw; 0 draws in the order of the image ids. The official subsets have 3, 30 and 300.
            source: ``"official"`` takes the subset that came with the dataset and draws one if there is none;
                ``"sampled"`` always draws, see ``fewshot.draw``. The ``source`` of the result tells which it was.

        Raises:
            ValueError: if ``shots`` is below 1, or no image has a box.
        """
        if shots < 1:
            raise ValueError(f"Expected at least 1 shot, got {shots}. Zero-shot needs no training split.")
        prepared = self.prepared(self, shots, seed) if self.prepared is not None and source == "official" else None
        return replace(
            self._draw(shots, seed) if prepared is None else prepared,
            name=f"{self.name}-{shots}-shot-seed-{seed}",
            aliases=self.aliases,
            annotation_ids=self.annotation_ids,
            shots=shots,
            prepared=None,
        )

    def _draw(self, shots: int, seed: int) -> Split:
        """Return the drawn images; log the draw, and the classes that are short of images."""
        usable = self.with_boxes().records
        if not usable:
            raise ValueError(f"No image of {self.name} has a box to learn from. Label some, or use another split.")
        present = [{annotation.category_id for annotation in self.annotations_of(record)} for record in usable]
        picked = fewshot.draw(present, [record.image_id for record in usable], shots, seed)
        logger.info("%s: %d-shot seed %d sampled, %d images", self.name, shots, seed, len(picked))
        counts = Counter(category_id for position in picked for category_id in present[position])
        for category_id, name in zip(self.category_ids, self.classes, strict=True):
            if counts[category_id] < shots:
                logger.warning("%s has only %d of %d images of %r", self.name, counts[category_id], shots, name)
        return replace(self, records=tuple(usable[position] for position in picked), source="sampled")

    def backgrounds(self, count: int, seed: int) -> tuple[ImageRecord, ...]:
        """Return up to ``count`` drawn images without any box, to learn from what is no object."""
        empty = [record for record in self.records if not self.annotations_of(record)]
        return tuple(random.Random(seed).sample(empty, min(count, len(empty))))

    def with_negatives(self, names: Sequence[str]) -> Split:
        """Return the split with more classes that no image shows; see ``Dataset.with_negatives``."""
        if not names:
            return self
        ids = range(max(self.category_ids) + 1, max(self.category_ids) + 1 + len(names))
        aliases = (*self.aliases, *names) if self.aliases else ()
        return replace(self, classes=(*self.classes, *names), category_ids=(*self.category_ids, *ids), aliases=aliases)

    def with_boxes(self) -> Split:
        """Keep images with at least one box whose width and height both exceed 1 px, as public training does."""
        kept = (r for r in self.records if any(min(a.bbox_xywh[2:]) > 1 for a in self.annotations_of(r)))
        return replace(self, records=tuple(kept))

    def annotations_of(self, record: ImageRecord) -> tuple[Annotation, ...]:
        """Return the boxes of one image of this split for scoring, crowd regions included."""
        if record.annotations:
            return record.annotations
        from glip_adapt.core import boxes

        boxes_xywh = boxes.xyxy_to_xywh(record.target.boxes_xyxy).tolist()
        return tuple(
            Annotation(self.category_ids[label], (x, y, w, h), w * h, False)
            for label, (x, y, w, h) in zip(record.target.labels.tolist(), boxes_xywh, strict=True)
        )


def is_outside(box_xywh: Sequence[float], size_hw: SizeHW | None) -> bool:
    """Tell whether a box leaves an image of this (height, width) in pixels; False if the size is unknown."""
    if size_hw is None:
        return False
    x, y, w, h = box_xywh
    return max(-x, -y, x + w - size_hw[1], y + h - size_hw[0]) > _OUTSIDE_TOLERANCE


@functools.cache
def warn_once(folder: Path, what: str) -> None:
    """Log a warning about some images of a folder, once for each folder and warning."""
    logger.warning(f"Images in {folder} {what}. `glip-adapt data check` lists them; look at some of their boxes.")
