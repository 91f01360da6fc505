import contextlib
import io
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.data.check import check_split
from glip_adapt.data.formats.coco import coco_ground_truth, load_split

CATEGORIES = [{"id": 7, "name": "seven"}, {"id": 0, "name": "zero"}, {"id": 3, "name": "three"}]


def image_entry(image_id, **changes):
    return {"id": image_id, "file_name": f"{image_id}.png", "width": 40, "height": 30, **changes}


def annotation(annotation_id, image_id, category_id, bbox, **changes):
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": bbox, **changes}


def write(folder, images=None, annotations=(), categories=None, **changes):
    """Write a COCO file with 40 × 30 images and return its path."""
    images = [image_entry(1)] if images is None else images
    for entry in images:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
            Image.new("RGB", (40, 30), (200, 100, 50)).save(folder / entry["file_name"])
    content = {"images": images, "annotations": list(annotations), "categories": categories or CATEGORIES, **changes}
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def load(path, **options):
    return load_split(path, path.parent, "toy/train", **options)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True))
def test_labels_are_contiguous_and_follow_rising_category_ids(tmp_path, ids):
    boxes = [annotation(n, 1, category_id, [1, 2, 10, 10]) for n, category_id in enumerate(ids)]
    split = load(write(tmp_path, annotations=boxes, categories=[{"id": i, "name": f"class {i}"} for i in ids]))
    assert split.category_ids == tuple(sorted(ids))
    assert split.classes == tuple(f"class {i}" for i in sorted(ids))
    assert [split.category_ids[label] for label in split.records[0].target.labels] == ids


def test_a_box_becomes_inclusive_corners(tmp_path):
    target = load(write(tmp_path, annotations=[annotation(1, 1, 3, [4, 5, 10, 20])])).records[0].target
    assert target.boxes_xyxy.tolist() == [[4, 5, 13, 24]]
    assert target.boxes_xyxy.dtype == torch.float32
    assert target.labels.tolist() == [1]
    assert target.labels.dtype == torch.int64


def test_records_come_by_rising_image_id_and_keep_images_without_boxes(tmp_path):
    split = load(write(tmp_path, [image_entry(9), image_entry(2)], [annotation(1, 9, 3, [0, 0, 5, 5])]))
    assert [record.image_id for record in split.records] == [2, 9]
    assert [len(record.target) for record in split.records] == [0, 1]
    assert split.records[0].target.boxes_xyxy.shape == (0, 4)
    assert [record.image_id for record in split.with_boxes().records] == [9]


def test_text_image_ids_work(tmp_path):
    split = load(write(tmp_path, [image_entry("b"), image_entry("a")], [annotation(1, "b", 3, [0, 0, 5, 5])]))
    assert [record.image_id for record in split.records] == ["a", "b"]
    assert len(split.records[1].target) == 1


def test_targets_are_clipped_and_lose_what_is_too_thin_to_learn_from(tmp_path):
    boxes = [[30, 20, 20, 20], [5, 5, 1, 10], [5, 5, 2, 2], [100, 100, 5, 5], [-3, -2, 8, 7]]
    split = load(write(tmp_path, annotations=[annotation(n, 1, 3, box) for n, box in enumerate(boxes)]))
    assert split.records[0].target.boxes_xyxy.tolist() == [[30, 20, 39, 29], [5, 5, 6, 6], [0, 0, 4, 4]]
    assert [entry["bbox"] for entry in coco_ground_truth(split)["annotations"]] == boxes


def test_an_image_with_only_thin_boxes_is_not_fit_for_training(tmp_path):
    images = [image_entry(1), image_entry(2)]
    boxes = [annotation(1, 1, 3, [0, 0, 1, 20]), annotation(2, 2, 3, [0, 0, 1.5, 20])]
    assert [record.image_id for record in load(write(tmp_path, images, boxes)).with_boxes().records] == [2]


def test_crowds_are_no_targets_but_stay_in_the_ground_truth(tmp_path):
    boxes = [annotation(1, 1, 3, [0, 0, 5, 5]), annotation(2, 1, 3, [9, 9, 9, 9], iscrowd=1)]
    split = load(write(tmp_path, annotations=boxes))
    assert len(split.records[0].target) == 1
    assert [entry["iscrowd"] for entry in coco_ground_truth(split)["annotations"]] == [0, 1]


def test_sizes_that_the_file_lacks_come_from_the_image(tmp_path):
    bare = {"id": 1, "file_name": "1.png"}
    path = write(tmp_path, [bare])
    assert load(path).records[0].size_hw == (30, 40)
    with pytest.raises(ValueError, match="no width and height"):
        load(path, require_images=False)


def test_a_box_without_sides_is_no_target_but_stays_in_the_ground_truth(tmp_path):
    split = load(write(tmp_path, annotations=[annotation(5, 1, 3, [1, 1, 0, 5]), annotation(6, 1, 3, [1, 1, 5, 5])]))
    assert split.records[0].target.boxes_xyxy.tolist() == [[1, 1, 5, 5]]
    assert [a["bbox"] for a in coco_ground_truth(split)["annotations"]] == [[1, 1, 0, 5], [1, 1, 5, 5]]


def test_a_polygon_without_a_box_gives_one(tmp_path):
    polygons = [[2, 3, 12, 3, 12, 8], [20, 20, 25, 29, 22, 28]]
    boxes = [annotation(1, 1, 3, None, segmentation=polygons), annotation(2, 1, 3, [], segmentation=polygons[:1])]
    (record,) = load(write(tmp_path, annotations=boxes)).records
    assert [a.bbox_xywh for a in record.annotations] == [(2, 3, 23, 26), (2, 3, 10, 5)]
    assert [a.area for a in record.annotations] == [23 * 26, 50]


def test_odd_areas_and_crowd_marks_read_as_those_of_a_plain_box(tmp_path):
    boxes = [annotation(1, 1, 3, [1, 1, 5, 6], area=-3, iscrowd="no"), annotation(2, 1, 3, [1, 1, 5, 7], iscrowd=True)]
    (record,) = load(write(tmp_path, annotations=boxes)).records
    assert [(a.area, a.iscrowd) for a in record.annotations] == [(30, False), (35, True)]


def test_backslashes_in_names_are_folders(tmp_path):
    (tmp_path / "train").mkdir()
    path = write(tmp_path)
    (tmp_path / "1.png").rename(tmp_path / "train" / "1.png")
    path.write_text(path.read_text().replace('"1.png"', r'"train\\1.png"'))
    assert load(path).records[0].path == tmp_path / "train" / "1.png"
    assert check_split(path, tmp_path) == []


ROOT = [{"id": 0, "name": "dice", "supercategory": "none"}]
BELOW = [{"id": n, "name": name, "supercategory": "dice"} for n, name in ((1, "one"), (2, "two"))]


@pytest.mark.parametrize(
    ("categories", "boxes_of", "classes"),
    [
        (ROOT + BELOW, [1], ("one", "two")),
        (ROOT + BELOW, [0], ("dice", "one", "two")),
        ([{"id": 0, "name": "__background__"}, *BELOW], [], ("one", "two")),
        ([*BELOW, {"id": 9, "name": "dice"}], [], ("one", "two")),
        (ROOT, [], ("dice",)),
        ([{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}], [], ("dog", "cat")),
        ([{"id": 0, "name": "person", "supercategory": "person"}, *BELOW], [], ("person", "one", "two")),
        ([*ROOT, BELOW[0], {"id": 2, "name": "two", "supercategory": "other"}], [], ("dice", "one", "two")),
    ],
)
def test_a_category_that_only_heads_the_others_is_no_class_unless_it_has_boxes(tmp_path, categories, boxes_of, classes):
    boxes = [annotation(n, 1, category_id, [1, 1, 5, 5]) for n, category_id in enumerate(boxes_of)]
    assert load(write(tmp_path, annotations=boxes, categories=categories)).classes == classes


@pytest.mark.parametrize(("declared", "shown"), [((40, 30), (40, 30)), ((30, 40), (30, 40)), (None, (40, 30))])
def test_an_image_is_turned_where_its_boxes_were_drawn_on_the_turned_one(tmp_path, declared, shown):
    path = write(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png", exif=exif)
    document = json.loads(path.read_text())
    document["images"][0] |= {"height": declared and declared[0], "width": declared and declared[1]}
    path.write_text(json.dumps(document))
    (record,) = load(path).records
    assert record.size_hw == record.header.size_hw == record.load().size[::-1] == shown


@pytest.mark.parametrize(
    ("size", "declared", "box", "said"),
    [
        ((40, 30), (40, 30), [0, 0, 30, 40], ""),
        ((40, 30), (30, 40), [0, 0, 40, 30], ""),
        ((40, 30), (30, 40), [0, 0, 30, 40], "boxes leave the image"),
        ((40, 30), None, [0, 0, 30, 40], "states no size"),
        ((40, 40), (40, 40), [0, 0, 30, 40], "does not tell"),
    ],
)
def test_what_is_done_about_an_orientation_is_said_once(tmp_path, caplog, size, declared, box, said):
    images = [image_entry(n, file_name=f"{n}.png") for n in (1, 2)]
    path = write(tmp_path, images, [annotation(n, n, 3, box) for n in (1, 2)])
    exif = Image.Exif()
    exif[274] = 6
    document = json.loads(path.read_text())
    for entry in document["images"]:
        Image.new("RGB", size).save(tmp_path / entry["file_name"], exif=exif)
        entry |= {"height": declared and declared[0], "width": declared and declared[1]}
    path.write_text(json.dumps(document))
    for record in load(path).records:
        record.header  # noqa: B018
    assert len(caplog.records) == bool(said)
    assert said in caplog.text


def test_annotations_keep_the_ids_of_the_file_for_scoring_as_the_public_evaluator_does(tmp_path):
    split = load(write(tmp_path, annotations=[annotation(0, 1, 3, [1, 1, 5, 5]), annotation(7, 1, 3, [9, 9, 5, 5])]))
    assert [a["id"] for a in coco_ground_truth(split)["annotations"]] == [1, 2]
    as_in_file = replace(split, annotation_ids="as_in_file")
    assert [a["id"] for a in coco_ground_truth(as_in_file)["annotations"]] == [0, 7]


@pytest.mark.parametrize("annotation_id", [None, "a"])
def test_ids_of_the_file_must_be_whole_numbers_where_they_are_used(tmp_path, annotation_id):
    split = load(write(tmp_path, annotations=[annotation(annotation_id, 1, 3, [1, 1, 5, 5])]))
    with pytest.raises(ValueError, match="whole numbers"):
        coco_ground_truth(replace(split, annotation_ids="as_in_file"))


def test_given_categories_replace_those_of_the_file(tmp_path):
    path = write(tmp_path, annotations=[annotation(1, 1, 3, [0, 0, 5, 5])])
    split = load(path, categories={3: "hare", 4: "owl"})
    assert split.classes == ("hare", "owl")
    with pytest.raises(ValueError, match="unknown category"):
        load(path, categories={4: "owl"})


def average_precision(ground_truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def test_the_ground_truth_scores_itself_perfectly(tmp_path):
    boxes = [  # id 0 alone would cost pycocotools a match, and the crowd must swallow the detection inside it
        annotation(0, 1, 0, [1, 1, 12, 12], area=100),
        annotation(0, 1, 7, [20, 3, 12, 15]),
        annotation(5, 2, 7, [2, 2, 30, 20], iscrowd=1),
    ]
    split = load(write(tmp_path, [image_entry(1), image_entry(2)], boxes))
    truth = coco_ground_truth(split)
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3]
    assert [entry["area"] for entry in truth["annotations"]] == [100, 180, 600]
    results = [{key: e[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for e in boxes[:2]]
    crowd = {"image_id": 2, "category_id": 7, "bbox": [4, 4, 8, 8], "score": 0.9}
    assert average_precision(truth, [*results, crowd]) == pytest.approx(1)


def test_the_ground_truth_loads_as_the_same_split(tmp_path):
    split = load(
        write(tmp_path, annotations=[annotation(4, 1, 3, [1.5, 2.25, 7, 9]), annotation(4, 1, 0, [3, 3, 4, 4])])
    )
    truth = coco_ground_truth(split)
    assert truth["images"] == [image_entry(1)]
    (tmp_path / "again.json").write_text(json.dumps(truth))
    again = load(tmp_path / "again.json")
    assert (again.classes, again.category_ids) == (split.classes, split.category_ids)
    stated = [replace(a, annotation_id=None) for a in split.records[0].annotations]
    assert [replace(a, annotation_id=None) for a in again.records[0].annotations] == stated
    assert again.records[0].path == split.records[0].path
