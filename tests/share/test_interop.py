import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from defusedxml import ElementTree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.core.boxes import to_edges
from glip_adapt.core.structures import Detections
from glip_adapt.data.check import check_split
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.formats.coco import load_split
from glip_adapt.share.interop import (
    place_yolo_labels,
    to_supervision,
    write_boxes_csv,
    write_cvat,
    write_pseudo_labels,
    write_yolo_labels,
)

NAMES = ("red box", "blue box")
EDGES = [[10.0, 20.0, 30.0, 24.0], [0.5, 1.5, 3.0, 61.0]]
FOUND = Detections(torch.tensor(EDGES), torch.tensor([0.9, 0.4]), torch.tensor([1, 0]), NAMES)
NOTHING = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64), NAMES)


def test_supervision_measures_boxes_by_their_edges():
    supervision = pytest.importorskip("supervision")
    found = to_supervision(FOUND)
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == EDGES
    assert found.area.tolist() == [20 * 4, 2.5 * 59.5]
    np.testing.assert_allclose(found.confidence, [0.9, 0.4])
    assert found.class_id.tolist() == [1, 0]
    assert found.data["class_name"].tolist() == ["blue box", "red box"]
    found.xyxy[0] = 0
    assert FOUND.boxes_xyxy.tolist() == EDGES  # they share no memory


def test_supervision_takes_a_picture_without_detections():
    pytest.importorskip("supervision")
    assert len(to_supervision(NOTHING)) == 0


def test_without_supervision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glip-adapt\[supervision\]'"):
        to_supervision(FOUND)


def test_pseudo_labels_come_back_as_the_detections_that_they_were(coco_folder):
    pictures = sorted((coco_folder / "test").glob("*.png"))
    file = coco_folder / "labels.json"
    write_pseudo_labels(file, pictures, [FOUND, NOTHING, FOUND], NAMES)
    split = load_split(file, file.parent, "labels")
    assert check_split(file, file.parent) == []
    assert (split.classes, split.category_ids) == (NAMES, (1, 2))
    assert [record.path.resolve() for record in split.records] == pictures
    assert [len(record.target) for record in split.records] == [2, 0, 2]
    torch.testing.assert_close(to_edges(split.records[2].target.boxes_xyxy), FOUND.boxes_xyxy)
    assert split.records[2].target.labels.tolist() == [1, 0]
    assert len(split.with_boxes()) == 2
    document = json.loads(file.read_text())
    assert [round(entry["score"], 6) for entry in document["annotations"]] == [0.9, 0.4, 0.9, 0.4]
    assert document["annotations"][0]["bbox"] == [10, 20, 20, 4]
    assert document["annotations"][0]["area"] == 80


def test_pseudo_labels_beside_their_pictures_are_a_dataset(coco_folder):
    labels = coco_folder / "train" / "annotations_without_background.json"
    pictures = sorted((coco_folder / "train").glob("*.png"))
    write_pseudo_labels(labels, pictures, [FOUND] * len(pictures), ("blue box", "red box"))
    for split in ("valid", "test"):
        (coco_folder / split / "annotations_without_background.json").unlink()
    data = load_dataset(coco_folder)
    assert data.classes == ("blue box", "red box")
    assert len(data.train.few_shot(1, seed=3)) >= 1


def test_boxes_that_reach_over_the_picture_are_cut(coco_folder):
    beyond = Detections(torch.tensor([[-3.0, 5.0, 80.6, 64.2]]), torch.tensor([0.5]), torch.tensor([0]))
    file = coco_folder / "test" / "labels.json"
    write_pseudo_labels(file, [coco_folder / "test" / "0.png"], [beyond], NAMES)
    (entry,) = json.loads(file.read_text())["annotations"]
    assert entry["bbox"] == [0, 5, 80, 59]  # of a picture of 80 × 64


def test_a_table_has_a_row_per_box_and_an_empty_one_for_an_image_without(coco_folder):
    pictures = sorted((coco_folder / "test").glob("*.png"))[:2]
    write_boxes_csv(coco_folder / "boxes.csv", pictures, [FOUND, NOTHING])
    assert (coco_folder / "boxes.csv").read_text().splitlines() == [
        "filename,width,height,class,xmin,ymin,xmax,ymax,score",
        "test/0.png,80,64,blue box,10.0,20.0,30.0,24.0,0.9",
        "test/0.png,80,64,red box,0.5,1.5,3.0,61.0,0.4",
        "test/1.png,80,64,,,,,,",
    ]


def test_a_table_is_a_dataset(coco_folder):
    pictures = sorted((coco_folder / "test").glob("*.png"))
    for file in (coco_folder / "test").glob("*.json"):
        file.unlink()
    write_boxes_csv(coco_folder / "test" / "boxes.csv", pictures, [FOUND, NOTHING, FOUND])
    split = load_dataset(coco_folder / "test", format="boxes_csv").train
    assert [len(record.target) for record in split.records] == [2, 0, 2]
    assert split.classes == tuple(sorted(NAMES))
    torch.testing.assert_close(to_edges(split.records[0].target.boxes_xyxy), FOUND.boxes_xyxy)


def test_names_of_any_kind_come_back_from_a_table(tmp_path):
    odd = Detections(torch.tensor([[1.0, 1.0, 2.0, 2.0]]), torch.tensor([0.5]), torch.tensor([0]), ('a, "b"\nc',))
    image = tmp_path / b"x\xff, y.png".decode(errors="surrogateescape")  # no UTF-8
    Image.new("RGB", (8, 8)).save(image)
    write_boxes_csv(tmp_path / "boxes.csv", [image], [odd])
    with (tmp_path / "boxes.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["filename"], row["class"]) == (image.name, 'a, "b"\nc')


def test_yolo_lines_are_centre_and_size_in_fractions(coco_folder, tmp_path):
    pictures = sorted((coco_folder / "test").glob("*.png"))[:2]
    write_yolo_labels(tmp_path / "yolo", pictures, [FOUND, NOTHING], NAMES)
    lines = (tmp_path / "yolo" / "labels" / "0.txt").read_text().splitlines()
    assert lines[0] == "1 0.25000000 0.34375000 0.25000000 0.06250000"  # 20 / 80, 22 / 64, 20 / 80, 4 / 64
    assert lines[1] == "0 0.02187500 0.48828125 0.03125000 0.92968750"
    assert (tmp_path / "yolo" / "labels" / "1.txt").read_text() == ""
    assert (tmp_path / "yolo" / "classes.txt").read_text() == "red box\nblue box\n"
    data = load_dataset(tmp_path / "yolo")
    assert data.classes == NAMES
    assert [record.path.resolve() for record in data.train.records] == pictures
    assert [len(record.target) for record in data.train.records] == [2, 0]


coordinates = st.tuples(*[st.floats(0, 1, width=32)] * 4)


@given(st.lists(coordinates, max_size=5), st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_yolo_labels_come_back_as_the_boxes_that_they_were(fractions, size):
    edges = torch.tensor([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in fractions]).view(-1, 4)
    edges = edges * torch.tensor([*size, *size])
    found = Detections(edges, torch.ones(len(edges)), torch.zeros(len(edges), dtype=torch.int64), ("dog",))
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "x.png")
        Image.new("1", size).save(picture)
        write_yolo_labels(Path(folder, "yolo"), [picture], [found], ("dog",))
        lines = Path(folder, "yolo", "labels", "x.txt").read_text().splitlines()
    for line, expected in zip(lines, edges.tolist(), strict=True):
        label, x, y, w, h = map(float, line.split())
        came = ((x - w / 2) * size[0], (y - h / 2) * size[1], (x + w / 2) * size[0], (y + h / 2) * size[1])
        assert label == 0
        np.testing.assert_allclose(came, expected, atol=0.01)
        assert all(0 <= value <= 1 for value in (x, y, w, h))


def test_images_of_a_yolo_folder_stay_and_get_their_labels_beside(tmp_path):
    pictures = [tmp_path / "images" / name for name in ("day/a.png", "night/a.png")]
    for picture in pictures:
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (80, 64)).save(picture)
    before = sorted(path for path in (tmp_path / "images").rglob("*"))
    write_yolo_labels(tmp_path, pictures, [FOUND, NOTHING], NAMES)
    assert sorted(path for path in (tmp_path / "images").rglob("*")) == before
    assert len((tmp_path / "labels" / "day" / "a.txt").read_text().splitlines()) == 2
    assert (tmp_path / "labels" / "night" / "a.txt").read_text() == ""
    assert len(load_dataset(tmp_path).train) == 2


def test_images_of_one_stem_get_links_and_labels_of_their_own(tmp_path):
    pictures = [tmp_path / name for name in ("1/a.png", "2/A.png", "3/a.jpg")]
    for width, picture in enumerate(pictures, start=80):
        picture.parent.mkdir()
        Image.new("RGB", (width, 64)).save(picture)
    write_yolo_labels(tmp_path / "yolo", pictures, [FOUND, NOTHING, FOUND], NAMES)
    links = sorted((tmp_path / "yolo" / "images").iterdir())
    assert [link.name for link in links] == ["A_2.png", "a.png", "a_3.jpg"]
    assert [link.resolve() for link in links] == [pictures[1], pictures[0], pictures[2]]
    assert [len(record.target) for record in load_dataset(tmp_path / "yolo").train.records] == [0, 2, 2]


def test_labels_that_are_there_are_never_replaced(tmp_path):
    for name in ("labels", "classes.txt", "data.yaml"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(FileExistsError, match=rf"{name} exists.*Name a new folder"):
            place_yolo_labels(tmp_path / name, [])


def test_images_that_would_share_a_label_file_are_refused(tmp_path):
    pictures = [tmp_path / "images" / name for name in ("a.png", "a.jpg")]
    with pytest.raises(ValueError, match=r"a\.png and .*a\.jpg would share a label file"):
        place_yolo_labels(tmp_path, pictures)


def test_cvat_gets_edges_in_pixels_inside_the_image(tmp_path):
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "b" / "y\x01&.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (28, 60)).save(path)
    write_cvat(tmp_path / "out.xml", paths, [FOUND, NOTHING, FOUND])
    root = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    frames = root.findall("image")
    assert [frame.get("name") for frame in frames] == ["a/x.png", "b/x.png", "y_&.png"]
    assert [(frame.get("width"), frame.get("height"), len(frame)) for frame in frames] == [
        ("28", "60", 2), ("28", "60", 0), ("28", "60", 2),
    ]  # fmt: skip
    box = frames[0].find("box").attrib
    assert (box["label"], box["occluded"]) == ("blue box", "0")
    assert [float(box[key]) for key in ("xtl", "ytl", "xbr", "ybr")] == [10, 20, 28, 24]
