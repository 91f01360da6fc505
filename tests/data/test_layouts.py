"""Folder layouts of COCO datasets."""

import json

import pytest
from test_dataset import WITHOUT_BACKGROUND, sizes, write

from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.formats import coco

LABELME = '{"version": "5", "flags": {}, "shapes": [{"label": "images"}], "imagePath": "a.png", "images": 1}'
COCO = '{"images": [], "annotations": []}'


@pytest.mark.parametrize("val", ["val", "valid"])
@pytest.mark.parametrize("below", ["", "export", "a/b"])
@pytest.mark.parametrize("file", [WITHOUT_BACKGROUND, "_annotations.coco.json", "annotations.json", "mine.json"])
def test_a_folder_per_split_is_a_dataset(tmp_path, val, below, file):
    root = tmp_path / "birds"
    for count, name in enumerate(("train", val, "test"), start=1):
        write(root / below / name / file, count=count)
        (root / below / name / "fewshot_train_shot1_seed3.json").write_text("{}")
    data = load_dataset(root)
    assert sizes(data) == {"train": 1, "val": 2, "test": 3}
    assert (data.name, data.train.name, data.prompts) == ("birds", "birds/train", None)


def test_images_may_lie_in_a_folder_of_their_own(tmp_path):
    write(tmp_path / "birds" / "train" / "annotations.json", tmp_path / "birds" / "train" / "images")
    assert load_dataset(tmp_path / "birds").train.image_dir == tmp_path / "birds" / "train" / "images"


@pytest.mark.parametrize("below", ["annotations", ""])
@pytest.mark.parametrize("file", ["{}.json", "instances_{}.json", "instances_{}2017.json"])
@pytest.mark.parametrize("images", ["{}", "images/{}", "images", "images prefixed", "prefixed"])
def test_the_layout_of_coco_itself_is_a_dataset(tmp_path, below, file, images):
    root = tmp_path / "coco"
    for count, name in enumerate(("train", "val", "test"), start=1):
        where, _, prefixed = images.rpartition("prefixed")
        image_dir = root / (where.strip() if prefixed == "" and "prefixed" in images else images.format(name))
        write(root / below / file.format(name), image_dir, f"{name}/" if "prefixed" in images else "", count)
    data = load_dataset(root)
    assert sizes(data) == {"train": 1, "val": 2, "test": 3}
    assert all(record.path.is_file() for split in data.splits.values() for record in split.records)


def test_image_folders_may_carry_the_year(tmp_path):
    write(tmp_path / "annotations" / "instances_val2017.json", tmp_path / "val2017")
    assert load_dataset(tmp_path).val.image_dir == tmp_path / "val2017"


def test_ambiguous_folders_are_refused(tmp_path):
    write(tmp_path / "a" / "train" / "one.json")
    write(tmp_path / "a" / "train" / "two.json")
    with pytest.raises(ValueError, match=r"Several COCO files.*one\.json, two\.json"):
        load_dataset(tmp_path / "a")
    write(tmp_path / "b" / "c" / "train" / "one.json")
    write(tmp_path / "b" / "d" / "train" / "one.json")
    with pytest.raises(ValueError, match="holds several datasets"):
        load_dataset(tmp_path / "b")
    write(tmp_path / "e" / "val" / "one.json")
    write(tmp_path / "e" / "valid" / "one.json")
    with pytest.raises(ValueError, match="both a valid and a val"):
        load_dataset(tmp_path / "e")
    write(tmp_path / "f" / "annotations" / "instances_val2014.json")
    write(tmp_path / "f" / "annotations" / "instances_val2017.json")
    with pytest.raises(ValueError, match="Several val files"):
        load_dataset(tmp_path / "f")


def test_a_folder_without_annotations_says_what_was_expected(tmp_path):
    (tmp_path / "birds" / "train").mkdir(parents=True)
    (tmp_path / "birds" / ".hidden").mkdir()
    write(tmp_path / "birds" / ".hidden" / "test" / "annotations.json")
    with pytest.raises(ValueError, match=r"no dataset of a known format.*coco: folders train.*Found there: .hidden/, "):
        load_dataset(tmp_path / "birds")
    with pytest.raises(ValueError, match=r"Found no COCO file.*Expected folders train"):
        load_dataset(tmp_path / "birds", format="coco")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT
        ("result.json", "images"),  # Label Studio
        ("_annotations.coco.json", ""),  # Roboflow without splits
        ("annotations/instances_default.json", "images"),
    ],
)
def test_a_single_file_is_the_training_split(tmp_path, file, images):
    write(tmp_path / "birds" / file, tmp_path / "birds" / images, count=2)
    (tmp_path / "birds" / "info.json").write_text("{}")
    data = load_dataset(tmp_path / "birds")
    assert sizes(data) == {"train": 2}
    assert data.train.image_dir == tmp_path / "birds" / images
    with pytest.raises(FileNotFoundError, match="has no test split, only train"):
        _ = data.test


def test_several_files_of_no_known_name_are_listed(tmp_path):
    write(tmp_path / "birds" / "one.json")
    write(tmp_path / "birds" / "two.json")
    with pytest.raises(ValueError, match=r"several COCO files in .*one\.json, two\.json"):
        load_dataset(tmp_path / "birds")
    (tmp_path / "birds" / "two.json").write_text('{"images": [{"file_name": "0.png"}]}')  # no annotations
    assert load_dataset(tmp_path / "birds").train.annotation_file.name == "one.json"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "package.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"no COCO file in .*package\.json"):
        load_dataset(tmp_path / "notes", format="coco")


@pytest.mark.parametrize(
    ("files", "is_coco"),
    [
        ({}, False),
        ({"a.json": "{}"}, False),
        ({"a.json": '{"images": [], "annotations": []}'}, True),
        ({"a.json": '{"images": [], "annotations": []}', "b.json": '{"images": [], "annotations": []}'}, True),
        ({"train/a.json": "{}"}, True),
        ({"train/a.json": "{}", "train/b.json": "{}"}, True),  # ambiguous: reading it says so
        ({"annotations/instances_val.json": "broken"}, True),
        ({"train/a.json": LABELME}, False),
        ({"train/a.json": LABELME, "train/b.json": LABELME, "train/annotations.json": COCO}, True),
        ({"train.json": LABELME}, False),
        ({"train/annotations.json": LABELME}, False),
        ({"a.json": LABELME, "b.json": LABELME}, False),
        ({"train/a.json": "[]"}, False),
        ({"result.json": '[{"data": {"images": 1}, "annotations": []}]'}, False),  # Label Studio
        ({"train/info.json": '{"name": "birds", "images": {"a": 1}}'}, True),
        ({"train/info.json": '{"name": "birds", "about": {"images": 1, "categories": 2}}'}, False),
        ({"a.json": '\ufeff {"info": {"a": [1, "}"]}, "licenses": [{}], "images": ['}, True),
        ({"a.json": json.dumps({"annotations": ["x" * 100_000], "images": []})}, True),
    ],
)
def test_coco_recognises_a_folder_by_the_start_of_its_files(tmp_path, files, is_coco):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert coco.recognises(tmp_path) is is_coco
