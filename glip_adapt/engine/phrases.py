"""Find the phrases of sentences in images, for recall on Flickr30k Entities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.described import Described, phrases_to_find
from glip_adapt.data.flickr import DescribedImage
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.engine.adapted import AdaptedModel, AdaptedTrunk
from glip_adapt.engine.detector import detections
from glip_adapt.engine.metrics.recall import Boxes, recall


@dataclass(frozen=True, kw_only=True)
class PhraseRecall:
    """Recall of phrases, and the boxes that were scored.

    Attributes:
        values: way to count several true boxes → type of phrase → ``r1``, ``r5``, ``r10`` and ``upper_bound``.
        predictions: boxes per sentence, see ``Grounded``.
    """

    values: dict[Boxes, dict[str, dict[str, float | None]]]
    predictions: list[dict[str, Any]]


def evaluate_phrases(
    grounder: AdaptedTrunk | AdaptedModel,
    data: Described,
    view: ViewConfig | None = None,
    *,
    on_image: Callable[[int, int], None] | None = None,
) -> PhraseRecall:
    """Return recall of the phrases with a true box, at 1, 5, 10 and all boxes.

    Each sentence is a caption of its own, in which its phrases are found, as in the public code.

    Args:
        grounder: a trunk or model that reads sentences, see ``AdaptedTrunk.for_sentence``.
        data: from ``read_described``.
        view: resizing and precision; by default those of the trunk.
        on_image: called after each image with its position from 1 and the number of images.

    Raises:
        ValueError: if the tensors of the method belong to a caption of classes, or a sentence is too long.
    """
    view, predictions = view or grounder.trunk.spec.view, []
    for position, image in enumerate(data.images, start=1):
        predictions += _ground(grounder, image, data.folder, view)
        if on_image:
            on_image(position, len(data.images))
    truth = {image.image_id: tuple(s.phrases for s in image.sentences) for image in data.images}
    return PhraseRecall(
        values={boxes: recall(predictions, truth, boxes) for boxes in ("any", "merged")}, predictions=predictions
    )


@torch.no_grad()
def _ground(
    grounder: AdaptedTrunk | AdaptedModel, image: DescribedImage, folder: Path, view: ViewConfig
) -> list[dict[str, Any]]:
    """Return the boxes of each phrase with a true box, by sentence; the image is encoded once for all of them."""
    asked = {n: caption for n, s in enumerate(image.sentences) if (caption := phrases_to_find(s)).spans}
    if not asked:
        return []
    models = {number: grounder.for_sentence(caption) for number, caption in asked.items()}
    model = next(iter(models.values()))
    model.train(False)
    picture = load_rgb(folder / f"{image.image_id}.jpg", image.size_hw)
    pixels = collate([view_image(picture, View(view.short_side, flip=False), view.max_long_side)])
    with autocast(model.device, view.precision):
        pyramid = model.network.encode_image(pixels.to(model.device))
    found = []
    for number, reader in models.items():
        (boxes,) = detections(reader, pyramid, [(picture.height, picture.width)], view)
        # Corners as in the files of boxes: the last pixel is part of a box.
        corners = [
            (phrase.boxes_xyxy - phrase.boxes_xyxy.new_tensor([0, 0, 1, 1])).tolist() for phrase in boxes.phrases
        ]
        found.append({"image_id": image.image_id, "sentence_id": number, "boxes": corners})
    return found
