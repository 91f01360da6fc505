"""Few-shot sampling: the sampler of the public code, number for number.

GLIP, arXiv 2112.03857, section E.3; class COCODataset in maskrcnn_benchmark/data/datasets/coco.py of the public code,
its one sampler that uses the seed. One difference: classes are counted by id; the list of counters in the public code
fails for ids with gaps and for id 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet


def draw(present: Sequence[AbstractSet[int]], image_ids: Sequence[int | str], shots: int, seed: int) -> list[int]:
    """Return the positions of the drawn images, in the order of drawing.

    Images are sorted by id and, unless ``seed`` is 0, shuffled by it. An image is taken if one of its classes still has
    fewer than ``shots``. It then counts for all of its classes: common ones end up with more.

    ``present`` holds the classes on each image, by any number, and ``image_ids`` the id of each, in the same order.
    """
    order = sorted(range(len(image_ids)), key=image_ids.__getitem__)
    if seed != 0:
        random.Random(seed).shuffle(order)
    missing = dict.fromkeys((label for labels in present for label in labels), shots)
    picked = []
    for position in order:
        if any(missing[label] > 0 for label in present[position]):
            picked.append(position)
            for label in present[position]:
                missing[label] -= 1
    return picked
