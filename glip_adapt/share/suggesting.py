"""Active learning: rank unlabelled images by doubt and novelty, to label the first ones next.

An image is worth labelling if the detector is in doubt about what it shows, and if it looks unlike the images that are
labelled already. Let

- r = m / k for the k-th best box of a class over all images, where m objects of the class are expected. Few-shot scores
  are uncalibrated and differ between classes, so only their order within a class counts. m follows from the labelled
  images: their boxes per image × the share of the class, with one box more for each class so that none has 0. Without
  labelled images, m is the number of boxes that the detector would show.
- doubt of a place = (second / first)², of the best r of the box, the best r of another class on the same place, and 1,
  which stands for "no object". This is the 1-vs-2 margin of Brust et al., arXiv 1809.09875, section 3.1, by ratios.
- U(image) = Σ over places of doubt / (1 + n), with n labelled boxes of the class: the more examples, the less one adds.
  Places are boxes of r ≥ ½ that no better box covers.
- rank(image) = share of the images with places whose U is not larger; ½ for an image without places, as nothing tells
  what is missed in it.
- d(image) = distance to the nearest labelled or suggested image, of the frozen features: the mean over each of two
  levels of the pyramid, normalised.

The image with the highest score = d · rank is suggested, and counts as labelled for the next one. With all ranks equal
this is the greedy k-centre of Sener and Savarese, arXiv 1708.00489, algorithm 1.

On synthetic pictograms no gain over random images was measured (benchmarks/README.md); on photographs nothing was.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections, FrozenState, Fused, ImageBatch, Pyramid, SizeHW
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.data.transforms import View
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.detector import Detector, detections
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.pseudo_labels import unlabelled as record_of
from glip_adapt.share.detecting import THRESHOLD

logger = logging.getLogger(__name__)

_LEAST = 0.5  # r of a place: at most twice as many as there should be, else the number of noisy boxes would decide
_SAME_PLACE = 0.5  # IoU
_UNSURE = 0.25  # doubt of a box that a reason counts: first and second differ by less than a factor of two
_UNLIKE = 0.8  # share of the images that a reason calls more like the labelled ones
_FARTHEST = 2.0  # between normalised features; the distance as long as nothing is labelled


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """An image that is worth labelling.

    Attributes:
        path: of the image file.
        score: d · rank, in [0, 2]; see the head of this file. It falls along the suggestions.
        reason: why, in words for people.
        detections: all boxes that the detector finds in it, best first.
    """

    path: Path
    score: float
    reason: str
    detections: Detections


def suggest(
    model: Detector,
    images: Iterable[str | Path],
    count: int,
    *,
    labelled: Sequence[Split] = (),
    view: ViewConfig | None = None,
    cache: FeatureCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> list[Suggestion]:
    """Return the unlabelled images to label next, best first: ``suggest(model, photos, 10)``.

    An image that cannot be read is left out, and a warning names it. The same images in any order give the same result.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``.
        images: files without labels; a file that is named twice counts once.
        count: how many to suggest, at least 1; all, if there are fewer.
        labelled: images that the model has learned from, of any classes; classes are told by their names.
        view: resizing and precision; by default those of the trunk.
        cache: keeps the features of the frozen stages, which training on the same images in this view uses too.
        on_image: called after each image with its position from 1 and the number of images, labelled ones included.

    Raises:
        ValueError: if ``count`` is below 1, or no image can be read.
        FileNotFoundError, ValueError: if a labelled image cannot be read.
    """
    if count < 1:
        raise ValueError(f"Expected at least 1 image to suggest, got {count}.")
    paths = sorted({Path(image) for image in images})
    known = {record.path.resolve(): record for split in labelled for record in split.records}
    pool = [path for path in paths if path.resolve() not in known]
    total = len(known) + len(pool)
    view, seen = view or model.view, _Seen(model, view or model.view, cache)
    centres = []
    for position, record in enumerate(known.values(), start=1):
        centres.append(seen.embedding(record))
        if on_image:
            on_image(position, total)
    found: list[tuple[Path, Detections, Tensor]] = []
    for position, path in enumerate(pool, start=len(known) + 1):
        try:
            found.append((path, *seen.look(record_of(path))))
        except (FileNotFoundError, ValueError) as error:
            logger.warning(f"{error} It is left out.")
        if on_image:
            on_image(position, total)
    if not found:
        raise ValueError("There is no unlabelled image that can be read. Add some, or name another folder.")
    examples = count_boxes(labelled)
    places = _places([detected for _, detected, _ in found], model, labelled)
    ranks = _ranks([[p.doubt / (1 + examples[p.name]) for p in mine] for mine in places])
    picks = _pick(_stack([vector for *_, vector in found]), _stack(centres), ranks, count)
    return [
        Suggestion(
            path=found[index][0],
            score=float(distance * ranks[index]),
            reason=_reason(places[index], examples if labelled else None, is_far),
            detections=found[index][1],
        )
        for index, distance, is_far in picks
    ]


def count_boxes(splits: Iterable[Split]) -> Counter[str]:
    """Return the number of labelled boxes by class name."""
    return Counter(
        name
        for split in splits
        for record in split.records
        for annotation in split.annotations_of(record)
        for name in [split.classes[split.category_ids.index(annotation.category_id)]]
    )


class _Seen:
    """What a detector finds in images, and what they look like to its frozen stages."""

    def __init__(self, model: Detector, view: ViewConfig, cache: FeatureCache | None) -> None:
        self._model, self._view, self._shown = model, view, View(view.short_side, flip=False)
        self._features = FrozenFeatures(model, cache, view.max_long_side, view.precision)
        model.train(False)

    def embedding(self, record: ImageRecord) -> Tensor:
        """Return normalised features of an image, (2C,) float64."""
        return self._embed(self._features.of([record], self._shown), record)

    def look(self, record: ImageRecord) -> tuple[Detections, Tensor]:
        """Return the detections in an image, and its features as ``embedding``."""
        state = self._features.of([record], self._shown)
        (found,) = detections(self._model, state, [record.header.size_hw], self._view)
        return found, self._embed(state, record)

    @torch.no_grad()
    def _embed(self, state: FrozenState, record: ImageRecord) -> Tensor:
        with autocast(self._model.device, self._view.precision):
            pyramid = self._model.network.encode_image(state) if isinstance(state, ImageBatch) else state
        pyramid = pyramid.pyramid if isinstance(pyramid, Fused) else pyramid
        return pooled(pyramid, self._features.padded_shape(record, self._shown)).cpu()


def pooled(pyramid: Pyramid, padded_hw: SizeHW) -> Tensor:
    """Return the mean features of one image, of length 1: (2C,) float64, from the second and third level.

    Cells that lie in the padding of ``padded_hw`` do not count.
    """
    parts = []
    for level in pyramid.levels[1:3] or pyramid.levels:
        real = zip(level.shape[2:], pyramid.image_sizes_hw[0], padded_hw, strict=True)
        rows, columns = (math.ceil(cells * side / padded) for cells, side, padded in real)
        parts.append(F.normalize(level[0, :, :rows, :columns].double().mean((1, 2)), dim=0))
    return F.normalize(torch.cat(parts), dim=0)


@dataclass(frozen=True)
class _Place:
    """Where something may be: class name, name of the best other class if that is the second option, and doubt."""

    name: str
    rival: str
    doubt: float


def _places(found: Sequence[Detections], model: Detector, labelled: Sequence[Split]) -> list[list[_Place]]:
    """Return the places of each image."""
    labels = torch.cat([detected.labels for detected in found])
    expected = _expected(found, model, labelled)
    order = torch.cat([detected.scores for detected in found]).argsort(descending=True, stable=True)
    relative = torch.zeros(len(labels), dtype=torch.float64)
    for label, count in enumerate(expected):
        mine = order[labels[order] == label]
        relative[mine] = count / torch.arange(1, len(mine) + 1, dtype=torch.float64)
    parts = relative.split([len(detected) for detected in found])
    return [_places_of(detected, part.tolist()) for detected, part in zip(found, parts, strict=True)]


def _expected(found: Sequence[Detections], model: Detector, labelled: Sequence[Split]) -> list[float]:
    """Return how many objects of each class the images should hold."""
    examples, images = count_boxes(labelled), sum(len(split) for split in labelled)
    if not images:
        shown = [detected.above(show_above(model)).labels for detected in found]
        return torch.cat(shown).bincount(minlength=len(model.class_names)).clamp(min=1).tolist()
    own = [examples[name] for name in model.class_names]
    per_image = max(1, sum(own)) / images
    return [len(found) * per_image * (count + 1) / (sum(own) + len(own)) for count in own]


def show_above(model: Detector) -> dict[str, float]:
    """Return the lowest score of a box to show, by class name."""
    return dict(model.thresholds or dict.fromkeys(model.class_names, THRESHOLD))


def _places_of(found: Detections, relative: Sequence[float]) -> list[_Place]:
    """Return the places of one image, from r of each of its boxes."""
    same = (box_iou(found.boxes_xyxy, found.boxes_xyxy) > _SAME_PLACE).tolist()
    labels, names = found.labels.tolist(), found.class_names
    covered: set[int] = set()
    places = []
    for index in sorted(range(len(found)), key=lambda box: -relative[box]):
        if index in covered or relative[index] < _LEAST:
            continue
        mine = [other for other in range(len(found)) if same[index][other] and other not in covered]
        covered.update(mine)
        rivals = [(relative[other], labels[other]) for other in mine if labels[other] != labels[index]]
        strength, rival = max(rivals, default=(0.0, 0))
        second, first = sorted((relative[index], strength, 1.0))[1:]
        is_rival = strength >= 1  # else "no object" is the second option, or the first
        places.append(_Place(names[labels[index]], names[rival] if is_rival else "", (second / first) ** 2))
    return places


def _ranks(worth: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return the rank of each image in [0, 1], from what its places are worth."""
    sums = np.array([math.fsum(mine) for mine in worth])
    some = np.array([bool(mine) for mine in worth])
    ordered = np.sort(sums[some])
    ranks = np.searchsorted(ordered, sums, side="right") / max(1, len(ordered))
    return np.where(some, ranks, 0.5)


def _pick(
    vectors: NDArray[np.float64], centres: NDArray[np.float64], ranks: NDArray[np.float64], count: int
) -> list[tuple[int, float, bool]]:
    """Return position, distance when picked, and whether it was unusual at the start, of each pick."""
    nearest = np.full(len(vectors), _FARTHEST)
    for centre in centres:
        nearest = np.minimum(nearest, np.linalg.norm(vectors - centre, axis=1))
    start, usual = nearest, np.quantile(nearest, _UNLIKE)
    left, picks = np.ones(len(vectors), dtype=bool), []
    for _ in range(min(count, len(vectors))):
        index = int(np.argmax(np.where(left, nearest * ranks, -1.0)))  # of equal ones the first by path
        left[index] = False
        picks.append((index, float(nearest[index]), bool(len(centres) and start[index] > usual)))
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[index], axis=1))
    return picks


def _stack(vectors: Sequence[Tensor]) -> NDArray[np.float64]:
    return torch.stack(list(vectors)).numpy() if vectors else np.zeros((0, 0))


def _reason(places: Sequence[_Place], examples: Counter[str] | None, is_far: bool) -> str:
    """Return why an image is suggested, in words."""
    unsure = sorted((place for place in places if place.doubt >= _UNSURE), key=lambda place: -place.doubt)
    parts = []
    if unsure:
        asked = dict.fromkeys(f"{place.name} or {place.rival}" if place.rival else place.name for place in unsure)
        more = ", …" if len(asked) > 2 else ""
        parts.append(f"unsure about {len(unsure)} box{'es' * (len(unsure) > 1)}: {', '.join([*asked][:2])}{more}")
    else:
        parts.append("only boxes it is sure of" if places else "nothing found, so something may be missed")
    new = [
        name for name in dict.fromkeys(place.name for place in places) if examples is not None and not examples[name]
    ]
    if new:
        parts.append(f"no labelled {' or '.join(new[:2])} yet")
    if is_far:
        parts.append("looks unlike the labelled images")
    return "; ".join(parts)
