"""The verb ``suggest``."""

import json

import pytest
from PIL import Image

from glip_adapt import attach, load_dataset, load_trunk


@pytest.fixture
def adapter(tmp_path):
    attach(load_trunk("glip-nano"), "prompt", classes=("red box", "blue box")).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def suggest(glip, coco_folder):
    """Run the verb on small views; return exit code, standard output, and what else was said, in one line."""

    def run(*arguments):
        code, out, err = glip("suggest", *arguments, "--short-side", "64")
        return code, out, " ".join(err.replace("│", " ").split())

    for number in range(3):
        Image.open(coco_folder / "test" / f"{number}.png").rotate(180).save(coco_folder / "train" / f"new{number}.png")
    return run


def test_help_has_an_example(glip):
    code, out, _ = glip("suggest", "--help")
    assert code == 0
    assert "Example: glip-adapt suggest photos --adapter adapters/raccoon" in " ".join(out.split())


def test_images_are_ranked_and_written_with_pre_labels_beside_the_folder(suggest, adapter, coco_folder):
    code, out, err = suggest(coco_folder, "--adapter", adapter, "--count", 2)
    assert code == 0, err
    assert "2 of 3 unlabelled images" in out
    assert "train/new" in out
    place = coco_folder.with_name("shapes-suggested")
    assert f"pre-labels (coco) → {place}" in out
    written = load_dataset(place)
    assert written.classes == load_dataset(coco_folder).classes
    assert {record.path.name for record in written.train.records} < {"new0.png", "new1.png", "new2.png"}
    assert Image.open(place.with_name("shapes-suggested.png")).width > 400
    code, _, err = suggest(coco_folder, "--adapter", adapter)
    assert code == 1
    assert f"{place} exists and is not an empty folder" in err


def test_json_is_all_that_standard_output_holds(suggest, adapter, coco_folder, tmp_path):
    code, out, err = suggest(coco_folder, "--adapter", adapter, "--out", tmp_path / "next", "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["folder"] == str(tmp_path / "next")
    assert content["sheet"] == str(tmp_path / "next.png")
    assert content["format"] == "coco"
    assert len(content["suggestions"]) == 3
    first = content["suggestions"][0]
    assert set(first) == {"image", "score", "reason", "detections"}
    shown = [sum(box["shown"] for box in row["detections"]) for row in content["suggestions"]]
    assert shown == [len(record.annotations) for record in load_dataset(tmp_path / "next").train.records]


def test_classes_stand_in_for_an_adapter_in_a_folder_without_labels(suggest, coco_folder, tmp_path):
    photographs = tmp_path / "photos"
    photographs.mkdir()
    (coco_folder / "train" / "0.png").rename(photographs / "a.png")
    code, _, err = suggest(photographs, "--classes", "dog, cat", "--trunk", "glip-nano")
    assert code == 0, err
    assert load_dataset(tmp_path / "photos-suggested").classes == ("dog", "cat")


def test_wrong_use_is_told_before_anything_is_written(suggest, adapter, coco_folder, tmp_path):
    code, _, err = suggest(coco_folder)
    assert code == 2
    assert "name an adapter, or --classes" in err
    code, _, err = suggest(tmp_path / "nowhere", "--adapter", adapter)
    assert code == 1
    assert "no folder" in err
    code, _, err = suggest(coco_folder, "--adapter", adapter, "--out", coco_folder / "train" / "next")
    assert code == 1
    assert "lies inside" in err
    assert not list(tmp_path.glob("*-suggested*"))
