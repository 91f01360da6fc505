"""Folders of photographs: which images are labelled, and which are not."""

import pytest
from labelled import CLASSES, make_split
from PIL import Image

from glip_adapt import load_dataset
from glip_adapt.data.formats import coco, yolo
from glip_adapt.data.photographs import read_photographs


def test_a_folder_without_labels_is_unlabelled(tmp_path):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "deeper" / "b.JPG", format="JPEG")
    found = read_photographs(tmp_path / "in")
    assert [path.name for path in found.unlabelled] == ["a.png", "b.JPG"]
    assert (found.data, found.format, found.labelled) == (None, "coco", ())


@pytest.mark.parametrize("known", [coco, yolo], ids=lambda known: known.NAME)
def test_images_that_no_label_file_speaks_of_are_unlabelled(known, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    splits = {name: make_split(tmp_path / name, [[("owl", (1, 2, 3, 4))], []]) for name in ("train", "test")}
    known.write(splits, folder)
    with pytest.raises(ValueError, match="Every image in it is labelled"):
        read_photographs(folder)
    beside = load_dataset(folder).train.records[0].path
    Image.new("RGB", (4, 4)).save(beside.with_name("new.png"))
    found = read_photographs(folder)
    assert found.unlabelled == (beside.with_name("new.png"),)
    assert found.format == known.NAME
    assert [len(split) for split in found.labelled] == [2]  # those of train
    assert found.labelled[0].classes == CLASSES


def test_folders_without_any_image_are_refused(tmp_path):
    with pytest.raises(ValueError, match="It holds no image"):
        read_photographs(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_photographs(tmp_path / "nowhere")
