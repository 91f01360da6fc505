"""YOLO folders of many tools, and the right value of their boxes."""

import contextlib
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.data.check import check_folder
from glip_adapt.data.dataset import load_dataset, unlabelled_images
from glip_adapt.data.formats import yolo

HALF = "1 0.5 0.5 0.25 0.5"  # in an image of 40 × 20 pixels: 15, 5, 10, 10
NAMES = "names: [cat, dog]\n"


def put(folder, files):
    """Write text files, images of 40 × 20 pixels for names of images, and copies of bytes."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is Image:
            Image.new("RGB", (40, 20)).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
    return folder


def one(folder, label, settings=NAMES + "train: images\n", **images):
    """A dataset of one image."""
    put(folder, {"data.yaml": settings, "images/a.png": Image})
    return put(folder, {} if label is None else {"labels/a.txt": label})


def boxes(split):
    return {
        record.path.name: [(split.classes[a.category_id - 1], a.bbox_xywh) for a in record.annotations]
        for record in split.records
    }


def kinds(folder):
    return {d.kind: d.count for split in check_folder(folder).splits.values() for d in split.defects}


@pytest.mark.parametrize(
    ("line", "box"),
    [
        (HALF, (15, 5, 10, 10)),
        ("1 0.5 0.5 1 1", (0, 0, 40, 20)),
        ("1.0\t0.5  0.5 0.25 0.5 ", (15, 5, 10, 10)),
        ("1 0.25 0.5 0.75 0.5 0.5 1.0", (10, 10, 20, 10)),  # a triangle
        ("1 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4", (4, 4, 8, 4)),  # a turned box
        ("1 0.9 0.5 0.2005 0.5", (31.99, 5, 8.02, 10)),  # leaves the image by rounding
        ("1 0.5 0.5 1.0005 1", (-0.01, 0, 40.02, 20)),
        ("\ufeff" + HALF, (15, 5, 10, 10)),
    ],
)
def test_fractions_become_pixels(tmp_path, line, box):
    ((name, found),) = boxes(load_dataset(one(tmp_path, f"{line}\n\n")).train)["a.png"]
    assert name == "dog"
    assert found == pytest.approx(box)


def test_a_confidence_is_left_out_and_said(tmp_path, caplog):
    folder = one(tmp_path, f"{HALF} 0.9\n{HALF}\n")
    assert boxes(load_dataset(folder).train)["a.png"] == [("dog", (15, 5, 10, 10))] * 2
    assert "confidence of a label (1 in all): labels/a.txt, line 1" in caplog.text


def test_key_points_follow_a_box(tmp_path):
    settings = NAMES + "train: images\nkpt_shape: [2, 2]\n"
    folder = one(tmp_path, f"{HALF} 0.1 0.1 0.9 0.9", settings)
    assert boxes(load_dataset(folder).train)["a.png"] == [("dog", (15, 5, 10, 10))]


@pytest.mark.parametrize(
    "line",
    ["a b c d e", "1 0.5 0.5 0.25", "1 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "1 nan 0.5 0.5 0.5", "1 inf 0.5 0.5 0.5", "1",
     "1 12 5 10 10", "0.5 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5", "nan 0.5 0.5 0.5 0.5", "1,0.5,0.5,0.25,0.5",
     "1 -0.1 0.5 0.5 0.5", "\0", "x" * 5000, "\udcff"],
)  # fmt: skip
def test_a_line_that_is_no_label_is_left_out_and_said(tmp_path, caplog, line):
    folder = one(tmp_path, f"{HALF}\n{line}\n".encode("utf-8", "surrogateescape"))
    assert len(boxes(load_dataset(folder).train)["a.png"]) == 1
    (warning,) = caplog.records
    assert "malformed label (1 in all): labels/a.txt, line 2" in warning.getMessage()
    assert len(warning.getMessage()) < 600
    assert kinds(folder) == {"malformed label": 1}


def test_a_class_without_a_name_stops(tmp_path):
    with pytest.raises(ValueError, match=r"data\.yaml: unknown category: labels/a\.txt, line 1: class 2.*data check"):
        load_dataset(one(tmp_path, "2 0.5 0.5 0.5 0.5"))
    assert kinds(tmp_path) == {"unknown category": 1}


PAIR = {"images/train/a.png": Image, "labels/train/a.txt": HALF, "images/val/b.png": Image, "labels/val/b.txt": ""}
ROBOFLOW = {
    **{"train/images/a.png": Image, "train/labels/a.txt": HALF, "valid/images/b.png": Image, "valid/labels/b.txt": ""},
    "README.roboflow.txt": "x",
}
DARKNET = {
    **{"obj_train_data/a.png": Image, "obj_train_data/a.txt": HALF, "obj_train_data/b.png": Image},
    **{"obj_train_data/b.txt": "", "obj.names": "cat\ndog\n", "obj.data": "classes = 2\ntrain = data/train.txt\n"},
}
LAYOUTS = {
    "ultralytics": PAIR | {"data.yaml": NAMES + "path: ../datasets/pets\ntrain: images/train\nval: images/val\n"},
    "names by number": PAIR | {"data.yaml": "train: images/train\nval: images/val\nnames:\n  1: dog\n  0: cat\n"},
    "another name": PAIR | {"pets.yml": NAMES + "train: images/train\nval: images/val\ntest:\n", "ci.yaml": "train: x"},
    "another machine": PAIR | {"data.yaml": NAMES + "train: /content/pets/images/train\nval: C:\\pets\\images\\val\n"},
    "path of another machine": PAIR
    | {"data.yml": NAMES + "path: /content/pets\ntrain: [images/train]\nval: images/val"},
    "lists": PAIR
    | {"train.txt": "./images/train/a.png\n", "val.txt": "/root/pets/images/val/b.png\n"}
    | {"dataset.yaml": NAMES + "train: train.txt\nval: val.txt\n"},
    "lists in a folder": PAIR
    | {"lists/train.txt": "images/train/a.png\n", "lists/val.txt": "images/val/b.png\n"}
    | {"dataset.yaml": NAMES + "train: lists/train.txt\nval: lists/val.txt\n"},
    "roboflow": ROBOFLOW | {"data.yaml": NAMES + "nc: 2\ntrain: ../train/images\nval: ../valid/images\n"},
    "whole split folders": ROBOFLOW | {"data.yaml": NAMES + "train: train\nval: valid\n"},
    "split folders": ROBOFLOW | {"classes.txt": "cat\ndog\n"},
    "folders below images": PAIR | {"classes.txt": "\ufeffcat\r\n dog \r\n\r\n"},
    "names below labels": PAIR | {"labels/classes.txt": "cat\ndog"},
    "darknet": DARKNET | {"train.txt": "data/obj_train_data/a.png\n", "valid.txt": "data/obj_train_data/b.png\n"},
    "darknet below data": {f"data/{name}": content for name, content in DARKNET.items()}
    | {"data/train.txt": "data/obj_train_data/a.png\n", "data/valid.txt": "data/obj_train_data/b.png\n"},
    "roboflow darknet": {"train/a.png": Image, "train/a.txt": HALF, "train/_darknet.labels": "cat\ndog\n"}
    | {"valid/b.png": Image, "valid/b.txt": "", "valid/_darknet.labels": "cat\ndog\n"},
    "beside the images": {"train/a.png": Image, "train/a.txt": HALF, "val/b.png": Image, "val/b.txt": ""}
    | {"train/classes.txt": "cat\ndog", "val/classes.txt": "cat\ndog"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_all_tools_are_read(tmp_path, layout, caplog):
    put(tmp_path / "images", {"train/images/z.png": Image, "train/labels/z.txt": HALF})  # another dataset beside it
    data = load_dataset(put(tmp_path / "images" / "pets", LAYOUTS[layout]))
    assert (data.name, data.format, data.classes) == ("pets", "yolo", ("cat", "dog"))
    assert {name: boxes(split) for name, split in data.splits.items()} == {
        "train": {"a.png": [("dog", (15, 5, 10, 10))]},
        "val": {"b.png": []},
    }
    assert caplog.text == ""


@pytest.mark.parametrize(
    "files",
    [
        {"images/a.png": Image, "labels/a.txt": HALF, "classes.txt": "cat\ndog\n", "notes.json": "{}"},  # Label Studio
        {"a.png": Image, "a.txt": HALF, "classes.txt": "cat\ndog\n"},  # LabelImg
        {"a.JPG.png": Image, "a.JPG.txt": HALF, "classes.txt": "cat\ndog\n"},
        DARKNET | {"train.txt": "data/obj_train_data/a.png\n"},
    ],
)
def test_a_folder_without_splits_is_the_training_split(tmp_path, files):
    data = load_dataset(put(tmp_path, files))
    assert list(data.splits) == ["train"]
    assert list(boxes(data.train).values()) == [[("dog", (15, 5, 10, 10))]]


def test_a_path_of_another_machine_does_not_count(tmp_path):
    folder = one(tmp_path, HALF, NAMES + "path: /content/train\ntrain: images\n")
    assert len(load_dataset(put(folder, {"images/a.txt": "a note"})).train.records[0].annotations) == 1


def test_a_split_may_be_several_folders(tmp_path):
    settings = NAMES + "train: [images/train, images/val, images/train]\n"
    assert len(load_dataset(put(tmp_path, PAIR | {"data.yaml": settings})).train) == 2


@pytest.mark.parametrize(
    "text", ["[no, yes, 007, 1.0, 2024-01-01, 日本]", "{0: no, 1: yes, 2: 007, 3: 1.0, 4: 2024-01-01, 5: 日本}"]
)
def test_names_are_text_as_it_stands(tmp_path, text):
    folder = one(tmp_path, HALF, f"names: {text}\ntrain: images\n")
    assert load_dataset(folder).classes == ("no", "yes", "007", "1.0", "2024-01-01", "日本")


def test_an_image_without_a_label_file_is_in_no_split_and_one_with_an_empty_file_is(tmp_path):
    settings = NAMES + "train: images\ntest: later\n"
    folder = put(one(tmp_path, HALF, settings), {"images/b.png": Image, "images/c.png": Image, "labels/c.txt": "\n"})
    put(folder, {"later/d.png": Image})
    data = load_dataset(folder)
    assert boxes(data.train) == {"a.png": [("dog", (15, 5, 10, 10))], "c.png": []}
    assert list(data.splits) == ["train"]
    assert [path.name for path in unlabelled_images(folder)] == ["b.png", "d.png"]
    checked = check_folder(folder)
    assert (checked.format, checked.unlabelled) == ("yolo", 2)
    (split,) = checked.splits.values()
    assert (split.images, split.without_boxes, split.boxes) == (2, 1, {"cat": 0, "dog": 1})
    assert [(d.kind, d.count, d.is_note) for d in split.defects] == [("image without a label file", 2, True)]


def test_what_does_not_fit_together_is_said(tmp_path, caplog):
    settings = "names: [cat, dog, cat]\nnc: 4\ntrain: images\nval: ../valid/images\n"
    folder = put(one(tmp_path, HALF, settings), {"labels/gone.txt": HALF, "labels/notes.txt": "not numbers"})
    data = load_dataset(folder)
    assert data.classes == ("cat", "dog")
    found = {"missing split": 1, "class named twice": 1, "number of classes": 1, "label file without an image": 1}
    assert kinds(folder) == found
    assert len(caplog.records) == len(found)
    assert "val is '../valid/images', which does not exist" in caplog.text


BROKEN = {
    "class names are missing": {"images/a.png": Image, "labels/a.txt": HALF},
    "class names differ": {
        "train/a.png": Image,
        "train/a.txt": HALF,
        "classes.txt": "cat\ndog",
        "train/classes.txt": "dog",
    },
    "cannot be read as YAML": {"data.yaml": "names: [cat\n  dog: {"},
    "more than once|several files": {"a.yaml": NAMES + "train: x", "b.yaml": NAMES + "train: y"},
    "holds no entries": {"data.yaml": "- names"},
    r"bytes\)": {"data.yaml": "#" * 2**20 + "\n" + NAMES},
    "expected names as a list": {"data.yaml": "names: {0: cat, 2: dog}\ntrain: images"},
    "got cat": {"data.yaml": "names: cat\ntrain: images"},
    "no image has a label file; train is 'x', which does not exist": {"data.yaml": NAMES + "train: x"},
    "no image has a label file": {"data.yaml": NAMES + "train: images", "images/a.png": Image},
    r"missing image file: .*images/b\.png": {
        **{"data.yaml": NAMES + "train: list.txt", "list.txt": "images/b.png\nimages/a.png"},
        **{"images/a.png": Image, "labels/a.txt": HALF},
    },
    "is not UTF-8": {"a.png": Image, "a.txt": HALF, "classes.txt": b"\xff\xfe"},
    "is not an image": {"data.yaml": NAMES + "train: images", "images/a.png": b"no picture", "labels/a.txt": HALF},
    "both a valid and a val": {"train/a.png": Image, "train/a.txt": HALF, "classes.txt": "cat\ndog"}
    | {"valid/b.png": Image, "val/b.png": Image},
    r"train is '\.\.', which does not exist.*Expected": {"data.yaml": NAMES + "train: ..\nval: {a: 1}"},
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_leaves_the_meaning_open_is_one_clear_error(tmp_path, said):
    folder = put(tmp_path / "pets", BROKEN[said])
    assert yolo.recognises(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_dataset(folder)


def test_a_yaml_file_of_something_else_is_no_dataset(tmp_path):
    put(tmp_path, {"data.yaml": "a: 1", "docker.yaml": "names: [a]", "a.png": Image, "a.txt": "a picture of a cat"})
    assert not yolo.recognises(tmp_path)


def turned(path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (40, 20), (9, 9, 9)).save(path, exif=exif)


def test_fractions_are_those_of_the_upright_image(tmp_path, caplog):
    turned(one(tmp_path, HALF) / "images" / "a.png", 6)
    (record,) = load_dataset(tmp_path).train.records
    assert record.size_hw == record.load().size[::-1] == (40, 20)
    assert record.annotations[0].bbox_xywh == (7.5, 10, 5, 20)
    assert "turned by their EXIF orientation" in caplog.text
    (split,) = check_folder(tmp_path).splits.values()
    assert [(d.kind, d.is_note) for d in split.defects] == [("image turned by its EXIF orientation", True)]


def test_boxes_outside_of_the_image_are_clipped_in_writing_and_said(tmp_path, caplog):
    put(tmp_path / "coco", {"train/a.png": Image})
    given = [[-5, 2, 15, 8], [35, 10, 10, 20], [50, 5, 5, 5], [10, 10, -3, 4], [5, 5, 0, 4]]
    listed = ", ".join(f'{{"id": {n}, "image_id": 1, "category_id": 1, "bbox": {box}}}' for n, box in enumerate(given))
    text = f'{{"images": [{{"id": 1, "file_name": "a.png"}}], "annotations": [{listed}], '
    put(tmp_path, {"coco/train/a.json": text + '"categories": [{"id": 1, "name": "cat"}]}'})
    splits = load_dataset(tmp_path / "coco").splits
    caplog.clear()
    (tmp_path / "out").mkdir()
    yolo.write(splits, tmp_path / "out")
    assert "4 boxes leave their images" in caplog.text
    found = [box for _, box in boxes(load_dataset(tmp_path / "out").train)["a.png"]]
    assert found == [pytest.approx(box) for box in ([0, 2, 10, 8], [35, 10, 5, 10], [5, 5, 0, 4])]


def test_written_files_are_those_that_other_tools_expect(tmp_path):
    splits = load_dataset(one(tmp_path / "a", HALF)).splits
    (tmp_path / "b").mkdir()
    yolo.write(splits, tmp_path / "b")
    written = {p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*") if p.is_file()}
    assert written == {"data.yaml", "images/train/a.png", "labels/train/a.txt"}
    assert (tmp_path / "b" / "data.yaml").read_text() == "train: images/train\nnames:\n  0: cat\n  1: dog\n"
    line = "1 0.5000000000 0.5000000000 0.2500000000 0.5000000000\n"
    assert (tmp_path / "b" / "labels" / "train" / "a.txt").read_text() == line
    assert (tmp_path / "b" / "images" / "train" / "a.png").read_bytes() == (tmp_path / "a/images/a.png").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    name=st.sampled_from(["data.yaml", "labels/a.txt", "classes.txt", "train.txt", "images/a.png"]),
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))),
)
def test_no_bytes_crash_the_reader(tmp_path, name, content):
    folder = one(tmp_path, HALF)
    if name in ("classes.txt", "train.txt"):
        (folder / "data.yaml").unlink()
        put(folder, {"classes.txt": "cat\ndog"})
    put(folder, {name: content})
    logging.disable()
    yolo.recognises(folder)
    with contextlib.suppress(ValueError, FileNotFoundError):
        load_dataset(folder, format="yolo")
    with contextlib.suppress(ValueError):
        check_folder(folder, format="yolo")
    logging.disable(logging.NOTSET)
