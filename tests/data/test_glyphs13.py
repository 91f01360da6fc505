"""The thirteen synthetic sets, and how they are written to disk."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glip_adapt.core.captions import build_caption
from glip_adapt.data import glyphs, glyphs13, scenes
from glip_adapt.data.check import check_folder
from glip_adapt.data.dataset import load_dataset

BY_NAME = {glyph.name: glyph for glyph in (*glyphs.seen_glyphs(), *glyphs.unseen_glyphs())}
BY_SET = {spec.name: spec for spec in glyphs13.glyph_sets()}
SMALL = replace(BY_SET["Transport"], images=(12, 4, 6))


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
def test_training_splits_serve_ten_shots_and_splits_share_no_image(spec):
    train = list(glyphs13.scenes(spec, "train"))
    images = Counter(name for scene, labelled in train for name in {scene.names[position] for position in labelled})
    assert all(images[name] >= 10 for name in spec.classes)
    others = [
        scene for split in ("valid", "test") for scene, _ in glyphs13.scenes(replace(spec, images=(9, 9, 9)), split)
    ]
    drawn = [scene.image.tobytes() for scene, _ in train] + [scene.image.tobytes() for scene in others]
    assert len(set(drawn)) == len(drawn)


def test_a_written_set_is_a_dataset_without_defects(tmp_path):
    for spec in (SMALL, replace(BY_SET["Arrows"], images=(4, 2, 3))):
        folder = tmp_path / "deeper" / spec.name
        glyphs13.write_glyph_set(spec, folder)
        assert not any(split.defects for split in check_folder(folder).splits.values())
        data = load_dataset(folder)
        assert data.classes == spec.classes
        assert (len(data.train), len(data.val), len(data.test)) == spec.images
        assert {record.size_hw for record in data.train.records} == {spec.size_hw}
        drawn = list(glyphs13.scenes(spec, "train"))
        for record, (scene, labelled) in zip(data.train.records, drawn, strict=True):
            assert np.array_equal(np.asarray(Image.open(record.path)), np.asarray(scene.image))
            assert np.array_equal(record.target.boxes_xyxy.numpy(), scene.boxes_xyxy[labelled])
            assert [spec.classes[label] for label in record.target.labels] == [scene.names[i] for i in labelled]


def test_only_the_classes_are_labelled_and_some_images_are_empty():
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
