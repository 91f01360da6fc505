"""Pre-labels of suggested images: in every format, with the classes of the folder, never over existing files."""

import numpy as np
import pytest
import torch
from labelled import CLASSES, make_split
from PIL import Image

from glip_adapt import load_dataset
from glip_adapt.core.structures import Detections
from glip_adapt.data.dataset import FORMATS
from glip_adapt.share.prelabels import (
    check_place,
    draw_sheet,
    prelabels,
    sheet_of,
    to_json,
    write_prelabels,
)
from glip_adapt.share.suggesting import Suggestion

NAMES = ("newt", "owl")  # the folder has owl, ant, tawny owl
FOUND = Detections(
    torch.tensor([[2.0, 3, 12, 13], [2, 3, 12, 13.5], [20, 10, 55, 25], [5, 20, 9, 24]]),
    torch.tensor([0.9, 0.8, 0.7, 0.4]),
    torch.tensor([1, 0, 0, 1]),
    NAMES,
)
LIMITS = {"newt": 0.3, "owl": 0.5}


def suggestion(folder, name="a.png", found=FOUND, size=(40, 30)):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, "grey").save(folder / name)
    return Suggestion(path=folder / name, score=0.5, reason="unsure about 2 boxes: owl", detections=found)


def boxes_of(split, record):
    return [(a.category_id, pytest.approx(a.bbox_xywh, abs=0.01)) for a in split.annotations_of(record)]


def test_a_box_is_a_pre_label_above_the_threshold_of_its_class_and_the_best_on_its_place():
    assert prelabels(FOUND, LIMITS).tolist() == [True, False, True, False]
    assert prelabels(FOUND, {"newt": 0.3, "owl": 0.95}).tolist() == [False, True, True, False]
    assert prelabels(FOUND, {"newt": 0.75, "owl": 0.4}).tolist() == [True, False, False, True]
    assert prelabels(FOUND.select(torch.tensor([], dtype=torch.int64)), LIMITS).tolist() == []


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.NAME)
def test_every_format_holds_pre_labels_with_the_classes_of_the_folder(known, tmp_path):
    like = make_split(tmp_path / "labelled", [[("owl", (1, 2, 3, 4))]])
    empty = FOUND.select(torch.tensor([3]))
    best = [suggestion(tmp_path / "in"), suggestion(tmp_path / "in", "b.png", empty)]
    write_prelabels(best, tmp_path / "out", LIMITS, format=known.NAME, like=like)
    data = load_dataset(tmp_path / "out")
    assert data.format == known.NAME
    assert data.classes == (*CLASSES, "newt")
    assert [record.path.read_bytes() for record in data.train.records] == [s.path.read_bytes() for s in best]
    owl, newt = (data.train.category_ids[data.classes.index(name)] for name in ("owl", "newt"))
    first, second = data.train.records
    assert boxes_of(data.train, first) == [(owl, (2, 3, 10, 10)), (newt, (20, 10, 20, 15))]  # clipped at 40
    assert boxes_of(data.train, second) == []


def test_ids_of_the_folder_are_kept(coco_folder, tmp_path):
    like = load_dataset(coco_folder).train
    found = Detections(FOUND.boxes_xyxy[:1], FOUND.scores[:1], torch.tensor([1]), ("newt", "blue box"))
    write_prelabels([suggestion(tmp_path, found=found)], tmp_path / "out", {"newt": 0.3, "blue box": 0.3}, like=like)
    data = load_dataset(tmp_path / "out")
    assert dict(zip(data.classes, data.train.category_ids, strict=True)) == {"red box": 0, "blue box": 7, "newt": 8}
    assert boxes_of(data.train, data.train.records[0]) == [(7, (2, 3, 10, 10))]


def test_without_labels_the_classes_are_those_of_the_detector(tmp_path):
    write_prelabels([suggestion(tmp_path)], tmp_path / "out", LIMITS)
    assert load_dataset(tmp_path / "out").classes == NAMES


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("glip_adapt.share.prelabels.draw_sheet", lambda *_: 1 / 0)
    best = [suggestion(tmp_path / "in")]
    with pytest.raises(ZeroDivisionError):
        write_prelabels(best, tmp_path / "out", LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_sheet_shows_each_suggestion_with_its_boxes(tmp_path):
    best = [suggestion(tmp_path, f"{i}.png") for i in range(5)]
    five, one = draw_sheet(best, LIMITS), draw_sheet(best[:1], LIMITS)
    assert five.width > 3 * one.width
    assert five.height > 1.8 * one.height
    bare = draw_sheet(best[:1], {"newt": 1.0, "owl": 1.0})
    assert not np.array_equal(one, bare)
    longest = suggestion(tmp_path, "long" * 30 + ".png")
    assert draw_sheet([longest], LIMITS).size == one.size


def test_the_sheet_of_many_stays_small(tmp_path):
    best = [suggestion(tmp_path)] * 100
    assert draw_sheet(best, LIMITS).size == draw_sheet(best[:40], LIMITS).size


def test_json_has_all_boxes_and_tells_pre_labels(tmp_path):
    content = to_json(suggestion(tmp_path), LIMITS)
    assert content["image"] == str(tmp_path / "a.png")
    assert [(box["class"], box["shown"]) for box in content["detections"]] == [
        ("owl", True), ("newt", False), ("newt", True), ("owl", False),
    ]  # fmt: skip
    assert content["detections"][2]["box_xyxy"] == [20, 10, 55, 25]


def test_pre_labels_go_to_a_new_place_outside_of_the_photographs(tmp_path):
    photographs = tmp_path / "photos"
    photographs.mkdir()
    check_place(tmp_path / "out", photographs)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", photographs)
    (tmp_path / "link").symlink_to(photographs)
    for inside in (photographs, photographs / "a" / "b", tmp_path / "link" / "a"):
        with pytest.raises(ValueError, match="lies inside"):
            check_place(inside, photographs)
    (tmp_path / "empty" / "mine.txt").write_text("")
    sheet_of(tmp_path / "out").write_text("")
    for taken in (tmp_path / "empty", tmp_path / "empty" / "mine.txt", tmp_path / "out"):
        with pytest.raises(FileExistsError, match="exists"):
            check_place(taken, photographs)
