"""Masks: run lengths as pycocotools reads them, and outlines that enclose the same pixels."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from glip_adapt.core.masks import Mask, areas, overlaps, read_rle
from glip_adapt.core.structures import Detections

RING = np.pad(np.pad(np.zeros((1, 1), dtype=bool), 1, constant_values=True), ((1, 0), (2, 0)))


def drawn(seed):
    random = np.random.default_rng(seed)
    return random.random(random.integers(1, 20, 2)) < random.choice((0, 0.2, 0.5, 0.8, 1))


@given(st.integers(0, 10**6))
def test_a_mask_comes_back_from_its_run_lengths(seed):
    pixels = drawn(seed)
    mask = Mask.of(pixels)
    assert (mask.to_array() == pixels).all()
    assert mask.area == areas([mask.to_rle()])[0] == pixels.sum()
    assert read_rle(json.loads(json.dumps(mask.to_rle())), pixels.shape) == mask.to_rle()


@given(st.integers(0, 10**6))
def test_polygons_enclose_each_part_of_a_mask_with_its_holes_filled(seed):
    pixels = drawn(seed)
    parts, count = ndimage.label(pixels)
    polygons = Mask.of(pixels).to_polygons()
    assert len(polygons) == count
    if count:
        filled = [ndimage.binary_fill_holes(parts == number, np.ones((3, 3))) for number in range(1, count + 1)]
        assert (coco_mask.decode(read_rle(polygons, pixels.shape)).astype(bool) == np.any(filled, axis=0)).all()


def test_a_polygon_has_the_corners_of_pixels():
    assert Mask.of(RING).to_polygons() == [[2, 1, 5, 1, 5, 4, 2, 4]]
    assert Mask.of(np.eye(2, dtype=bool)).to_polygons() == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


def test_run_lengths_that_are_not_compressed_are_read():
    assert (
        read_rle({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
        == Mask.of(np.array([[0, 1, 0], [1, 0, 0]], dtype=bool)).to_rle()
    )


@pytest.mark.parametrize(
    "segmentation",
    [
        None, [], {}, "06", 3, [[0, 0, 1, 1]], [[0, 0, 1, 1, 1]], [[0, 0, 1, 1, 1, float("nan")]],
        [[0, 0, 1, 1, "1", 0]],
        {"size": [3, 2], "counts": [6]}, {"size": [2, 3], "counts": [5]}, {"size": [2, 3], "counts": [-1, 7]},
        {"size": [2, 3], "counts": "7"}, {"size": [2, 3], "counts": "6P"}, {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": "oooooooooooooooooooo0"}, {"size": [2, 3], "counts": 6}, {"counts": "6"},
    ],
)  # fmt: skip
def test_what_is_no_mask_of_the_image_is_told_apart(segmentation):
    assert read_rle({"size": [2, 3], "counts": "6"}, (2, 3)) is not None
    assert read_rle(segmentation, (2, 3)) is None


def test_overlaps_of_masks_are_shares_of_the_union_and_in_a_crowd_of_the_found_mask():
    left, whole = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    left[:, :2] = True
    found, truth = ([Mask.of(pixels).to_rle()] for pixels in (left, whole))
    assert overlaps(found, truth, [False]).tolist() == [[0.5]]
    assert overlaps(found, truth, [True]).tolist() == [[1.0]]


def test_areas_of_more_masks_than_eight_bits_count():
    masks = [Mask.of((np.arange(300) < n)[None]).to_rle() for n in range(300)]
    assert areas(masks).tolist() == list(range(300))
    assert areas([]).shape == (0,)


def test_masks_follow_their_detections():
    masks = tuple(Mask.of(np.eye(size, dtype=bool)) for size in (1, 2, 3))
    found = Detections(torch.zeros(3, 4), torch.tensor([0.9, 0.5, 0.3]), torch.arange(3), ("a", "b", "c"), masks=masks)
    assert found.above(0.4).masks == masks[:2]
    assert found.select(torch.tensor([2, 0])).masks == (masks[2], masks[0])
    assert found.select(slice(1, None)).masks == masks[1:]
