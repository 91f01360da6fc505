"""The rendered stand-in for ODinW-13: names and their split, scenes, and the thirteen sets."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glip_adapt.core.captions import build_caption
from glip_adapt.data import glyphs, glyphs13, scenes
from glip_adapt.data.check import check_split
from glip_adapt.data.dataset import find_splits, load_dataset

NONE = (0, 0, 0)
CLEAN = replace(scenes.TRAINING_STYLE, backgrounds=("plain",), clutter=NONE, blur=NONE, noise=NONE)
ALL = (*glyphs.seen_glyphs(), *glyphs.unseen_glyphs())
BY_NAME = {glyph.name: glyph for glyph in ALL}
BY_SET = {spec.name: spec for spec in glyphs13.glyph_sets()}
SMALL = replace(BY_SET["Transport"], images=(12, 4, 6))


def draw(count=5, colours=None, style=scenes.TRAINING_STYLE, seed=0, size_hw=(160, 160)):
    generator = np.random.default_rng(seed)
    seen = glyphs.seen_glyphs()
    chosen = [seen[position] for position in generator.integers(len(seen), size=count)]
    return scenes.render_scene(chosen, colours, style, generator, size_hw)


def foreground(image):
    """Return how far each pixel is from the most frequent colour, relative to the farthest."""
    pixels = np.asarray(image).astype(int)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    distances = np.abs(pixels - colours[counts.argmax()]).sum(-1)
    return distances / distances.max()


# Names


def test_names_are_many_short_and_unique():
    names = [glyph.name for glyph in ALL]
    assert len(set(names)) == len(names) > 340
    assert all(1 <= len(name.split()) <= 4 and name.replace(" ", "").isascii() for name in names)
    assert all(name == name.casefold() for name in names)


def test_colours_stay_free_words():
    words = {word for glyph in ALL for word in glyph.name.split()}
    assert words.isdisjoint({*scenes.COLOURS, "black", "white"})


def test_unseen_names_are_a_tenth_and_never_seen():
    seen, unseen = ({glyph.name for glyph in group} for group in (glyphs.seen_glyphs(), glyphs.unseen_glyphs()))
    assert seen.isdisjoint(unseen)
    assert 0.07 < len(unseen) / len(ALL) < 0.13
    characters = [glyph.character for glyph in ALL]
    assert len(set(characters)) == len(characters)


def test_names_of_the_unseen_follow_the_same_rule():
    assert all(glyphs._name(glyph.character) == glyph.name for glyph in glyphs.unseen_glyphs())


def test_unseen_compositions_are_made_of_seen_words_and_novel_nouns_are_not():
    words = {word for glyph in glyphs.seen_glyphs() for word in glyph.name.split()}
    for glyph in glyphs.unseen_glyphs():
        composed = glyph.name.startswith("hollow")
        assert words.issuperset(glyph.name.split()) if composed else words.isdisjoint(glyph.name.split())


def test_every_glyph_looks_different_from_every_other():
    """At 34 pixels, in the first font that has it; near-duplicates would be label noise."""
    drawn = set()
    for glyph in ALL:
        mask = scenes._masks(glyph.character, glyph.fonts[0], False)[3]
        picture = Image.new("L", (40, 40))
        picture.paste(mask, ((40 - mask.width) // 2, (40 - mask.height) // 2))
        drawn.add(picture.tobytes())
    assert len(drawn) == len(ALL)


def test_a_fifth_of_the_colour_and_name_pairs_is_held_out_for_good():
    pairs = [(colour, glyph.name) for colour in scenes.COLOURS for glyph in ALL]
    assert 0.18 < np.mean([scenes.is_held_out(*pair) for pair in pairs]) < 0.22
    per_colour = [np.mean([scenes.is_held_out(colour, glyph.name) for glyph in ALL]) for colour in scenes.COLOURS]
    assert 0.12 < min(per_colour) <= max(per_colour) < 0.28
    red = [name for name in ("anchor", "cloud", "dollar", "gear", "leo", "umbrella") if scenes.is_held_out("red", name)]
    assert red == ["cloud", "dollar", "gear"]


# Scenes


def test_a_generator_state_gives_one_scene():
    first, second, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert first.image.tobytes() == second.image.tobytes() != other.image.tobytes()
    assert np.array_equal(first.boxes_xyxy, second.boxes_xyxy)
    assert (first.names, first.colours) == (second.names, second.colours)


@pytest.mark.parametrize("style", [scenes.TRAINING_STYLE, *(spec.style for spec in glyphs13.glyph_sets())])
def test_boxes_lie_in_the_picture(style):
    for seed in range(5):
        scene = draw(9, style=style, seed=seed, size_hw=(128, 176))
        assert scene.image.size == (176, 128)
        assert scene.boxes_xyxy.dtype == np.float32
        assert scene.boxes_xyxy.shape == (len(scene.names), 4) == (len(scene.colours), 4)
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy[:, 2:] <= (175, 127)).all()
        assert (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2] >= 2).all()


def test_a_box_is_tight_around_what_is_seen():
    for seed in range(40):
        scene = draw(1, style=CLEAN, seed=seed)
        seen = foreground(scene.image)
        x1, y1, x2, y2 = scene.boxes_xyxy[0].astype(int)
        inside = seen[y1 : y2 + 1, x1 : x2 + 1] > 0.15
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
        seen[y1 : y2 + 1, x1 : x2 + 1] = 0
        assert seen.max() < 0.4


def test_all_that_is_drawn_has_a_box_and_boxes_hardly_overlap():
    for seed in range(20):
        scene = draw(9, style=CLEAN, seed=seed)
        seen = foreground(scene.image)
        cover = np.zeros((160, 160), int)
        for x1, y1, x2, y2 in scene.boxes_xyxy.astype(int):
            cover[y1 : y2 + 1, x1 : x2 + 1] += 1
        assert seen[cover == 0].max() < 0.4
        assert (cover > 1).sum() < 0.1 * (cover > 0).sum()


def test_given_colours_are_used_and_seen():
    scene = draw(2, ["red", "white"], CLEAN, seed=3)
    assert scene.colours == ("red", "white")
    seen = foreground(scene.image)
    assert all(seen[y1 : y2 + 1, x1 : x2 + 1].max() > 0.3 for x1, y1, x2, y2 in scene.boxes_xyxy.astype(int))
    with pytest.raises(ValueError):
        draw(3, ["red"])


def test_pre_training_never_shows_a_held_out_pair():
    drawn = [draw(8, seed=seed) for seed in range(30)]
    assert not any(
        scenes.is_held_out(*pair) for scene in drawn for pair in zip(scene.colours, scene.names, strict=True)
    )


def test_what_finds_no_place_is_left_out():
    crowded = replace(CLEAN, size_px=(70, 70))
    assert 0 < len(draw(20, style=crowded).names) < 20
    assert draw(3, style=crowded, size_hw=(40, 40)).boxes_xyxy.shape == (0, 4)


def test_a_scene_without_glyphs_and_one_too_large():
    assert draw(0).boxes_xyxy.shape == (0, 4)
    with pytest.raises(ValueError, match="288"):
        draw(1, size_hw=(160, 300))


# Sets


def test_there_are_thirteen_sets_of_1_to_20_classes():
    assert len(BY_SET) == len(glyphs13.glyph_sets()) == 13
    counts = [len(spec.classes) for spec in glyphs13.glyph_sets()]
    assert (min(counts), max(counts)) == (1, 20)
    assert all(
        BY_NAME.keys() >= set(spec.classes) and len(set(spec.classes)) == len(spec.classes) for spec in BY_SET.values()
    )
    assert all(build_caption(spec.classes).names == spec.classes for spec in BY_SET.values())
    assert len({spec.style for spec in glyphs13.glyph_sets()}) == 13


def test_sets_of_new_names_hold_no_seen_one_and_every_unseen_name_is_tested():
    seen = {glyph.name for glyph in glyphs.seen_glyphs()}
    tested = {name for spec in glyphs13.glyph_sets() for name in spec.classes}
    assert all(seen.isdisjoint(BY_SET[name].classes) for name in ("ChessHollow", "Zodiac", "Planets"))
    assert tested.issuperset(glyph.name for glyph in glyphs.unseen_glyphs())


@pytest.mark.parametrize("spec", glyphs13.glyph_sets(), ids=BY_SET)
def test_training_splits_serve_ten_shots_and_splits_share_no_picture(spec):
    train = list(glyphs13.scenes(spec, "train"))
    pictures = Counter(name for scene, labelled in train for name in {scene.names[position] for position in labelled})
    assert all(pictures[name] >= 10 for name in spec.classes)
    others = [
        scene for split in ("valid", "test") for scene, _ in glyphs13.scenes(replace(spec, images=(9, 9, 9)), split)
    ]
    drawn = [scene.image.tobytes() for scene, _ in train] + [scene.image.tobytes() for scene in others]
    assert len(set(drawn)) == len(drawn)


def test_a_written_set_is_a_dataset_without_defects(tmp_path):
    for spec in (SMALL, replace(BY_SET["Arrows"], images=(4, 2, 3))):
        folder = tmp_path / "deeper" / spec.name
        glyphs13.write_glyph_set(spec, folder)
        assert all(check_split(*files) == [] for files in find_splits(folder).values())
        data = load_dataset(folder)
        assert data.classes == spec.classes
        assert (len(data.train), len(data.val), len(data.test)) == spec.images
        assert {record.size_hw for record in data.train.records} == {spec.size_hw}
        drawn = list(glyphs13.scenes(spec, "train"))
        for record, (scene, labelled) in zip(data.train.records, drawn, strict=True):
            assert np.array_equal(np.asarray(Image.open(record.path)), np.asarray(scene.image))
            assert np.array_equal(record.target.boxes_xyxy.numpy(), scene.boxes_xyxy[labelled])
            assert [spec.classes[label] for label in record.target.labels] == [scene.names[i] for i in labelled]


def test_only_the_classes_are_labelled_and_some_pictures_are_empty():
    drawn = list(glyphs13.scenes(BY_SET["Transport"], "valid"))
    assert any(not labelled for _, labelled in drawn)
    assert any(len(labelled) < len(scene.names) for scene, labelled in drawn)
    assert {scene.names[position] for scene, labelled in drawn for position in labelled} == {"airplane"}


def test_a_set_is_written_the_same_twice_and_not_over_an_existing_folder(tmp_path):
    for name in ("a", "b"):
        glyphs13.write_glyph_set(SMALL, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 12 + 4 + 6 + 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    (tmp_path / "mine").mkdir()
    glyphs13.write_glyph_set(SMALL, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_interrupted_writing_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_degrade", fail)
    with pytest.raises(KeyboardInterrupt):
        glyphs13.write_glyph_set(SMALL, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_no_hindrance_and_goes(tmp_path):
    left = [tmp_path / f".set-{os.getpid()}", tmp_path / ".set-abcd1234.partial"]
    for folder in left:
        (folder / "set" / "train").mkdir(parents=True)
    glyphs13.write_glyph_set(SMALL, tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left[0].name, "set"]
