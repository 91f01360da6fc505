"""Splits: few-shot subsets, which images are used for training, and what scoring compares with."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch

from glip_adapt.core.structures import Target
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.formats.coco import coco_ground_truth, load_split
from glip_adapt.data.split import Annotation, ImageRecord, Split

NOTHING = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def build_split(images, category_ids=(0, 4, 9), name="toy/train", **facts):
    """A split in memory, without any file; each image is the list of category ids of its boxes."""
    records = tuple(
        ImageRecord(n, Path(f"{n}.png"), (30, 40), NOTHING, tuple(Annotation(c, (1, 1, 9, 9), 81, False) for c in ids))
        for n, ids in enumerate(images)
    )
    return Split(name, records, tuple(f"class {i}" for i in category_ids), tuple(category_ids), **facts)


def image_ids(split):
    return [record.image_id for record in split.records]


def test_a_subset_keeps_all_boxes_of_its_images_and_says_how_it_was_drawn():
    split = build_split([[4], [], [4, 4, 0], [9], [0], [9, 4]], aliases=("a", "b", "c"), annotation_ids="as_in_file")
    picked = split.few_shot(shots=1, seed=0)
    assert image_ids(picked) == [0, 2, 3]
    assert [len(picked.annotations_of(record)) for record in picked.records] == [1, 3, 1]
    assert (picked.name, picked.shots, picked.source) == ("toy/train-1-shot-seed-0", 1, "sampled")
    assert (picked.aliases, picked.annotation_ids) == (split.aliases, "as_in_file")
    assert (split.shots, split.source) == ("all", "full")


def test_a_split_without_files_is_drawn_and_scored():
    picked = build_split([[4], [4, 4, 0], [9]]).few_shot(1, seed=0)
    assert len(coco_ground_truth(picked)["annotations"]) == 5


def test_the_ids_of_a_split_without_files_are_named_by_the_split():
    with pytest.raises(ValueError, match=r"toy/train: a box has the id None"):
        coco_ground_truth(build_split([[4]], annotation_ids="as_in_file"))


def test_records_that_state_no_more_than_their_target_are_scored_by_it():
    record = ImageRecord(1, Path("1.png"), (30, 40), Target(torch.tensor([[4.0, 5.0, 13.0, 24.0]]), torch.tensor([1])))
    split = Split("toy/train", (record,), ("zero", "four"), (0, 4))
    assert split.annotations_of(record) == (Annotation(4, (4, 5, 10, 20), 200, False),)


def test_a_small_split_gives_all_it_can_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        picked = build_split([[0], [0, 4]]).few_shot(shots=3, seed=3)
    assert len(picked) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "toy/train has only 2 of 3 images of 'class 0'",
        "toy/train has only 1 of 3 images of 'class 4'",
        "toy/train has only 0 of 3 images of 'class 9'",
    ]


@pytest.mark.parametrize("shots", [0, -1])
@pytest.mark.parametrize("source", ["official", "sampled"])
def test_zero_shots_need_no_training_split(shots, source):
    with pytest.raises(ValueError, match="Zero-shot needs no training split"):
        build_split([[0]]).few_shot(shots, 3, source)


def test_a_split_without_any_box_is_refused():
    with pytest.raises(ValueError, match="No image of toy/train has a box"):
        build_split([[], []]).few_shot(1, 3)


def test_a_subset_that_the_reader_brings_wins_unless_sampling_is_asked_for():
    mine = build_split([[4], [9]])
    split = build_split([[4]] * 5, prepared=lambda split, shots, seed: mine if (shots, seed) == (1, 3) else None)
    assert image_ids(split.few_shot(1, seed=3)) == [0, 1]
    assert len(split.few_shot(1, seed=3, source="sampled")) == len(split.few_shot(1, seed=30)) == 1


# The official files of COCO ------------------------------------------------------------------------------------------


def write_split(folder, name="train"):
    """A COCO file with eight one-box images, and an official 1-shot file that holds only the last one."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(8)]
    boxes = [{"id": n, "image_id": n, "category_id": 2, "bbox": [1, 1, 9, 9]} for n in range(8)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 2, "name": "two"}]}
    for entry in images:
        (folder / entry["file_name"]).touch()
    (folder / "boxes.json").write_text(json.dumps(content))
    subset = content | {"images": images[7:], "annotations": boxes[7:], "categories": [{"id": 2, "name": "other"}]}
    (folder / "fewshot_train_shot1_seed3.json").write_text(json.dumps(subset))
    return load_split(folder / "boxes.json", folder, f"toy/{name}")


def test_the_official_file_wins_and_the_split_tells(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        picked = write_split(tmp_path).few_shot(1, seed=3)
    assert image_ids(picked) == [7]
    assert picked.source == "official fewshot_train_shot1_seed3.json"
    assert picked.annotation_file.name == "fewshot_train_shot1_seed3.json"
    assert (picked.name, picked.shots) == ("toy/train-1-shot-seed-3", 1)
    assert picked.classes == ("two",)  # as in the full split
    assert len(picked.records[0].target) == 1
    assert "official" in caplog.text


@pytest.mark.parametrize(("name", "shots", "seed"), [("train", 1, 30), ("train", 5, 3), ("val", 1, 3), ("test", 1, 3)])
def test_without_an_official_file_of_its_own_a_split_is_sampled(tmp_path, caplog, name, shots, seed):
    split = write_split(tmp_path, name)
    with caplog.at_level(logging.INFO):
        picked = split.few_shot(shots, seed)
    assert picked.source == "sampled"
    assert image_ids(picked) == image_ids(split.few_shot(shots, seed, "sampled"))
    assert "sampled" in caplog.text


def test_a_subset_of_a_subset_is_sampled(tmp_path):
    picked = write_split(tmp_path).few_shot(5, seed=30)
    assert picked.few_shot(1, seed=3).source == "sampled"


def test_the_boxes_to_learn_from_are_made_once_when_they_are_asked_for():
    asked = []

    def learned():
        asked.append(1)
        return NOTHING

    record = ImageRecord(1, Path("1.png"), (30, 40), learned, (Annotation(1, (1, 1, 9, 9), 81, False),))
    split = Split("x", (record,), ("a",), (1,))
    assert len(split.with_boxes()) == 1
    assert split.annotations_of(record) == record.annotations
    assert asked == []
    assert record.target is record.target is NOTHING
    assert asked == [1]


def test_a_record_that_was_read_travels_to_another_process(coco_folder):
    record = load_dataset(coco_folder).train.records[0]
    other = pickle.loads(pickle.dumps(record))
    torch.testing.assert_close(other.target.boxes_xyxy, record.target.boxes_xyxy, rtol=0, atol=0)


def test_boxes_that_were_first_asked_for_in_inference_mode_can_train(coco_folder):
    record = load_dataset(coco_folder).train.records[0]
    with torch.inference_mode():
        assert not record.target.boxes_xyxy.is_inference()
