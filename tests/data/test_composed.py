"""Compositions of labelled images: pixels and boxes move together, and the draws are recorded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from glip_adapt.core import boxes
from glip_adapt.core.settings import Compositions
from glip_adapt.core.structures import Target
from glip_adapt.data.composed import ComposedRecord, Composition, Paste
from glip_adapt.data.composing import GONE, WHOLE, composed
from glip_adapt.data.split import ImageRecord, Split

GREY = (40, 40, 40)
COLOURS = {0: (250, 0, 0), 1: (0, 0, 250)}  # of the objects, by label


def record_of(folder, name, size_hw, placed):
    """Write a grey image with rectangles: pairs of label and edges."""
    height, width = size_hw
    pixels = np.full((height, width, 3), GREY, dtype=np.uint8)
    for label, (left, top, right, bottom) in placed:
        pixels[top:bottom, left:right] = COLOURS[label]
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    edges = torch.tensor([edges for _, edges in placed], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([label for label, _ in placed], dtype=torch.int64)
    return ImageRecord(name, path, size_hw, Target(boxes.from_edges(edges), labels))


@pytest.fixture
def split(tmp_path):
    records = (
        record_of(tmp_path, "one", (100, 160), [(0, (20, 30, 50, 60)), (1, (138, 4, 156, 16))]),
        record_of(tmp_path, "two", (120, 80), [(1, (10, 70, 40, 110))]),
    )
    return Split("Blocks/train", records, ("red block", "blue block"), (1, 2))


def colours_in(image, edges):
    """Return the pixels inside of a box, but for two at its rim, where resizing blends."""
    left, top, right, bottom = (round(edge) for edge in edges)
    return np.asarray(image)[top + 2 : bottom - 2, left + 2 : right - 2].reshape(-1, 3)


def nearest(pixels):
    """Return the label whose colour most of the pixels have."""
    distances = [np.abs(pixels - np.array(colour)).sum(axis=1) for colour in COLOURS.values()]
    return int(np.bincount(np.argmin(distances, axis=0)).argmax())


@pytest.mark.parametrize("seed", range(8))
def test_each_box_lies_on_an_object_of_its_class(split, seed):
    made = composed(split, Compositions(per_image=6, crop=0.8, paste=0.8), seed).records[2:]
    for record in made:
        image = record.load()
        assert image.mode == "RGB"
        assert (image.height, image.width) == record.header.size_hw
        edges = boxes.to_edges(record.target.boxes_xyxy)
        assert bool((edges[:, :2] >= 0).all())
        assert bool((edges[:, 2:] <= torch.tensor([image.width, image.height])).all())
        for label, box in zip(record.target.labels.tolist(), edges.tolist(), strict=True):
            inside = colours_in(image, box)
            assert nearest(inside) == label
            assert np.abs(inside - np.array(COLOURS[label])).max() < 8


@pytest.mark.parametrize("seed", range(8))
def test_no_object_is_left_without_a_box(split, seed):
    for record in composed(split, Compositions(per_image=6, crop=0.8, paste=0.8), seed).records[2:]:
        pixels = np.asarray(record.load()).astype(int)
        coloured = np.abs(pixels - np.array(GREY)).sum(axis=2) > 100
        for left, top, right, bottom in boxes.to_edges(record.target.boxes_xyxy).round().int().tolist():
            coloured[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert coloured.sum() <= GONE * 1200  # at most the rest of an object that a part cuts off


def test_the_images_come_first_and_as_they_are(split):
    made = composed(split, Compositions(per_image=3, crop=1.0), seed=0)
    assert made.records[:2] == split.records
    assert len(made) == 2 + 2 * 3
    assert (made.name, made.classes) == (split.name, split.classes)


def test_none_may_be_asked_for(split):
    assert composed(split, Compositions(per_image=0, crop=1.0), seed=0).records == split.records


def test_a_seed_gives_the_same_compositions_and_another_one_others(split):
    def draw(seed):
        return composed(split, Compositions(crop=0.7, paste=0.7, blend=0.3, colour=1.0), seed).records[2:]

    assert [r.composition for r in draw(5)] == [r.composition for r in draw(5)]
    assert [r.change for r in draw(5)] == [r.change for r in draw(5)]
    assert [r.change for r in draw(5)] != [r.change for r in draw(6)]


def test_no_change_is_drawn_with_a_probability_of_zero(split):
    for record in composed(split, Compositions(), seed=1).records[2:]:
        original = split.records[0] if record.path == split.records[0].path else split.records[1]
        assert record.load().tobytes() == original.load().tobytes()
        torch.testing.assert_close(record.target.boxes_xyxy, original.target.boxes_xyxy, rtol=0, atol=0)


def test_a_blend_shows_both_images_with_the_boxes_of_both(split):
    first, second = split.records
    height, width = first.size_hw
    made = ComposedRecord(
        "blend", first.path, first.size_hw, first.target, composition=Composition((0, 0, width, height), (second, 0.4))
    )
    left, right = (
        np.asarray(first.load()).astype(float),
        second.load().resize((width, height), Image.Resampling.BILINEAR),
    )
    expected = 0.6 * left + 0.4 * np.asarray(right).astype(float)
    assert np.abs(np.asarray(made.load()) - expected).max() <= 1
    drawn = composed(split, Compositions(per_image=20, blend=1.0), seed=3).records[2:]
    assert {len(record.target) for record in drawn} == {3}  # two of one image and one of the other
    pair = next(record for record in drawn if record.path == first.path)
    # box of "two": edges (10, 70, 40, 110) of 80 × 120 pixels, stretched to 160 × 100
    torch.testing.assert_close(
        boxes.to_edges(pair.target.boxes_xyxy)[2], torch.tensor([20.0, 70 * 100 / 120, 80.0, 110 * 100 / 120])
    )


def test_a_part_moves_boxes_and_drops_those_outside(split):
    first, counts = split.records[0], set()
    for record in composed(split, Compositions(per_image=40, crop=1.0), seed=2).records[2:42]:
        left, top, right, bottom = record.composition.part
        kept = []
        for x1, y1, x2, y2 in boxes.to_edges(first.target.boxes_xyxy).tolist():
            cut = (max(x1, left), max(y1, top), min(x2, right), min(y2, bottom))
            share = max(0, cut[2] - cut[0]) * max(0, cut[3] - cut[1]) / ((x2 - x1) * (y2 - y1))
            assert share >= WHOLE or share <= GONE
            if share >= WHOLE:
                kept.append([cut[0] - left, cut[1] - top, cut[2] - left, cut[3] - top])
        assert boxes.to_edges(record.target.boxes_xyxy).tolist() == kept
        counts.add(len(kept))
    assert counts == {1, 2}


def test_pasted_objects_cover_no_box(split):
    pasted = 0
    for record in composed(split, Compositions(per_image=30, paste=1.0), seed=4).records[2:]:
        overlaps = boxes.pairwise_iou(record.target.boxes_xyxy, record.target.boxes_xyxy)
        assert not bool((overlaps.fill_diagonal_(0) > 0).any())
        pasted += len(record.composition.pasted)
    assert pasted > 60


def test_classes_are_pasted_alike_however_many_objects_they_have(tmp_path):
    rare = [(0, (5, 5, 25, 25))] + [(1, (40 + 30 * i, 5, 60 + 30 * i, 25)) for i in range(9)]
    split = Split("Rare/train", (record_of(tmp_path, "rare", (200, 400), rare),), ("red block", "blue block"), (1, 2))
    made = composed(split, Compositions(per_image=100, paste=1.0), seed=0).records[1:]
    counts = torch.stack([torch.bincount(r.target.labels, minlength=2) for r in made]).sum(dim=0) - 100 * torch.tensor(
        [1, 9]
    )
    assert 0.7 < counts[0] / counts[1] < 1.4


def test_weights_of_boxes_go_along(split):
    first = split.records[0]
    weighed = replace(first, learned=replace(first.target, weights=torch.tensor([0.25, 0.5])))
    made = composed(replace(split, records=(weighed,)), Compositions(per_image=10, paste=1.0), seed=0).records[1:]
    pasted = 0
    for record in made:
        labels, weights = record.target.labels.tolist(), record.target.weights.tolist()
        assert weights == [(0.25, 0.5)[label] for label in labels]
        pasted += len(labels) - 2
    assert pasted > 10


def test_a_box_within_a_pasted_object_comes_along(tmp_path):
    person, helmet = (0, (20, 20, 100, 140)), (1, (40, 22, 70, 50))
    split = Split(
        "Site/train", (record_of(tmp_path, "site", (400, 400), [person, helmet]),), ("person", "helmet"), (1, 2)
    )
    persons = 0
    for record in composed(split, Compositions(per_image=20, paste=1.0), seed=0).records[1:]:
        edges, labels = boxes.to_edges(record.target.boxes_xyxy), record.target.labels.tolist()
        for (left, top, right, bottom), label in zip(edges.tolist(), labels, strict=True):
            if label == 0:
                persons += 1
                within = [left + (right - left) / 4, top + (bottom - top) / 60]  # a quarter in, and 2 of 120 down
                assert any(
                    other == 1 and np.allclose(edge[:2].tolist(), within, atol=0.01)
                    for edge, other in zip(edges, labels, strict=True)
                )
    assert persons > 30


def test_an_object_that_cuts_another_one_is_not_pasted(tmp_path):
    placed = [(0, (20, 20, 80, 80)), (1, (60, 60, 120, 120))]
    split = Split("Cut/train", (record_of(tmp_path, "cut", (300, 300), placed),), ("red block", "blue block"), (1, 2))
    made = composed(split, Compositions(per_image=10, paste=1.0), seed=0).records[1:]
    assert [record.composition.pasted for record in made] == [()] * 10


def test_an_image_is_not_blended_with_itself(split):
    made = composed(split, Compositions(per_image=20, blend=1.0), seed=0).records[2:]
    assert all(record.composition.blended[0].path != record.path for record in made)
    alone = composed(replace(split, records=split.records[:1]), Compositions(per_image=3, blend=1.0), seed=0).records[
        1:
    ]
    assert [record.composition.blended for record in alone] == [None] * 3


def test_boxes_that_become_a_pixel_or_less_are_left_out(tmp_path):
    large = record_of(tmp_path, "large", (400, 800), [(0, (100, 100, 106, 300)), (1, (300, 100, 500, 300))])
    small = record_of(tmp_path, "small", (40, 80), [(1, (10, 10, 30, 30))])
    split = Split("Blocks/train", (large, small), ("red block", "blue block"), (1, 2))
    made = composed(split, Compositions(per_image=1, blend=1.0), seed=0).records[-1]
    assert made.target.labels.tolist() == [1, 1]
    torch.testing.assert_close(boxes.to_edges(made.target.boxes_xyxy)[1], torch.tensor([30.0, 10.0, 50.0, 30.0]))


def test_an_image_without_boxes_can_be_composed(tmp_path):
    empty = record_of(tmp_path, "empty", (60, 60), [])
    split = Split("Empty/train", (empty,), ("red block", "blue block"), (1, 2))
    made = composed(split, Compositions(per_image=4, crop=1.0, paste=1.0, blend=1.0, colour=1.0), seed=0).records[1:]
    assert [len(record.target) for record in made] == [0] * 4
    assert all(record.load().mode == "RGB" for record in made)


def test_colours_move_by_the_recorded_numbers(split):
    first = split.records[0]
    height, width = first.size_hw

    def shown(*colours):
        made = Composition((0, 0, width, height), colours=colours)
        return np.asarray(ComposedRecord("c", first.path, first.size_hw, first.target, composition=made).load())[40, 30]

    assert shown(0.0, 1.0, 1.0).tolist() == [250, 0, 0]
    assert np.abs(shown(1 / 3, 1.0, 1.0) - np.array([0, 250, 0])).max() <= 6  # red turned by a third is green
    assert np.abs(shown(0.0, 1.0, 0.5) - np.array([125, 0, 0])).max() <= 2
    assert np.abs(shown(0.0, 0.5, 1.0) - np.array([250, 125, 125])).max() <= 3


def test_two_images_look_the_same_only_if_files_and_change_are_the_same(split):
    first, second = split.records
    height, width = first.size_hw
    paste = Paste(second, (8, 68, 42, 112), (60, 50, 94, 94))
    whole = Composition((0, 0, width, height))
    various = [
        whole,
        replace(whole, part=(0, 0, width, height - 1)),
        replace(whole, blended=(second, 0.4)),
        replace(whole, blended=(second, 0.5)),
        replace(whole, pasted=(paste,)),
        replace(whole, pasted=(replace(paste, place=(61, 50, 95, 94)),)),
        replace(whole, colours=(0.0, 1.0, 1.1)),
    ]
    made = [ComposedRecord("x", first.path, first.size_hw, first.target, composition=c) for c in various]
    assert len({(record.files, record.change) for record in made}) == len(various)
    assert made[2].files == (first.path, second.path)
    assert first.change == ""


def test_the_same_file_turned_otherwise_is_another_image(tmp_path):
    path, made = tmp_path / "turned.png", Composition((0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    one, other = (ComposedRecord("x", path, size_hw, empty, composition=made) for size_hw in ((30, 40), (40, 30)))
    assert one.change != other.change


@pytest.mark.parametrize(("name", "value"), [("per_image", -1), ("crop", 1.2), ("blend", -0.1), ("colour", 2)])
def test_settings_outside_of_their_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Compositions(**{name: value})
