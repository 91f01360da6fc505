"""Detections to masks: one image or several, and detections that are not of the image."""

import numpy as np
import pytest
import torch
from PIL import Image

from glip_adapt.core.masks import Mask
from glip_adapt.core.structures import Detections
from glip_adapt.engine.segment import segment

NOTHING = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64), ("a",))


def found(*edges):
    return Detections(torch.tensor(edges), torch.ones(len(edges)), torch.zeros(len(edges), dtype=torch.int64), ("a",))


class Filled:
    """A segmenter whose masks are the boxes."""

    def masks(self, image, boxes_xyxy, boxes_at_once):
        pixels = np.zeros((len(boxes_xyxy), image.height, image.width), dtype=bool)
        for mask, (left, top, right, bottom) in zip(pixels, boxes_xyxy.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        return [Mask.of(mask) for mask in pixels]


def test_each_image_of_a_list_gets_its_masks(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", np.zeros((8, 9, 3), dtype=np.uint8), Image.new("RGB", (5, 5))]
    parts = segment(images, [found([1.0, 2.0, 5.0, 9.0]), found([0.0, 0.0, 9.0, 8.0]), NOTHING], Filled())
    assert [[(mask.size_hw, mask.area) for mask in part.masks] for part in parts] == [
        [((20, 30), 28)],
        [((8, 9), 72)],
        [],
    ]
    assert segment(images[0], parts[0], Filled()).masks == parts[0].masks


def test_without_a_box_no_segmenter_runs():
    assert segment(Image.new("RGB", (5, 5)), NOTHING, None) == NOTHING


@pytest.mark.parametrize(
    ("images", "detections", "message"),
    [
        ([Image.new("RGB", (9, 9))], [], "a list of 1 images, got a list of 0"),
        ([Image.new("RGB", (9, 9))], NOTHING, "a list of 1 images, got one"),
        (Image.new("RGB", (9, 9)), [NOTHING], "one image, got a list of 1"),
        (Image.new("RGB", (9, 9)), found([0.0, 0.0, 9.0, 40.0]), r"9 × 9 pixels, got some up to \(9, 40\)"),
        (Image.new("RGB", (9, 9)), found([-5.0, 0.0, 9.0, 9.0]), "of another image"),
        (Image.new("RGB", (9, 9)), found([0.0, 0.0, float("nan"), 9.0]), "of another image"),
    ],
)
def test_detections_of_other_images_are_refused(images, detections, message):
    with pytest.raises(ValueError, match=message):
        segment(images, detections, Filled())


def test_at_least_one_box_at_a_time():
    with pytest.raises(ValueError, match="at least one box at a time, got 0"):
        segment(Image.new("RGB", (9, 9)), NOTHING, Filled(), boxes_at_once=0)
