"""Which images are suggested for labelling, in which order, and why."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled import make_split
from PIL import Image

from glip_adapt import FeatureCache, FitConfig, attach, load_dataset
from glip_adapt.core.structures import Detections, Pyramid
from glip_adapt.engine.train import train_model
from glip_adapt.share import suggesting
from glip_adapt.share.suggesting import pooled, suggest

NAMES = ("owl", "ant")
HERE, THERE, APART = (0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 30)  # the first two are one place


def found(*boxes):
    """Return detections, from (label, score, box)."""
    labels, scores, edges = zip(*boxes, strict=True) if boxes else ((), (), ())
    return Detections(
        torch.tensor(edges, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        NAMES,
    )


def towards(degrees):
    """Return a unit vector."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angle.cos(), angle.sin()))


@dataclass
class World:
    """Images by name, each with what a detector finds in it and the direction of its features."""

    folder: object
    looks: dict = field(default_factory=dict)

    def add(self, name, detections, degrees=0.0):
        path = self.folder / name
        Image.new("RGB", (40, 30)).save(path)
        self.looks[path.resolve()] = (detections, towards(degrees))
        return path

    def look(self, record):
        return self.looks[record.path.resolve()]

    def embedding(self, record):
        return self.look(record)[1]


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path)
    monkeypatch.setattr(suggesting, "_Seen", lambda *_: made)
    return made


def model(**thresholds):
    return SimpleNamespace(class_names=NAMES, thresholds=thresholds, view=None)


def names(suggestions):
    return [suggestion.path.stem for suggestion in suggestions]


def test_the_score_is_distance_times_rank(world):
    images = [
        world.add("a.png", found((0, 0.9, HERE)), 90),  # r = 2 objects / 1st = 2, doubt ¼, rank ⅓
        world.add("b.png", found((0, 0.5, HERE)), 0),  # r = 1, doubt 1, rank 1
        world.add("c.png", found((0, 0.1, HERE)), 30),  # r = ⅔, doubt 4/9, rank ⅔
    ]
    first, second, third = suggest(model(), images, 3)
    assert names([first, second, third]) == ["b", "a", "c"]
    assert first.score == pytest.approx(2)
    assert second.score == pytest.approx(np.sqrt(2) / 3)
    assert third.score == pytest.approx(2 * np.sin(np.deg2rad(15)) * 2 / 3)
    assert third.detections is world.looks[images[2].resolve()][0]
    assert suggest(model(), images, 1) == [first]


def test_thresholds_tell_how_many_objects_there_are(world):
    images = [world.add(f"{i}.png", found((0, score, HERE))) for i, score in enumerate((0.9, 0.7, 0.5))]
    for owl, most in ((0.8, "0"), (0.6, "1"), (0.4, "2")):
        assert names(suggest(model(owl=owl, ant=0.3), images, 1)) == [most]


def test_labelled_images_tell_how_many_objects_there_are(world):
    images = [world.add(f"{i}.png", found((0, score, HERE))) for i, score in enumerate((0.9, 0.8, 0.7, 0.6))]
    box = (1, 2, 3, 4)
    # m = 4 images × boxes per image × (owls + 1) / (owls + 2 classes); the image of the m-th box is first
    for owls, pictures, first in ((1, 4, "0"), (1, 2, "0"), (2, 2, "2"), (6, 6, "3")):  # m = ⅔, 4/3, 3, 3½
        split = make_split(world.folder / f"{owls}-{pictures}", [[("owl", box)]] * owls + [[]] * (pictures - owls))
        for record in split.records:
            world.looks[record.path.resolve()] = (found(), towards(90))
        assert names(suggest(model(), images, 1, labelled=[split])) == [first]


def test_boxes_of_two_classes_on_one_place_are_one_doubt(world):
    both = world.add("both.png", found((0, 0.9, HERE), (1, 0.8, THERE)))
    (one,) = suggest(model(), [both], 1)
    assert one.reason == "unsure about 1 box: owl or ant"
    apart = world.add("apart.png", found((0, 0.9, HERE), (1, 0.8, APART)))
    (two,) = suggest(model(), [apart], 1)
    assert two.reason == "unsure about 2 boxes: owl, ant"


def test_a_box_that_a_better_one_covers_is_no_option_for_a_third(world):
    chain = world.add("a.png", found((0, 0.9, (0, 0, 10, 10)), (1, 0.8, (3, 0, 13, 10)), (0, 0.7, (6, 0, 16, 10))))
    (best,) = suggest(model(), [chain], 1)
    assert best.reason == "unsure about 2 boxes: owl, owl or ant"


def test_one_coin_toss_is_more_than_two_half_doubts(world):
    sure = world.add("a.png", found((0, 0.9, HERE), (0, 0.2, APART)))  # 3 objects; (1/3)² and (3/4)²
    halves = world.add("b.png", found((0, 0.8, HERE), (0, 0.1, APART)))  # (2/3)² and (3/5)²
    toss = world.add("c.png", found((0, 0.7, HERE)))  # 1
    assert names(suggest(model(), [sure, halves, toss], 1)) == ["c"]


def test_noise_does_not_count(world):
    noisy = world.add("noisy.png", found(*((0, 0.1, (x, 0, x + 5, 5)) for x in range(0, 300, 10))))
    clear = world.add("clear.png", found((0, 0.5, HERE), (0, 0.4, APART)))  # ¼ + 1
    best = suggest(model(), [noisy, clear], 2)
    assert names(best) == ["clear", "noisy"]
    assert best[1].reason == "unsure about 2 boxes: owl"  # 3rd and 4th of 2 objects; 5th to 32nd would add up to 0.8


def test_classes_with_few_labelled_boxes_count_more(world):
    split = make_split(world.folder / "train", [[("owl", (1, 2, 3, 4))] * 3])
    world.looks[split.records[0].path.resolve()] = (found(), towards(90))
    owls = world.add("a.png", found(*((0, 0.9 - x / 1000, (x, 0, x + 5, 5)) for x in range(0, 50, 10))))
    ant = world.add("b.png", found((1, 0.9, HERE)))
    (best,) = suggest(model(), [owls, ant], 1, labelled=[split])
    assert best.path == ant  # (1 / 1.2)² = 0.69 against a sum of 2.2 for owls, of which there are three
    assert "no labelled ant yet" in best.reason


def test_without_doubts_to_compare_the_farthest_image_is_next(world):
    split = make_split(world.folder / "train", [[]])
    world.looks[split.records[0].path.resolve()] = (found(), towards(0))
    images = [world.add(f"{degrees:03}.png", found(), degrees) for degrees in (0, 12, 90, 100, 180)]
    best = suggest(model(), images, 5, labelled=[split])
    assert names(best) == ["180", "090", "012", "100", "000"]
    assert best[0].reason == "nothing found, so something may be missed; looks unlike the labelled images"
    assert best[1].reason == "nothing found, so something may be missed"
    assert best[-1].score == 0


def test_labelled_images_are_not_suggested(world):
    split = make_split(world.folder / "train", [[], []])
    for record in split.records:
        world.looks[record.path.resolve()] = (found(), towards(0))
    new = world.add("new.png", found())
    images = [*(record.path for record in split.records), new, str(new)]
    assert names(suggest(model(), images, 9, labelled=[split])) == ["new"]


boxes = st.tuples(st.integers(0, 1), st.floats(0.0625, 1, width=32), st.sampled_from([HERE, THERE, APART]))
scenes = st.lists(st.tuples(st.lists(boxes, max_size=4), st.floats(0, 360)), min_size=1, max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scenes=scenes, count=st.integers(1, 8), random=st.randoms(use_true_random=False), is_started=st.booleans())
def test_suggestions_fall_in_score_and_do_not_depend_on_the_order_of_images(world, scenes, count, random, is_started):
    split = make_split(world.folder / "train", [[("owl", (1, 2, 3, 4))]])
    world.looks[split.records[0].path.resolve()] = (found(), towards(0))
    images = [
        world.add(f"{i}.png", found(*sorted(some, key=lambda box: -box[1])), degrees)
        for i, (some, degrees) in enumerate(scenes)
    ]
    labelled = [split] if is_started else []
    best = suggest(model(), images, count, labelled=labelled)
    assert len(set(names(best))) == min(count, len(images))
    scores = [suggestion.score for suggestion in best]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 2 for score in scores)
    random.shuffle(images)
    again = suggest(model(), images, count, labelled=labelled)
    assert [(s.path, s.score, s.reason) for s in again] == [(s.path, s.score, s.reason) for s in best]
    assert names(suggest(model(), images, 1, labelled=labelled)) == names(best)[:1]


def test_padding_has_no_part_in_the_features():
    levels = [torch.zeros(1, 2, side, side) for side in (8, 4, 2)]
    levels[1][..., :3, :2] = torch.tensor([3.0, 4.0])[:, None, None]  # 24 of 32 pixels are 3 of 4 cells
    levels[2][..., :2, :1] = torch.tensor([0.0, 2.0])[:, None, None]
    expected = torch.tensor([0.6, 0.8, 0.0, 1.0], dtype=torch.float64) / 2**0.5
    assert pooled(Pyramid.from_levels(levels, ((24, 16),)), (32, 32)).allclose(expected)
    for level in levels[1:]:
        level[..., -1] = 99.0  # the last column is padding in both
    assert pooled(Pyramid.from_levels(levels, ((24, 16),)), (32, 32)).allclose(expected)
    assert not pooled(Pyramid.from_levels(levels, ((24, 32),)), (32, 32)).allclose(expected)


SMALL = FitConfig(max_steps=1, short_sides=(64,), test_short_side=64, flip=False, batch_size=2)


@pytest.mark.parametrize("method", ["zero_shot", "prompt", "linear_probe", "full"])
def test_every_method_can_suggest(tiny_trunk, coco_folder, method):
    data, seen = load_dataset(coco_folder), []
    adapted = attach(tiny_trunk, method, classes=data.classes)
    images = [record.path for record in data.test.records]
    best = suggest(
        adapted, images, 2, labelled=[data.train], view=SMALL.view, on_image=lambda *counts: seen.append(counts)
    )
    assert {suggestion.path for suggestion in best} < set(images)
    assert seen == [(number, 9) for number in range(1, 10)]
    for suggestion in best:
        expected = adapted.predict(suggestion.path, view=SMALL.view)
        assert suggestion.detections.boxes_xyxy.allclose(expected.boxes_xyxy, atol=1e-3)


def test_features_are_shared_with_training(tiny_trunk, coco_folder):
    data, cache = load_dataset(coco_folder), FeatureCache()
    adapted = attach(tiny_trunk, "prompt", classes=data.classes)
    train = replace(data.train, records=data.train.records[:2])
    train_model(adapted, train, None, SMALL, cache=cache)
    before = cache.statistics
    suggest(adapted, [data.test.records[0].path], 1, labelled=[train], view=SMALL.view, cache=cache)
    after = cache.statistics
    assert (after.memory_hits - before.memory_hits, after.misses - before.misses) == (2, 1)


def test_an_image_that_cannot_be_read_is_left_out_and_named(tiny_trunk, coco_folder, caplog):
    adapted = attach(tiny_trunk, "zero_shot", classes=NAMES)
    good, cut = coco_folder / "test" / "0.png", coco_folder / "cut.png"
    cut.write_bytes(good.read_bytes()[:100])
    broken = coco_folder / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    assert names(suggest(adapted, [broken, good, cut], 5, view=SMALL.view)) == ["0"]
    assert "broken.jpg" in caplog.text
    assert "cut.png" in caplog.text
    with pytest.raises(ValueError, match="no unlabelled image that can be read"):
        suggest(adapted, [broken], 5, view=SMALL.view)


def test_a_count_below_one_is_refused(tiny_trunk):
    with pytest.raises(ValueError, match="at least 1 image"):
        suggest(attach(tiny_trunk, "zero_shot", classes=NAMES), [], 0)
