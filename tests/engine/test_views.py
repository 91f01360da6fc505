"""Several views of an image, and how their boxes are merged."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_adapt import load_dataset
from glip_adapt.core.settings import ViewConfig, Views
from glip_adapt.core.structures import Detections
from glip_adapt.data.transforms import ShownView, View, resize_shape, view_image, views_of
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import evaluate, to_coco_results
from glip_adapt.engine.views import in_image, merge_views

SMALL = ViewConfig(short_side=64, max_long_side=120)
CLASSES = ("red box", "blue box")
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
ALL = (0.0, math.inf)
sides = st.integers(20, 700)


@pytest.fixture(params=["tiny_trunk", "dino_trunk"])
def model(request):
    return attach(request.getfixturevalue(request.param), "zero_shot", classes=CLASSES)


def boxes_of(*rows):
    """Return boxes of the class in the last column, with the score in the last but one."""
    table = torch.tensor(rows)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


@given(sides, sides, st.integers(32, 300), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_image_from_edge_to_edge_and_overlap_as_asked(height, width, tile, overlap):
    whole, *tiles = [s.view.part for s in views_of((height, width), Views(tile=tile, overlap=overlap), 64)]
    assert whole is None
    assert (len(tiles) == 0) == (max(height, width) <= tile)
    for low, high, length in ((0, 2, width), (1, 3, height)) if tiles else ():
        spans = sorted({(part[low], part[high]) for part in tiles})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert {end - start for start, end in spans} == {min(tile, length)}
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= math.floor(overlap * tile) - 1
    assert len(tiles) == len(set(tiles))


def test_views_come_size_by_size_each_with_its_mirror_image():
    views = Views(sizes=(64, 96), flip=True, areas=((0, 40), (20, 900)))
    assert views_of((50, 60), views, 800) == [
        ShownView(View(64, False), (0, 40)),
        ShownView(View(64, True), (0, 40)),
        ShownView(View(96, False), (20, 900)),
        ShownView(View(96, True), (20, 900)),
    ]
    assert views_of((50, 60), Views(), 800) == [ShownView(View(800, False), ALL)]


def test_a_tile_is_shown_like_an_image_of_its_own():
    image = Image.fromarray(IMAGE)
    tile = view_image(image, View(64, False, (30, 10, 110, 90)), 120)
    alone = view_image(image.crop((30, 10, 110, 90)), View(64, False), 120)
    assert tile.shape == alone.shape == (3, 64, 64)
    inside = (tile.float() - alone.float())[:, 2:-2, 2:-2].abs().max()  # at its border a tile sees its neighbours
    assert inside <= 1


@pytest.mark.parametrize("last_pixel", [0.0, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_box_of_a_view_comes_back_to_its_place(flip, last_pixel):
    part, size_hw = (100, 40, 300, 140), (200, 400)
    view = View(50, flip, part)
    seen_hw = view.seen_hw(size_hw, 1000)
    assert seen_hw == (50, 100)
    left, right = (10, 30) if not flip else (100 - 30, 100 - 10)  # edges, in pixels of the view
    found = boxes_of([left, 20, right - last_pixel, 40 - last_pixel, 0.9, 0])
    (box,) = in_image(found, ShownView(view, ALL), seen_hw, size_hw, last_pixel).boxes_xyxy.tolist()
    if flip and last_pixel:  # corners are mirrored in pixels of the view, as in the public code
        left, right = 99 - (right - 1), 99 - left + 1
        assert box == [100 + 2 * left, 80, 100 + 2 * (right - 1), 118]
    else:
        assert box == [120, 80, 160 - 2 * last_pixel, 120 - 2 * last_pixel]


def test_boxes_outside_of_the_range_of_areas_are_left_out():
    found = boxes_of([0, 0, 9, 9, 0.9, 0], [0, 0, 19, 19, 0.8, 0], [0, 0, 39, 39, 0.7, 0])
    kept = in_image(found, ShownView(View(64, False), (10, 40)), (64, 64), (64, 64), 1.0)
    assert kept.scores.tolist() == pytest.approx([0.8])


OVERLAPPING = boxes_of(
    [0, 0, 100, 100, 0.8, 0], [0, 0, 100, 80, 0.4, 0], [0, 0, 100, 80, 0.3, 1], [200, 0, 300, 100, 0.2, 0]
)


def test_the_best_of_overlapping_boxes_of_a_class_stays():
    found = merge_views(OVERLAPPING, "best", 0.0)
    assert found.scores.tolist() == pytest.approx([0.8, 0.3, 0.2])
    assert found.boxes_xyxy[0].tolist() == [0, 0, 100, 100]


def test_a_vote_is_the_mean_by_score_and_the_rest_may_stay_with_less():
    found = merge_views(OVERLAPPING, "vote", 0.0)
    assert found.scores.tolist() == pytest.approx([0.8, 0.3, 0.2])
    assert found.boxes_xyxy[0].tolist() == pytest.approx([0, 0, 100, 100 * 2 / 3 + 80 / 3])
    soft = merge_views(OVERLAPPING, "soft_vote", 0.0)
    assert soft.scores.tolist() == pytest.approx([0.8, 0.3, 0.2, 0.4 * 0.2])
    assert soft.boxes_xyxy[3].tolist() == [0, 0, 100, 80]


def test_a_thousand_boxes_stay_and_those_that_tie_with_the_last():
    place = torch.arange(1100.0)[:, None] * 20
    found = Detections(
        torch.cat((place, torch.zeros_like(place), place + 10, torch.full_like(place, 10)), 1),
        torch.cat((torch.full((990,), 0.9), torch.full((20,), 0.5), torch.full((90,), 0.1))),
        torch.zeros(1100, dtype=torch.int64),
    )
    assert len(merge_views(found, "best", 0.0)) == 1010
    assert len(merge_views(found.select(slice(0)), "best", 0.0)) == 0


def test_one_view_finds_what_predict_finds_among_more(model):
    plain = model.predict(IMAGE, view=SMALL)
    found = model.predict(IMAGE, view=SMALL, views=Views())
    assert found.class_names == CLASSES
    assert torch.allclose(found.scores[:1], plain.scores[:1])
    assert torch.allclose(found.boxes_xyxy[:1], plain.boxes_xyxy[:1], atol=1e-3)
    assert (found.scores.diff() <= 0).all()


def test_a_mirrored_image_has_mirrored_boxes(model):
    views = Views(sizes=(64, 96), flip=True)
    found, mirrored = (
        model.predict(np.ascontiguousarray(image), view=SMALL, views=views).select(slice(10))
        for image in (IMAGE, IMAGE[:, ::-1])
    )
    assert torch.allclose(found.scores, mirrored.scores, atol=1e-3)
    edges = found.boxes_xyxy[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([130, 0, 130, 0])
    distance = (edges[:, None] - mirrored.boxes_xyxy[None]).abs().amax(-1)
    assert distance.amin(1).max() < 1.5  # corners of GLIP are mirrored in pixels of the view


def test_every_caption_keeps_its_own_boxes(tiny_trunk):
    colours, shapes = ("red", "blue", "green", "grey"), "abcdefghijklmnop"
    names = [f"{colour} {shape}7" for colour in colours for shape in shapes]
    model = attach(tiny_trunk, "zero_shot", classes=names)
    assert len(model.class_counts) > 1
    found = model.predict(IMAGE, view=SMALL, views=Views(flip=True))
    first = attach(tiny_trunk, "zero_shot", classes=names[: model.class_counts[0]])
    alone = first.predict(IMAGE, view=SMALL, views=Views(flip=True))
    mine = found.select(found.labels < model.class_counts[0])
    assert torch.equal(mine.scores, alone.scores)
    assert found.labels.max() >= model.class_counts[0]


def test_an_evaluation_finds_what_predict_finds_and_caches_each_view(model, coco_folder, tmp_path):
    split, views = load_dataset(coco_folder).test, Views(sizes=(64, 96), flip=True, tile=40)
    cache = FeatureCache(folder=tmp_path / "features", memory_bytes=0)
    first = evaluate(model, split, SMALL, views=views, cache=cache)
    looks = sum(len(views_of(record.header.size_hw, views, 64)) for record in split.records)
    assert looks > 4 * len(split)
    assert (cache.statistics.misses, cache.statistics.disk_hits) == (looks, 0)
    again = evaluate(model, split, SMALL, views=views, cache=cache)
    assert (cache.statistics.misses, cache.statistics.disk_hits) == (looks, looks)
    assert again.predictions == first.predictions
    found = [model.predict(record.path, view=SMALL, views=views) for record in split.records]
    expected = [
        entry
        for record, one in zip(split.records, found, strict=True)
        for entry in to_coco_results(one, record.image_id, split.category_ids)
    ]
    assert list(first.predictions) == expected


def test_a_view_of_the_whole_shares_its_features_with_a_plain_evaluation(tiny_trunk, coco_folder):
    model, cache, split = (
        attach(tiny_trunk, "zero_shot", classes=CLASSES),
        FeatureCache(),
        load_dataset(coco_folder).test,
    )
    one = replace(split, records=split.records[:1])
    evaluate(model, one, SMALL, cache=cache)
    evaluate(model, one, SMALL, views=Views(flip=True), cache=cache)
    assert (cache.statistics.misses, cache.statistics.memory_hits) == (2, 1)


def test_a_sentence_is_found_in_several_views(tiny_trunk):
    found = adapt(tiny_trunk, "zero_shot").ground(IMAGE, "a [red box]", view=SMALL, views=Views(flip=True))
    assert [phrase.span for phrase in found.phrases] == [(2, 9)]
    assert len(found) > 0


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"sizes": (64, 16)}, "at least 32 pixels"),
        ({"tile": 8}, "at least 32 pixels"),
        ({"overlap": 1.0}, "from 0 to 0.9"),
        ({"overlap": -0.1}, "from 0 to 0.9"),
        ({"sizes": (64, 96), "areas": ((0, 9),)}, "one range of areas for each of 2 sizes; got 1"),
        ({"sizes": (64,), "areas": ((9, 9),)}, "smaller number to a larger"),
        ({"merging": "votes"}, "did you mean 'vote'"),
    ],
)
def test_views_that_make_no_sense_are_refused(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        Views(**wrong)


def test_resized_tiles_have_the_shape_of_images_of_their_size():
    view = View(64, False, (0, 0, 50, 100))
    assert view.seen_hw((400, 400), 120) == resize_shape((100, 50), 64, 120)
