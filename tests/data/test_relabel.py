"""Labels are changed where they stand: what is read again is what was said, and all else stays."""

import json
from pathlib import Path

import pytest
from labelled import boxes_of, make_split
from PIL import Image

from glip_adapt.data.dataset import find_format, load_dataset
from glip_adapt.data.relabel import RELABEL, relabel

SIZE = (30, 40)
PICTURES = {
    "train": [[("owl", (1, 2, 3, 4)), ("tawny owl, 2", (5.5, 6, 7.25, 8))], []],
    "val": [[("owl", (9, 8, 7, 6))]],
}
NEW = [("owl", (1, 2, 3, 4)), ("ant", (10, 11, 12.5, 13)), ("new class", (20, 5, 4, 4.75))]


@pytest.fixture(params=sorted(RELABEL))
def written(request, tmp_path):
    """Return the name of a format and a folder in it, with a picture that no label file speaks of."""
    splits = {name: make_split(tmp_path / "from" / name, stated) for name, stated in PICTURES.items()}
    folder = tmp_path / "to"
    folder.mkdir()
    find_format(request.param).write(splits, folder)
    beside = next(folder.rglob("1.png"))
    Image.new("RGB", SIZE[::-1], "red").save(beside.with_name("more.png"))
    return request.param, folder


def read(format, folder):
    """Return class name and box of each object, by the path of the image below the folder."""
    found = {}
    for source in find_format(format).read(folder).values():
        assert {kind for kind, _ in source.findings} <= {"image without a label file"}
        for name, objects in boxes_of(source).items():
            place = Path(source.image_dir / name).resolve().relative_to(folder).as_posix()
            found[place] = [(label, pytest.approx(box, abs=1e-3)) for label, box in objects]
    return found


def one(folder, name="1.png"):
    """Return a picture of the training split."""
    return min((path for path in folder.rglob(name) if "val" not in path.parts), key=lambda path: len(path.parts))


def as_read(boxes):
    return [(name, list(box)) for name, box in boxes]


def test_the_boxes_of_one_image_are_replaced_and_all_others_stay(written):
    format, folder = written
    before, image = read(format, folder), one(folder)
    relabel(folder, format, image, NEW, SIZE)
    key = image.relative_to(folder).as_posix()
    after = read(format, folder)
    assert as_read(NEW) == after.pop(key)
    del before[key]
    assert {name: [(n, b.expected) for n, b in boxes] for name, boxes in before.items()} == {
        name: [(n, pytest.approx(b.expected)) for n, b in boxes] for name, boxes in after.items()
    }
    assert {"owl", "ant", "new class"} <= set(load_dataset(folder, format=format).classes)


def test_an_image_gets_its_first_labels(written):
    format, folder = written
    image, before = one(folder, "more.png"), read(format, folder)
    key = image.relative_to(folder).as_posix()
    assert key not in before
    relabel(folder, format, image, NEW[:2], SIZE)
    after = read(format, folder)
    assert after[key] == as_read(NEW[:2])
    assert after.keys() == {*before, key}
    train = load_dataset(folder, format=format).train
    assert image.resolve() in [record.path.resolve() for record in train.records]


def test_an_image_may_show_nothing_or_lose_its_labels(written):
    format, folder = written
    image, key = one(folder), one(folder).relative_to(folder).as_posix()
    relabel(folder, format, image, [], SIZE)
    assert read(format, folder)[key] == []
    relabel(folder, format, image, NEW, SIZE)
    relabel(folder, format, image, None, SIZE)
    assert key not in read(format, folder)


def test_saving_the_same_again_changes_no_box(written):
    format, folder = written
    for boxes in (NEW, NEW[::-1], NEW):
        relabel(folder, format, one(folder), boxes, SIZE)
        assert read(format, folder)[one(folder).relative_to(folder).as_posix()] == as_read(boxes)


def test_a_failed_write_leaves_the_labels_as_they_were(written, monkeypatch):
    format, folder = written
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glip_adapt.core.files.flush_to_disk", fail)
    with pytest.raises(OSError, match="Make room"):
        relabel(folder, format, one(folder), NEW, SIZE)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


class TestCoco:
    def test_a_folder_without_labels_gets_a_file(self, tmp_path):
        make_split(tmp_path, [[], []])
        relabel(tmp_path, "coco", tmp_path / "2.png", NEW, SIZE)
        assert read("coco", tmp_path) == {"2.png": as_read(NEW)}

    def test_what_a_file_says_beside_boxes_stays(self, coco_folder):
        file = coco_folder / "train" / "annotations_without_background.json"
        document = json.loads(file.read_text()) | {"info": {"year": 2024}}
        note, other = [a for a in document["annotations"] if a["image_id"] == 1]
        note |= {"segmentation": [[1, 2, 3, 4, 5, 6]], "attributes": {"old": True}}
        document["annotations"].append({"id": 99, "image_id": 1, "category_id": 0, "bbox": [0, 0, 9, 9], "iscrowd": 1})
        file.write_text(json.dumps(document))
        relabel(coco_folder, "coco", coco_folder / "train" / "0.png", [("red box", tuple(note["bbox"]))], (64, 80))
        found = json.loads(file.read_text())
        assert found["info"] == {"year": 2024}
        assert [a for a in found["annotations"] if a["image_id"] == 1] == [document["annotations"][-1], note]
        assert other not in found["annotations"]

    def test_a_new_class_is_listed_in_each_split(self, coco_folder):
        relabel(coco_folder, "coco", coco_folder / "valid" / "0.png", [("new", (1, 1, 5, 5))], (64, 80))
        assert load_dataset(coco_folder).classes == ("red box", "blue box", "new")

    def test_a_heading_of_the_classes_stays_one(self, tmp_path):
        make_split(tmp_path, [[]])
        entries = [
            {"id": 0, "name": "birds", "supercategory": "none"},
            {"id": 1, "name": "owl", "supercategory": "birds"},
        ]
        image = {"id": 1, "file_name": "1.png", "height": 30, "width": 40}
        (tmp_path / "labels.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": entries}))
        relabel(tmp_path, "coco", tmp_path / "1.png", [("ant", (1, 1, 5, 5))], SIZE)
        assert load_dataset(tmp_path).classes == ("owl", "ant")

    def test_a_damaged_file_is_not_replaced(self, tmp_path):
        make_split(tmp_path, [[]])
        (tmp_path / "labels.json").write_text('{"images": [')
        with pytest.raises(ValueError):
            relabel(tmp_path, "coco", tmp_path / "1.png", NEW, SIZE)
        (tmp_path / "train.json").write_text('{"images": [')
        with pytest.raises(ValueError, match="Restore the file"):
            relabel(tmp_path, "coco", tmp_path / "1.png", NEW, SIZE)
