"""Folds for cross-validation: parts of a few labelled images in which every class is spread evenly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet


def draw_folds(present: Sequence[AbstractSet[int]], count: int, seed: int) -> list[list[int]]:
    """Return the positions of the images of each fold, in rising order.

    Each image is placed once, those of the rarest classes first: in the fold that has the fewest images of its rarest
    class, then the fewest images (iterative stratification, Sechidis et al. 2011, section 3).

    Args:
        present: the classes on each image, by any number; an image may have none.
        count: of folds; at most one per image.
        seed: of the order in which equal images are placed.
    """
    order = list(range(len(present)))
    random.Random(seed).shuffle(order)
    common = Counter(label for labels in present for label in labels)
    rarest = [min(labels, key=lambda label: (common[label], label), default=-1) for labels in present]
    order.sort(key=lambda position: common.get(rarest[position], len(present)))  # images without a class come last
    folds: list[list[int]] = [[] for _ in range(min(count, len(present)))]
    held = [Counter[int]() for _ in folds]
    for position in order:
        fold = min(range(len(folds)), key=lambda f: (held[f][rarest[position]], len(folds[f])))
        folds[fold].append(position)
        held[fold].update(present[position])
    return [sorted(fold) for fold in folds]
