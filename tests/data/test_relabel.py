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


OLD, FRESH = ("owl", (10.0, 5.0, 10.0, 10.0)), ("ant", (1.0, 2.0, 3.0, 4.0))


@pytest.fixture
def picture(tmp_path):
    """A folder with one picture of 40 × 30 pixels, 1.png."""
    make_split(tmp_path, [[]])
    return tmp_path / "1.png"


def test_yolo_keeps_polygons_and_lines_that_it_does_not_understand(picture):
    polygon = "0 0.25 0.16666667 0.5 0.16666667 0.5 0.5 0.25 0.5"
    (picture.parent / "data.yaml").write_text("train: .\nnames: [owl, no]\nnc: 2\n")
    picture.with_suffix(".txt").write_text(f"{polygon}\n1 0.5 0.5 0.1 0.1\n7 0.1 0.1 0.1 0.1\n")
    relabel(picture.parent, "yolo", picture, [FRESH, OLD], SIZE)
    lines = picture.with_suffix(".txt").read_text().splitlines()
    assert lines[0] == "7 0.1 0.1 0.1 0.1"
    assert lines[1].startswith("2 ")
    assert lines[2:] == [polygon]
    settings = (picture.parent / "data.yaml").read_text()
    assert load_yaml(settings) == {"train": ".", "names": ["owl", "no", "ant"], "nc": "3"}


def load_yaml(text):
    import yaml

    return yaml.load(text, Loader=yaml.BaseLoader)


def test_yolo_has_no_place_for_an_image_that_no_split_takes_in(picture):
    (picture.parent / "images" / "train").mkdir(parents=True)
    (picture.parent / "data.yaml").write_text("train: images/train\nnames: [owl]\n")
    with pytest.raises(ValueError, match="in no split"):
        relabel(picture.parent, "yolo", picture, [OLD], SIZE)
    assert not picture.with_suffix(".txt").exists()


def test_voc_keeps_what_an_object_says_and_takes_a_renamed_image_for_what_it_is(picture):
    element = "<object><name>owl</name><difficult>1</difficult><pose>Left</pose><bndbox><xmin>11</xmin><ymin>6</ymin>"
    element += "<xmax>20</xmax><ymax>15</ymax></bndbox></object>"
    file = picture.with_name("other.xml")
    file.write_text(f"<annotation><source>x</source><filename>1.png</filename>{element}</annotation>")
    relabel(picture.parent, "voc", picture, [FRESH, OLD], SIZE)
    assert not picture.with_suffix(".xml").exists()
    text = "".join(file.read_text().split())
    assert "<source>x</source>" in text
    assert element in text
    assert read("voc", picture.parent) == {"1.png": as_read([FRESH, OLD])}


def test_labelme_keeps_groups_of_polygons_and_points(picture):
    def part(x):
        points = [[x, 5], [x + 5, 5], [x + 5, 15], [x, 15]]
        return {"label": "owl", "points": points, "shape_type": "polygon", "group_id": 3, "flags": {"wet": True}}

    point = {"label": "beak", "points": [[3, 3]], "shape_type": "point"}
    shapes = [part(10), point, part(15)]
    content = {"version": "5.0.1", "shapes": shapes, "imagePath": "1.png", "imageHeight": 30, "imageWidth": 40, "x": 1}
    picture.with_suffix(".json").write_text(json.dumps(content))
    relabel(picture.parent, "labelme", picture, [FRESH, OLD], SIZE)
    found = json.loads(picture.with_suffix(".json").read_text())
    assert found.pop("shapes")[::2] == [point, part(10)]
    assert found == {key: value for key, value in content.items() if key != "shapes"}
    relabel(picture.parent, "labelme", picture, [FRESH], SIZE)
    assert [shape["label"] for shape in json.loads(picture.with_suffix(".json").read_text())["shapes"]] == [
        "beak",
        "ant",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "id;image;label;x;y;width;height;note\n1;1.png;owl;10;5;10;10;wet\n2;gone.png;owl;1;1;1;1;\n",
            ";1.png;ant;1;2;3;4;\n1;1.png;owl;10;5;10;10;wet\n2;gone.png;owl;1;1;1;1;\n",
        ),
        ("1.png,10,5,20,15,owl\n1.png,0,0,9,9,owl\n", "1.png,1,2,4,6,ant\n1.png,10,5,20,15,owl\n"),
    ],
)
def test_csv_keeps_its_columns_and_the_rows_of_others(picture, before, after):
    file = picture.with_name("boxes.csv")
    file.write_text(before)
    relabel(picture.parent, "boxes_csv", picture, [FRESH, OLD], SIZE)
    assert file.read_text() in (after, before.splitlines(keepends=True)[0] + after)


def test_image_folder_keeps_other_facts_and_numbers_of_classes(picture):
    (picture.parent / "classes.txt").write_text("owl\nant")
    objects = {"bbox": [[10, 5, 10, 10], [0, 0, 9, 9]], "categories": [0, 1], "area": [7, 8]}
    other = {"file_name": "later.png"}
    file = picture.with_name("metadata.jsonl")
    file.write_text(
        "\n".join(json.dumps(row) for row in [{"file_name": "1.png", "by": "me", "objects": objects}, other])
    )
    relabel(picture.parent, "image_folder", picture, [("new", FRESH[1]), OLD], SIZE)
    row, last = map(json.loads, file.read_text().splitlines())
    assert last == other
    assert row["by"] == "me"
    assert row["objects"] == {"bbox": [[1, 2, 3, 4], [10, 5, 10, 10]], "categories": [2, 0], "area": [None, 7]}
    assert (picture.parent / "classes.txt").read_text() == "owl\nant\nnew\n"


def region(kind, **facts):
    size = {"original_width": 40, "original_height": 30}
    value = {"x": 25, "y": 100 / 6, "width": 25, "height": 100 / 3, "rotation": 0}
    return {"id": "a", "type": kind, "from_name": "tag", "to_name": "picture", "value": value | facts} | size


def test_label_studio_keeps_pairs_of_regions_choices_and_other_annotations(picture):
    pair = [region("rectangle"), region("labels", labels=["owl"])]
    choice = {"type": "choices", "value": {"choices": ["day"]}, "from_name": "c", "to_name": "picture"}
    cancelled = {"result": [], "was_cancelled": True}
    task = {"id": 5, "data": {"image": "1.png"}, "annotations": [cancelled, {"id": 3, "result": [*pair, choice]}]}
    file = picture.with_name("export.json")
    file.write_text(json.dumps([task, {"data": {"image": "gone.png"}, "annotations": []}]))
    relabel(picture.parent, "label_studio", picture, [FRESH, OLD], SIZE)
    (found, other) = json.loads(file.read_text())
    assert other["data"] == {"image": "gone.png"}
    assert found["annotations"][0] == cancelled
    result = found["annotations"][1]["result"]
    assert [result[0], *result[2:]] == [choice, *pair]
    assert (result[1]["from_name"], result[1]["to_name"]) == ("tag", "picture")
    assert read("label_studio", picture.parent) == {"1.png": as_read([FRESH, OLD])}


def test_label_studio_changes_its_small_form(picture):
    value = {"x": 25, "y": 100 / 6, "width": 25, "height": 100 / 3, "rotation": 0, "rectanglelabels": ["owl"]}
    old = value | {"original_width": 40, "original_height": 30, "note": "wet"}
    file = picture.with_name("min.json")
    file.write_text(json.dumps([{"image": "1.png", "tag": [old], "annotation_id": 1}]))
    Image.new("RGB", SIZE[::-1]).save(picture.with_name("2.png"))
    relabel(picture.parent, "label_studio", picture, [FRESH, OLD], SIZE)
    relabel(picture.parent, "label_studio", picture.with_name("2.png"), [OLD], SIZE)
    assert read("label_studio", picture.parent) == {"1.png": as_read([FRESH, OLD]), "2.png": as_read([OLD])}
    assert json.loads(file.read_text())[0]["tag"][1] == old
    relabel(picture.parent, "label_studio", picture, None, SIZE)
    assert read("label_studio", picture.parent) == {"2.png": as_read([OLD])}
