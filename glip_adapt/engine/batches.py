"""Batches of small images of one size."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from glip_adapt.core.structures import FrozenState, SizeHW

BATCH_PIXELS = 2**19  # larger batches are no faster and take more memory

Item = TypeVar("Item")


def in_batches(images: Iterable[tuple[Item, SizeHW]]) -> Iterator[list[Item]]:
    """Yield neighbours of one padded size as one batch, up to ``BATCH_PIXELS``; larger images go by themselves.

    Small networks on small images are bound by the number of operations, which a batch shares. ``images`` are pairs of
    an image, or anything that stands for one, and its padded (height, width).
    """
    for shape_hw, neighbours in itertools.groupby(images, key=operator.itemgetter(1)):
        items = (item for item, _ in neighbours)
        while batch := list(itertools.islice(items, max(1, BATCH_PIXELS // math.prod(shape_hw)))):
            yield batch


def stack(states: Sequence[FrozenState]) -> FrozenState:
    """Return the frozen states of several images of one padded size as one."""
    parts: list[Any] = list(states)  # all of one kind
    return parts[0] if len(parts) == 1 else type(parts[0]).stack(parts)
