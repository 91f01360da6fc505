"""Detection in many files: what is written, and what happens to files that cannot be read."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from glip_adapt.core.structures import Detections
from glip_adapt.data.formats.coco import load_split
from glip_adapt.share.detecting import detect_files, find_images

NAMES = ("red box", "blue box")
FOUND = Detections(
    torch.tensor([[10.0, 20.0, 30.0, 24.0], [0.5, 1.5, 3.0, 61.0]]),
    torch.tensor([0.9, 0.25]),
    torch.tensor([1, 0]),
    NAMES,
)


@dataclass
class Fixed:
    """A detector that always finds the same."""

    class_names: tuple[str, ...] = NAMES

    def predict(self, image, *, view):
        return FOUND


@pytest.fixture
def images(coco_folder):
    return sorted((coco_folder / "train").glob("*.png"))[:2]


def test_the_json_has_a_schema_and_all_boxes_by_their_edges(images, tmp_path):
    (result, _) = detect_files(Fixed(), images, tmp_path)
    written = json.loads((tmp_path / "0.json").read_text())
    assert written == result.to_json()
    assert written["schema"] == 2
    assert written["image"] == str(images[0])
    assert [(box["class"], box["box_xyxy"]) for box in written["detections"]] == [
        ("blue box", [10, 20, 30, 24]),
        ("red box", [0.5, 1.5, 3, 61]),
    ]


def test_boxes_below_the_threshold_are_neither_drawn_nor_labels(images, tmp_path):
    file = images[0].parent / "labels.json"
    for threshold, count in ((0.95, 0), (0.3, 1), (0.25, 2)):
        detect_files(Fixed(), images, tmp_path, threshold=threshold, labels=file)
        assert [len(record.target) for record in load_split(file, file.parent, "labels").records] == [count] * 2
        unchanged = np.array_equal(Image.open(tmp_path / "0.png"), Image.open(images[0]))
        assert unchanged == (count == 0)


def test_a_file_that_cannot_be_read_is_left_out(images, tmp_path):
    broken, file, seen = images[0].parent / "broken.png", images[0].parent / "labels.json", []
    broken.write_bytes(images[0].read_bytes()[:100])
    results = detect_files(Fixed(), [broken, *images], tmp_path, labels=file, on_file=seen.append)
    assert results == seen
    assert [bool(result.error) for result in results] == [True, False, False]
    assert set(results[0].to_json()) == {"schema", "image", "error"}
    assert not (tmp_path / "broken.json").exists()
    assert [record.path.name for record in load_split(file, file.parent, "labels").records] == ["0.png", "1.png"]


def test_images_of_one_stem_keep_their_suffix(images, tmp_path):
    other = images[0].with_suffix(".jpg")
    Image.open(images[0]).save(other)
    detect_files(Fixed(), [images[0], other], tmp_path)
    assert {path.name for path in tmp_path.glob("*.*") if path.is_file()} == {
        "0.png.json", "0.png.png", "0.jpg.json", "0.jpg.png",
    }  # fmt: skip


def test_results_overwrite_neither_an_image_nor_each_other(images, tmp_path):
    for paths, out in ((images, images[0].parent), ([images[0], tmp_path / "0.png"], tmp_path / "out")):
        with pytest.raises(ValueError, match="would overwrite"):
            detect_files(Fixed(), paths, out)
        assert not list(out.glob("*.json")) or out == images[0].parent


def test_folders_stand_for_the_images_in_them_once_each(coco_folder, tmp_path):
    folder = coco_folder / "test"
    assert find_images([folder / "1.png", folder]) == [folder / "1.png", folder / "0.png", folder / "2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in"):
        find_images([tmp_path / "empty"])
