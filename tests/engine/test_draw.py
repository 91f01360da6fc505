"""Annotated pictures."""

import numpy as np
import torch
from PIL import Image

from glip_adapt.core.structures import Detections
from glip_adapt.engine.draw import COLOURS, draw_detections


def test_a_box_is_drawn_in_the_colour_of_its_class_on_a_copy():
    picture = Image.new("RGB", (200, 150), "white")
    found = Detections(
        torch.tensor([[20.0, 60.0, 121.0, 131.0]]), torch.tensor([0.9]), torch.tensor([1]), ("cat", "dog")
    )
    drawn = draw_detections(picture, found)
    colour = tuple(int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5))
    assert drawn.getpixel((20, 100)) == drawn.getpixel((120, 100)) == drawn.getpixel((70, 130)) == colour
    assert drawn.getpixel((70, 100)) == (255, 255, 255)
    assert picture.getpixel((20, 100)) == (255, 255, 255)


def test_nothing_found_changes_nothing_and_boxes_at_the_border_are_fine():
    picture = Image.new("RGB", (60, 40), "white")
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert draw_detections(picture, nothing).tobytes() == picture.tobytes()
    edge = Detections(torch.tensor([[0.0, 0.0, 60.0, 40.0]]), torch.tensor([1.0]), torch.tensor([0]), ("x",))
    assert draw_detections(picture, edge).size == (60, 40)


def test_a_tag_at_the_right_edge_is_not_cut_off():
    image, tags = Image.new("RGB", (200, 80), "white"), []
    for left in (20.0, 185.0):
        edges = torch.tensor([[left, 50.0, left + 14, 70.0]])
        drawn = draw_detections(image, Detections(edges, torch.tensor([0.5]), torch.tensor([0]), ("raccoon",)))
        tags.append((np.asarray(drawn)[20:49] != 255).any(-1).sum())
    assert tags[0] == tags[1] > 0
