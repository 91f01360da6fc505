"""Detections and splits in FiftyOne and supervision: the real classes where they are installed."""

import json
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glip_adapt import load_dataset
from glip_adapt.core.masks import Mask
from glip_adapt.core.structures import Detections
from glip_adapt.share.viewers import to_fiftyone, to_fiftyone_samples, to_supervision_dataset

NAMES = ("red box", "blue box")
EDGES = torch.tensor([[8.0, 16.0, 40.0, 48.0], [0.4, 0.0, 0.45, 64.0]])
MASK = np.zeros((64, 80), dtype=bool)
MASK[20:30, 10:] = True
FOUND = Detections(EDGES, torch.tensor([0.5, 0.25]), torch.tensor([1, 0]), NAMES, masks=(Mask.of(MASK), Mask.of(MASK)))


@dataclass
class Label:
    """``fiftyone.Detection`` of fiftyone 1.22, as far as it is used: fields, and any other as attribute."""

    label: str
    bounding_box: list[float]
    confidence: float | None = None
    mask: Any = None
    iscrowd: bool = False


@dataclass
class Sample:
    filepath: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __setitem__(self, name, value):
        self.fields[name] = value

    def __getitem__(self, name):
        return self.fields[name]


@pytest.fixture
def fiftyone(monkeypatch):
    """Return fiftyone, or where it is not installed what stands in for it."""
    try:
        import fiftyone
    except ModuleNotFoundError:
        fiftyone = SimpleNamespace(
            Detection=Label, Sample=Sample, Detections=lambda detections: SimpleNamespace(detections=detections)
        )
        monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    return fiftyone


@pytest.fixture
def split(coco_folder):
    """A split whose first image has a crowd region."""
    file = coco_folder / "test" / "annotations_without_background.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(document))
    return load_dataset(coco_folder).test


def test_fiftyone_takes_boxes_as_shares_and_masks_of_the_box(fiftyone):
    first, second = to_fiftyone(FOUND, (64, 80)).detections
    assert (first.label, first.confidence) == ("blue box", 0.5)
    assert first.bounding_box == [0.1, 0.25, 0.4, 0.5]
    assert first.mask.shape == (32, 32)
    assert first.mask.sum() == 10 * 30
    assert second.mask.shape == (64, 1)
    assert to_fiftyone(replace(FOUND, masks=()), (64, 80)).detections[0].mask is None


def test_a_split_becomes_samples_with_truth_and_predictions(fiftyone, split):
    samples = to_fiftyone_samples(split, [FOUND] * len(split))
    assert [sample.filepath for sample in samples] == [str(record.path.absolute()) for record in split.records]
    (first, other), stated = samples[0]["ground_truth"].detections, split.annotations_of(split.records[0])
    assert {first.label, other.label} == set(split.classes)
    assert first.bounding_box == pytest.approx(np.divide(stated[0].bbox_xywh, (80, 64, 80, 64)).tolist())
    assert first.iscrowd is True
    assert not getattr(other, "iscrowd", False)
    assert [len(sample["predictions"].detections) for sample in samples] == [2] * len(split)
    with pytest.raises((KeyError, AttributeError)):
        to_fiftyone_samples(split)[0]["predictions"]


def test_detections_of_other_images_are_refused(fiftyone, split):
    with pytest.raises(ValueError, match=r"each of the 3 images of shapes/test, got 1"):
        to_fiftyone_samples(split, [FOUND])


def test_supervision_has_the_boxes_of_a_split_by_their_edges(split):
    supervision = pytest.importorskip("supervision")
    dataset = to_supervision_dataset(split)
    assert isinstance(dataset, supervision.DetectionDataset)
    assert dataset.classes == list(split.classes)
    (path, image, first), *others = list(dataset)
    assert path == str(split.records[0].path)
    assert image.shape == (64, 80, 3)
    (_, (x, y, w, h)) = (entry.bbox_xywh for entry in split.annotations_of(split.records[0]))
    assert first.xyxy.tolist() == [[x, y, x + w, y + h]]  # without the crowd region
    assert first.data["class_name"].tolist() == [split.classes[first.class_id[0]]]
    assert [len(found) for _, _, found in others] == [2, 2]


@pytest.mark.parametrize(
    ("package", "call"),
    [("fiftyone", lambda split: to_fiftyone_samples(split)), ("supervision", to_supervision_dataset)],
)
def test_without_the_package_the_error_says_what_to_install(monkeypatch, split, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'glip-adapt\[{package}\]'"):
        call(split)
