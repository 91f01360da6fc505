import json
import sys

import numpy as np
import pytest
import torch

from glip_adapt.core.boxes import to_edges
from glip_adapt.core.structures import Detections
from glip_adapt.data.check import check_split
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.formats.coco import load_split
from glip_adapt.share.interop import to_supervision, write_pseudo_labels

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
