"""Detection in many files: what is written, and what happens to files that cannot be read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glip_adapt.core.structures import Detections
from glip_adapt.data.dataset import load_dataset
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

    device = torch.device("cpu")
    sentence = None

    class_names: tuple[str, ...] = NAMES
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def predict(self, image, *, view, views):
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
        detect_files(Fixed(), images, tmp_path, threshold=threshold, as_coco=file)
        assert [len(record.target) for record in load_split(file, file.parent, "labels").records] == [count] * 2
        unchanged = np.array_equal(Image.open(tmp_path / "0.png"), Image.open(images[0]))
        assert unchanged == (count == 0)


def test_a_file_that_cannot_be_read_is_left_out(images, tmp_path):
    broken, file, seen = images[0].parent / "broken.png", images[0].parent / "labels.json", []
    broken.write_bytes(images[0].read_bytes()[:100])
    results = detect_files(Fixed(), [broken, *images], tmp_path, as_coco=file, on_file=seen.append)
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


def test_images_of_one_name_keep_their_folders(coco_folder, tmp_path):
    paths = [coco_folder / name for name in ("train/0.png", "test/0.png", "test/1.png")]
    results = detect_files(Fixed(), paths, tmp_path)
    names = ["train/0.png.png", "test/0.png.png", "1.png"]
    assert [result.drawing for result in results] == [tmp_path / name for name in names]
    assert json.loads((tmp_path / "test" / "0.png.json").read_text())["image"] == str(paths[1])


def test_results_overwrite_neither_an_image_nor_each_other(images, tmp_path):
    before = [path.read_bytes() for path in images]
    for paths, out in ((images, images[0].parent), ([images[0], images[0]], tmp_path / "out")):
        with pytest.raises(ValueError, match="would overwrite"):
            detect_files(Fixed(), paths, out)
    assert [path.read_bytes() for path in images] == before
    assert not (tmp_path / "out").exists()


def test_each_class_has_its_threshold_unless_one_is_given_for_all(images, tmp_path):
    model = Fixed(thresholds={"red box": 0.25, "blue box": 0.95})  # found with 0.25 and 0.9
    for given, expected in ((None, [False, True]), (0.5, [True, False]), (0.0, [True, True])):
        file = images[0].parent / "labels.json"
        (result, _) = detect_files(model, images, tmp_path, threshold=given, as_coco=file)
        assert [box["shown"] for box in json.loads((tmp_path / "0.json").read_text())["detections"]] == expected
        assert result.shown.labels.tolist() == [label for label, shown in zip([1, 0], expected, strict=True) if shown]
        (first, _) = load_split(file, file.parent, "labels").records
        assert sorted(first.target.labels.tolist()) == sorted(result.shown.labels.tolist())


def test_a_model_without_thresholds_shows_boxes_from_three_tenths(images, tmp_path):
    (result, _) = detect_files(Fixed(), images, tmp_path)
    assert [box["shown"] for box in result.to_json()["detections"]] == [True, False]


def test_labels_of_all_formats_hold_the_same_boxes(images, tmp_path):
    file, table, folder = images[0].parent / "labels.json", images[0].parent / "labels.csv", tmp_path / "yolo"
    detect_files(Fixed(), images, tmp_path / "out", threshold=0.2, as_coco=file, as_csv=table, as_yolo=folder)
    assert [len(record.target) for record in load_split(file, file.parent, "labels").records] == [2, 2]
    assert len(table.read_text().splitlines()) == 5
    assert [len(record.target) for record in load_dataset(folder).train.records] == [2, 2]


def test_labels_that_cannot_be_written_stop_before_the_first_file(images, tmp_path):
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    (tmp_path / "file").touch()
    for where in ({"as_yolo": tmp_path / "yolo"}, {"as_csv": tmp_path / "file" / "labels.csv"}):
        with pytest.raises(OSError, match=r"corrected by hand|Not a directory"):
            detect_files(Fixed(), images, tmp_path / "out", **where)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_image(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (80, 64)).save(tmp_path / "x.jpg", exif=exif)
    size = (80, 64) if orientation < 5 else (64, 80)
    coco, table = tmp_path / "labels.json", tmp_path / "labels.csv"
    detect_files(Fixed(), [tmp_path / "x.jpg"], tmp_path / "out", as_coco=coco, as_csv=table)
    assert Image.open(tmp_path / "out" / "x.png").size == size
    (entry,) = json.loads(coco.read_text())["images"]
    assert (entry["width"], entry["height"]) == size
    assert table.read_text().splitlines()[1].split(",")[1:3] == [str(side) for side in size]


@pytest.fixture
def photos(tmp_path):
    """Images in a folder and two subfolders, one hidden file, and one that is no image."""
    for name in ("b.JPG", "a.png", "photo[1].png", "._a.png", "day/c.png", "day/night/d.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def names(paths):
    return [path.name for path in paths]


def test_folders_stand_for_the_images_in_them_once_each(coco_folder, tmp_path):
    folder = coco_folder / "test"
    assert find_images([folder / "1.png", folder]) == [folder / "1.png", folder / "0.png", folder / "2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in"):
        find_images([tmp_path / "empty"])


def test_images_in_subfolders_are_left_out_of_a_folder_and_counted(photos, caplog):
    assert names(find_images([photos])) == ["a.png", "b.JPG", "photo[1].png"]
    assert f"3 images are taken. 2 lie in subfolders; '{photos}/**' names them too." in caplog.text
    (photos / "day" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"no image in .*day\. 1 lie in subfolders"):
        find_images([photos / "day"])


def test_a_pattern_stands_for_the_images_that_match(photos, caplog):
    assert names(find_images([f"{photos}/*.png"])) == ["a.png", "photo[1].png"]
    assert names(find_images([f"{photos}/*"])) == ["a.png", "b.JPG", "photo[1].png"]
    assert names(find_images([f"{photos}/**/?.png"])) == ["a.png", "c.png", "d.png"]
    assert sorted(names(find_images([f"{photos}/**"]))) == ["a.png", "b.JPG", "c.png", "d.png", "photo[1].png"]
    assert not caplog.text
    with pytest.raises(ValueError, match=r"No image matches .*\*\.gif"):
        find_images([f"{photos}/*.gif"])


def test_a_file_that_exists_is_no_pattern(photos):
    assert find_images([photos / "photo[1].png"]) == [photos / "photo[1].png"]


def test_a_file_that_is_named_twice_in_two_ways_is_taken_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert find_images(["b.JPG", photos / "a.png", "./a.png", photos / "b.JPG", "absent.jpg"]) == [
        Path("b.JPG"), photos / "a.png", Path("absent.jpg"),
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["http://x.org/a.jpg", "https://x.org/a?b=*", "HTTPS://x.org", "s3://bucket/a.jpg"])
def test_an_address_is_refused_with_what_to_do(address):
    with pytest.raises(ValueError, match=r"is an address.*Download"):
        find_images([address])
