"""Annotated pictures."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.structures import Detections
from glip_adapt.engine.draw import (
    COLOURS,
    FALSE_ALARM,
    HIT,
    MISS,
    TRUTH,
    Mark,
    _place,
    _shared,
    _shorten,
    add_sentence,
    draw_detections,
    draw_marks,
    match_marks,
    name_class,
    truth_marks,
)
from glip_adapt.engine.metrics.matching import match


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


LOOKS = (TRUTH, HIT, MISS, FALSE_ALARM)
_numbers = st.floats(-50, 150)
_edges = st.tuples(_numbers, _numbers, _numbers, _numbers).map(
    lambda e: (min(e[0], e[2]), min(e[1], e[3]), max(e[0], e[2]), max(e[1], e[3]))
)
_marks = st.lists(st.builds(Mark, edges=_edges, text=st.text(max_size=30), look=st.sampled_from(LOOKS)), max_size=8)


@given(_marks, st.integers(1, 120), st.integers(1, 120), st.floats(0.1, 3))
def test_any_boxes_can_be_drawn_on_a_picture_of_any_size(marks, width, height, scale):
    picture = Image.new("RGB", (width, height), "white")
    drawn = draw_marks(picture, marks, letters=14, scale=scale)
    assert drawn.size == picture.size
    assert picture.getcolors() == [(width * height, (255, 255, 255))]


@given(_edges, st.integers(5, 100), st.integers(5, 30), st.lists(_edges, max_size=5))
def test_a_tag_is_never_outside_the_picture(edges, width, height, others):
    left, top, right, bottom = _place(edges, (width, height), (100, 100), others)
    assert 0 <= left <= right <= 100
    assert 0 <= top <= bottom <= 100
    assert (right - left, bottom - top) == pytest.approx((width, height))


@given(st.text(max_size=40), st.integers(1, 60))
def test_a_text_is_cut_to_its_room(text, width):
    short = _shorten(text, width, len)
    assert len(short) <= width
    assert short == text or short == text[: width - 1] + "…"


def test_tags_of_boxes_in_one_place_do_not_cover_one_another():
    placed = []
    for _ in range(6):
        placed.append(_place((100, 100, 180, 180), (60, 20), (400, 300), placed))
    assert all(_shared(one, other) == 0 for one, other in itertools.combinations(placed, 2))


def lightness(colour):
    """Relative luminance as WCAG defines it."""
    parts = [value / 255 for value in ImageColor.getrgb(colour)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_kinds_differ_without_colour_and_tags_have_contrast():
    """WCAG asks for 4.5 : 1 between text and background; lines and signs differ as well."""
    for look in LOOKS:
        light, dark = sorted((lightness(look.colour), lightness(look.ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    verdicts = (HIT, MISS, FALSE_ALARM)
    for one, other in itertools.combinations(verdicts, 2):
        light, dark = sorted((lightness(one.colour), lightness(other.colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 1.3
        assert one.dashes != other.dashes
        assert one.sign != other.sign


@pytest.mark.parametrize("look", LOOKS)
def test_lines_are_solid_or_dashed(look):
    picture = Image.new("RGB", (200, 200), "white")
    drawn = draw_marks(picture, [Mark(edges=(20, 60, 180, 180), text="x", look=look)], letters=15)
    colour, rows = ImageColor.getrgb(look.colour), range(65, 175)
    share = np.mean([drawn.getpixel((20, row)) == colour for row in rows])
    assert share == 1 if look.dashes is None else 0.3 < share < 0.8
    assert drawn.getpixel((100, 120)) == (255, 255, 255)


def test_matches_become_marks_in_pixels_with_names_and_scores():
    """A cat is found, a dog is missed, and a dog is seen where nothing is."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 40]},
            {"image_id": 1, "category_id": 6, "bbox": [60, 20, 30, 40]},
        ],
    }
    found = [
        {"image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 38], "score": 0.75},
        {"image_id": 1, "category_id": 6, "bbox": [0, 0, 5, 5], "score": 0.5},
    ]
    matches, names = match(found, truth).images[0], ("cat", "dog")
    assert [(m.edges, m.text, m.look) for m in match_marks(matches, names)] == [
        ((10, 20, 40, 58), "cat 0.75", HIT),
        ((0, 0, 5, 5), "dog 0.50", FALSE_ALARM),
        ((60, 20, 90, 60), "dog", MISS),
    ]
    assert [(m.edges, m.text) for m in truth_marks(matches, names)] == [
        ((10, 20, 40, 60), "cat"), ((60, 20, 90, 60), "dog"),
    ]  # fmt: skip


def test_names_that_the_font_cannot_draw_are_numbers():
    names = ("Straße", "кошка", "犬", "a\nb", "", "\x00")
    assert [name_class(names, k) for k in range(6)] == ["Straße", "кошка", "#3", "a b", "#5", "#6"]


def test_a_sentence_stands_below_the_image_with_its_phrases_in_the_colours_of_their_boxes():
    image = Image.new("RGB", (200, 50), "black")
    sentence = sentence_caption("a [man] and [a dog] " + "far " * 30)
    drawn = add_sentence(image, sentence)
    assert drawn.crop((0, 0, 200, 50)).tobytes() == image.tobytes()
    rows = [y for y in range(50, drawn.height) if any(drawn.getpixel((x, y)) != (255,) * 3 for x in range(200))]
    assert rows[-1] - rows[0] > 3 * 11  # it is wrapped
    colours = {drawn.getpixel((x, y)) for y in rows for x in range(200)}
    assert {ImageColor.getrgb(colour) for colour in COLOURS} & colours == {
        ImageColor.getrgb(COLOURS[0]),
        ImageColor.getrgb(COLOURS[1]),
    }
