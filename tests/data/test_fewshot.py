import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.structures import Target
from glip_adapt.data.formats.coco import coco_ground_truth, load_split
from glip_adapt.data.split import Annotation, ImageRecord, Split

HERE = Path(__file__).resolve()
PARITY = (HERE.parents[1] / "parity", HERE.parents[2].parent / "shared" / "parity")
GOLDEN = next((folder for folder in PARITY if (folder / "fewshot_expected.json").is_file()), None)
NOTHING = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def build_split(pictures, category_ids=(0, 4, 9), name="toy/train"):
    """A split in memory; each picture is the list of category ids of its boxes."""
    records = tuple(
        ImageRecord(n, Path(f"{n}.png"), (30, 40), NOTHING, tuple(Annotation(c, (1, 1, 9, 9), 81, False) for c in ids))
        for n, ids in enumerate(pictures)
    )
    return Split(name, records, tuple(f"class {i}" for i in category_ids), tuple(category_ids), Path("boxes.json"))


def image_ids(split):
    return [record.image_id for record in split.records]


@pytest.mark.skipif(GOLDEN is None, reason="the few-shot goldens are neither in tests/parity nor in ../shared/parity")
def test_the_picks_equal_those_of_the_public_sampler():
    file = GOLDEN / "fewshot_coco.json"
    split = load_split(file, GOLDEN, "golden/train", require_images=False)
    for expected in json.loads((GOLDEN / "fewshot_expected.json").read_text()):
        picked = split.few_shot(expected["shots"], expected["seed"], "sampled")
        assert image_ids(picked) == expected["image_ids"], expected["shots"]
        assert picked.source == "sampled"


pictures = st.lists(st.lists(st.sampled_from([0, 4, 9]), max_size=4), min_size=1, max_size=25).filter(any)


@given(pictures=pictures, shots=st.integers(1, 6), seed=st.integers(0, 400))
@settings(deadline=None)
def test_every_class_gets_its_shots_or_all_there_are_and_no_pick_is_idle(pictures, shots, seed):
    split = build_split(pictures)
    picked = split.few_shot(shots, seed)
    assert len(set(image_ids(picked))) == len(picked) > 0
    for category_id in split.category_ids:
        available = sum(category_id in ids for ids in pictures)
        assert sum(category_id in pictures[n] for n in image_ids(picked)) >= min(shots, available)
    seen = dict.fromkeys(split.category_ids, 0)
    for n in image_ids(picked):
        assert any(seen[category_id] < shots for category_id in pictures[n])
        for category_id in set(pictures[n]):
            seen[category_id] += 1
    backwards = replace(split, records=split.records[::-1])
    assert image_ids(backwards.few_shot(shots, seed)) == image_ids(picked)


def test_fewer_shots_are_the_beginning_of_more_for_one_class():
    split = build_split([[4]] * 20, category_ids=(4,))
    assert image_ids(split.few_shot(3, seed=30)) == image_ids(split.few_shot(10, seed=30))[:3]


def test_seed_zero_takes_pictures_in_order_and_keeps_all_boxes_of_each():
    picked = build_split([[4], [], [4, 4, 0], [9], [0], [9, 4]]).few_shot(shots=1, seed=0)
    assert image_ids(picked) == [0, 2, 3]
    assert [len(picked.annotations_of(record)) for record in picked.records] == [1, 3, 1]
    assert len(coco_ground_truth(picked)["annotations"]) == 5


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


def write_split(folder, name="train"):
    """A COCO file with eight one-box pictures, and an official 1-shot file that holds only the last one."""
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
    assert picked.name == "toy/train-1-shot-seed-3"
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
