"""`data check` and `data convert` for folders of any format."""

import json

import pytest
from PIL import Image

from glip_adapt.data.dataset import FORMATS, load_dataset


@pytest.fixture
def yolo_folder(tmp_path):
    """One split with a labelled, an empty and an unlabelled image of 40 × 20 pixels."""
    folder = tmp_path / "pets"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 20)).save(folder / "images" / f"{name}.png")
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / "labels" / "b.txt").touch()
    return folder


def test_check_tells_what_a_folder_was_taken_for_and_counts(glip, yolo_folder):
    code, out, err = glip("data", "check", yolo_folder)
    assert (code, err) == (0, "")
    assert "was read as yolo" in out
    assert "1 images in the folder are in no split" in out
    assert "image without a label file" in out
    assert "No defects in train" in out
    code, out, _ = glip("data", "check", yolo_folder, "--json")
    assert code == 0
    assert json.loads(out) == {
        "format": "yolo",
        "known": None,
        "unlabelled_images": 1,
        "splits": [{"split": "train", "images": 2, "without_boxes": 1, "boxes": 1}],
        "boxes_per_class": [{"class": "cat", "boxes_train": 0}, {"class": "dog", "boxes_train": 1}],
        "defects": [
            {
                "split": "train",
                "defect": "image without a label file",
                "count": 1,
                "consequence": "It is in no split; an empty label file says that it shows none of the objects",
                "is_note": True,
                "examples": ["images/c.png"],
            }
        ],
    }


def test_check_fails_for_what_loading_warns_about_or_refuses(glip, yolo_folder):
    (yolo_folder / "labels" / "b.txt").write_text("what?\n")
    code, out, _ = glip("data", "check", yolo_folder)
    assert code == 1
    assert "malformed label" in out
    assert "Such labels are left out" in out
    assert "No defects" not in out
    (yolo_folder / "labels" / "b.txt").write_text("2 0.5 0.5 1 1\n")
    code, out, _ = glip("data", "check", yolo_folder, "--json")
    assert code == 1
    assert [row["consequence"] for row in json.loads(out)["defects"] if not row["is_note"]] == [
        "The dataset cannot be loaded"
    ]


def test_check_of_a_known_dataset_and_of_a_file_tells_what_it_is(glip, coco_folder):
    file = coco_folder / "test" / "annotations_without_background.json"
    code, out, _ = glip("data", "check", file, "--json")
    assert code == 0
    content = json.loads(out)
    assert (content["format"], content["unlabelled_images"]) == ("coco", None)
    assert content["splits"] == [
        {"split": "annotations_without_background", "images": 3, "without_boxes": 0, "boxes": 6}
    ]
    official = coco_folder.parent / "Raccoon" / "Raccoon.v2-raw.coco"
    official.parent.mkdir()
    coco_folder.rename(official)
    assert "was read as coco, the dataset Raccoon." in glip("data", "check", official.parent)[1]


def test_check_needs_a_folder_of_one_format(glip, yolo_folder, tmp_path):
    code, _, err = glip("data", "check", tmp_path / "nothing")
    assert (code, "There is no folder" in err) == (1, True)
    (yolo_folder / "annotations.json").write_text('{"images": []}')
    code, _, err = glip("data", "check", yolo_folder)
    assert code == 1
    assert "several formats: coco" in err
    assert "--format" in err
    assert glip("data", "check", yolo_folder, "--format", "yolo")[0] == 0
    assert "Unknown format 'yol'" in glip("data", "check", yolo_folder, "--format", "yol")[2]


def test_convert_writes_a_dataset_in_any_format_and_counts(glip, yolo_folder, tmp_path):
    for known in FORMATS:
        out_folder = tmp_path / known.NAME
        code, out, err = glip("data", "convert", yolo_folder, "--to", known.NAME, "--out", out_folder)
        assert code == 0, err
        assert f"train 2 images 1 boxes → {out_folder} ({known.NAME})" in out
        data = load_dataset(out_folder)
        assert (data.format, data.classes) == (known.NAME, ("cat", "dog"))
    code, _, err = glip("data", "convert", yolo_folder, "--to", "voc", "--out", tmp_path / "voc")
    assert (code, "not an empty folder" in err) == (1, True)


def test_convert_takes_a_known_name_and_rounds_for_voc(glip, coco_folder, tmp_path, monkeypatch):
    official = tmp_path / "odinw" / "Raccoon" / "Raccoon.v2-raw.coco"
    official.parent.mkdir(parents=True)
    coco_folder.rename(official)
    for name in ("train", "valid", "test"):
        file = official / name / "annotations_without_background.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 1, "name": "raccoon"}]
        content["annotations"] = [entry | {"category_id": 1, "iscrowd": 1} for entry in content["annotations"]]
        file.write_text(json.dumps(content))
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(tmp_path / "odinw"))
    code, out, err = glip("data", "convert", "Raccoon", "--to", "voc", "--integers", "--out", tmp_path / "voc")
    assert code == 0, err
    assert "train 6 images 0 boxes, val 3 images 0 boxes, test 3 images 0 boxes" in out
    assert "24 crowd regions are left out" in err


def test_help_names_all_formats(glip):
    _, out, _ = glip("data", "convert", "--help")
    assert all(known.NAME in " ".join(out.split()) for known in FORMATS)


def test_counts_of_a_conversion_are_json(glip, yolo_folder, tmp_path):
    code, out, err = glip("data", "convert", yolo_folder, "--to", "coco", "--out", tmp_path / "coco", "--json")
    assert code == 0, err
    written = json.loads(out)
    assert (written["folder"], written["format"]) == (str(tmp_path / "coco"), "coco")
    assert sum(written["images"].values()) == sum(len(s) for s in load_dataset(tmp_path / "coco").splits.values())
