import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_studio_tasks import put_image, read, region, task
from labelled import boxes_of, check_round_trip, classes_of, make_split, objects, turned_split
from PIL import Image

from glip_adapt.data.formats import label_studio


def box_of(folder, given_region):
    put_image(folder)
    ((_, box),) = boxes_of(read(folder, task(given_region)))["a.png"]
    return box


def test_percents_become_pixels(tmp_path):
    assert box_of(tmp_path, region()) == [10, 20, 20, 30]


@pytest.mark.parametrize(
    ("rotation", "box"),
    [
        (90, [-20, 20, 30, 20]),
        (180, [-10, -10, 20, 30]),
        (-90, [10, 0, 30, 20]),
        (360, [10, 20, 20, 30]),
        (45, [10 - 30 * math.sqrt(0.5), 20, 50 * math.sqrt(0.5), 50 * math.sqrt(0.5)]),
    ],
)
def test_a_rectangle_is_turned_clockwise_about_its_top_left_corner(tmp_path, rotation, box):
    stated = region(x=5, y=20, width=10, height=30, rotation=rotation)
    assert box_of(tmp_path, stated) == pytest.approx(box, abs=1e-9)


@given(x=st.floats(0, 100), y=st.floats(0, 100), w=st.floats(0.1, 50), h=st.floats(0.1, 50), turn=st.floats(-360, 360))
def test_the_box_of_a_turned_rectangle_holds_its_anchor_and_all_of_its_area(x, y, w, h, turn):
    stated = {"x": x, "y": y, "width": w, "height": h, "rotation": turn}
    points = label_studio._points(stated, 200, 100)
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*points, strict=True))
    assert left - 1e-6 <= 2 * x <= right + 1e-6
    assert top - 1e-6 <= y <= bottom + 1e-6
    assert (right - left) * (bottom - top) >= 2 * w * h * (1 - 1e-9)
    assert math.hypot(right - left, bottom - top) <= math.sqrt(2) * math.hypot(2 * w, h) * (1 + 1e-9)


def test_a_polygon_becomes_the_box_around_it(tmp_path):
    stated = region(kind="polygonlabels", points=[[10, 10], [40, 30], [20, 60]], closed=True)
    assert box_of(tmp_path, stated) == [20, 10, 60, 50]


def test_a_region_of_several_classes_gives_a_box_of_each(tmp_path):
    put_image(tmp_path)
    split = read(tmp_path, task(region(["dog", " big "])))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30]), ("big", [10, 20, 20, 30])]}


def test_a_rectangle_takes_its_class_from_the_result_of_the_same_id(tmp_path):
    put_image(tmp_path)
    sides = {"x": 5, "y": 20, "width": 10, "height": 30}
    bare = [{"id": name, "type": "rectangle", "value": sides} for name in ("r0", "r1")]
    split = read(tmp_path, task(*bare, region(kind="labels", number=0, **sides)))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30])]}
    assert split.findings == (("malformed label", "export.json, task 0, region 1: the labels are None"),)


def test_what_is_no_region_is_passed_over_and_other_regions_are_told(tmp_path):
    put_image(tmp_path)
    others = [
        {"type": "choices", "value": {"choices": ["indoors"]}},
        {"type": "textarea", "value": {"text": ["seen"], "x": 5, "y": 20, "width": 10, "height": 30}},
        {"type": "relation", "from_id": "r0", "to_id": "r1"},
        region(kind="brushlabels", format="rle", rle=[1, 2]),
        region(kind="ellipselabels", x=50, y=50, radiusX=3, radiusY=4),
        region(kind="polygonlabels", points=[[10, 10], [40, 30]]),
    ]
    split = read(tmp_path, task(*others, region()))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30])]}
    told = [("annotation without a box", f"export.json, task 0, region {number}: 'dog'") for number in (3, 4, 5)]
    assert split.findings == tuple(told)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"rectanglelabels": []}, "the labels are []"),
        ({"rectanglelabels": "dog"}, "the labels are 'dog'"),
        ({"rectanglelabels": [3]}, "the labels are [3]"),
        ({"x": None}, "None is no finite number"),
        ({"width": math.nan}, "nan is no finite number"),
        ({"rotation": "left"}, "'left' is no finite number"),
    ],
)
def test_a_damaged_region_is_told_and_leaves_the_others(tmp_path, value, reason):
    put_image(tmp_path)
    damaged = region()
    damaged["value"] |= value
    split = read(tmp_path, task(damaged, region(["cat"])))
    assert boxes_of(split) == {"a.png": [("cat", [10, 20, 20, 30])]}
    assert split.findings == (("malformed label", f"export.json, task 0, region 0: {reason}"),)


# Annotations ---------------------------------------------------------------------------------------------------------


def annotation(name, **more):
    return {"result": [region([name])], **more}


@pytest.mark.parametrize(
    ("annotations", "name", "told"),
    [
        ([annotation("a"), annotation("b")], "a", ["several annotations of one image"]),
        ([annotation("a"), annotation("b", ground_truth=True)], "b", []),
        ([annotation("a", was_cancelled=True), annotation("b")], "b", []),
        ([annotation("a", skipped=True), annotation("b", was_cancelled=False)], "b", []),
        ([annotation("a", was_cancelled=True, ground_truth=True), annotation("b")], "b", []),
    ],
)
@pytest.mark.parametrize("key", ["annotations", "completions"])
def test_the_ground_truth_counts_else_the_first_that_was_not_cancelled(tmp_path, annotations, name, told, key):
    put_image(tmp_path)
    stated = task()
    del stated["annotations"]
    split = read(tmp_path, stated | {key: annotations})
    assert classes_of(split) == [name]
    assert [kind for kind, _ in split.findings] == told


@pytest.mark.parametrize("annotations", [[], [annotation("dog", was_cancelled=True)], None])
def test_an_image_without_an_annotation_is_in_no_split(tmp_path, annotations):
    put_image(tmp_path)
    put_image(tmp_path, "b.png")
    predicted = task(image="b.png", annotations=annotations, predictions=[annotation("cat")])
    split = read(tmp_path, task(region()), predicted)
    assert list(boxes_of(split)) == ["a.png"]
    assert classes_of(split) == ["dog"]
    assert split.findings == (("image without a label file", "b.png"),)


def test_an_empty_annotation_says_that_the_image_shows_nothing(tmp_path):
    put_image(tmp_path)
    split = read(tmp_path, task())
    assert boxes_of(split) == {"a.png": []}
    assert "height" not in split.document["images"][0]


def test_of_two_tasks_with_one_image_the_first_counts(tmp_path):
    put_image(tmp_path)
    split = read(tmp_path, task(region()), task(region(["cat"])))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30])]}
    assert split.findings == (("several annotations of one image", "export.json, task 1: the first task counts"),)


def test_a_region_on_an_image_that_was_turned_in_the_tool_is_told(tmp_path):
    put_image(tmp_path)
    split = read(tmp_path, task(region() | {"image_rotation": 90}))
    assert split.findings == (("image turned in Label Studio", "export.json, task 0, region 0"),)


# JSON-MIN ------------------------------------------------------------------------------------------------------------


def flat(*labels, **changes):
    """Return a task of JSON-MIN."""
    sides = {"x": 5, "y": 20, "width": 10, "height": 30, "rotation": 0, "original_width": 200, "original_height": 100}
    regions = {"boxes": [sides | {"rectanglelabels": [label]} for label in labels]} if labels else {}
    return (
        {"image": "/data/upload/1/a.png", "id": 7, "annotator": 1, "annotation_id": 3, "light": "dim"}
        | regions
        | changes
    )


def test_json_min_has_the_regions_under_the_name_of_the_tag(tmp_path):
    put_image(tmp_path)
    text = [{"x": 5, "y": 20, "width": 10, "height": 30, "rotation": 0, "text": ["seen"]}]
    split = read(tmp_path, flat("dog", "cat", notes=text, words=["one", "two"]))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30]), ("cat", [10, 20, 20, 30])]}
    assert split.findings == ()
    assert (split.document["images"][0]["height"], split.document["images"][0]["width"]) == (100, 200)


def test_json_min_tells_empty_from_unlabelled_images(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        put_image(tmp_path, name)
    split = read(tmp_path, flat(), flat(annotation_id=None, image="b.png"), {"image": "c.png"})
    assert boxes_of(split) == {"a.png": [], "c.png": []}


def test_json_min_has_one_record_for_each_annotation(tmp_path):
    put_image(tmp_path)
    split = read(tmp_path, flat("dog"), flat("cat", annotation_id=4))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30])]}
    assert [kind for kind, _ in split.findings] == ["several annotations of one image"]


# Splits, recognition and damage --------------------------------------------------------------------------------------


def test_splits_are_named_by_files_and_folders(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        put_image(tmp_path, f"images/{name}")
    (tmp_path / "valid").mkdir()
    (tmp_path / "project-1-train.json").write_text(json.dumps([task(region(), image="a.png")]))
    (tmp_path / "valid" / "export.json").write_text(json.dumps([task(image="b.png")]))
    (tmp_path / "Test_tasks.json").write_text(json.dumps([task(image="c.png")]))
    found = label_studio.read(tmp_path)
    assert {name: list(boxes_of(split)) for name, split in found.items()} == {
        "train": ["images/a.png"],
        "val": ["images/b.png"],
        "test": ["images/c.png"],
    }
    (tmp_path / "export.json").write_text(json.dumps([task(image="a.png")]))
    with pytest.raises(ValueError, match=r"export\.json and .*project-1-train\.json are both of the split train"):
        label_studio.read(tmp_path)


def test_folders_of_images_tell_splits_if_the_name_of_the_file_does_not(tmp_path):
    for name in ("train/a.png", "test/b.png"):
        put_image(tmp_path, name)
    (tmp_path / "export.json").write_text(json.dumps([task(image="b.png"), task(image="a.png")]))
    found = label_studio.read(tmp_path)
    assert {name: list(boxes_of(split)) for name, split in found.items()} == {
        "train": ["train/a.png"],
        "test": ["test/b.png"],
    }


def test_a_folder_is_recognised_by_content_and_with_damage(tmp_path):
    assert not label_studio.recognises(tmp_path)
    others = {
        "coco": {"images": [], "annotations": [{"rectanglelabels": 1}], "categories": []},
        "create_ml": [{"image": "a.png", "annotations": [{"label": "dog", "coordinates": {"x": 1}}]}],
        "list": [1, "rectanglelabels", None],
    }
    for name, content in others.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_bytes(b"[\xff\xfe\x00")
    assert not label_studio.recognises(tmp_path)
    for content in ([task(region())], [flat("dog")], [flat()], [None, task()]):
        text = json.dumps(content)
        (tmp_path / "tasks.json").write_text("\ufeff " + text, encoding="utf-8")
        assert label_studio.recognises(tmp_path)
        (tmp_path / "tasks.json").unlink()
    (tmp_path / "tasks.json").write_text(json.dumps([task(region())])[:-30])
    assert label_studio.recognises(tmp_path)
    ((kind, example),) = label_studio.read(tmp_path)["train"].findings
    assert kind == "malformed label file"
    assert example.startswith("tasks.json: ")


KEYS = [
    "result", "value", "rectanglelabels", "x", "y", "width", "height", "points", "data", "image", "type", "id",
    "original_width", "annotations",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=15,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tasks=st.lists(JSON, max_size=3), result=JSON, value=JSON)
def test_no_content_breaks_the_reader(tmp_path, tasks, result, value):
    put_image(tmp_path)
    odd = region() | {"value": value}
    split = read(tmp_path, task(region()), task(odd, image="b.png"), task(annotations=[{"result": result}]), *tasks)
    assert label_studio.recognises(tmp_path)
    assert boxes_of(split)["a.png"] == [("dog", [10, 20, 20, 30])]


def test_classes_txt_fixes_the_order_of_classes(tmp_path):
    put_image(tmp_path)
    (tmp_path / "classes.txt").write_text("owl\ndog\n")
    (tmp_path / "labels.txt").write_text("something else\n")
    assert classes_of(read(tmp_path, task(region()))) == ["owl", "dog"]


# Writing -------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(train=st.lists(objects, min_size=1, max_size=3), test=objects)
def test_what_is_written_is_read_again(tmp_path_factory, train, test):
    check_round_trip(label_studio, tmp_path_factory.mktemp("round"), {"train": train, "test": [test]})


def test_a_written_file_is_one_that_label_studio_imports(tmp_path):
    split = make_split(tmp_path / "from", [[("owl", (4, 3, 10, 15))]])  # of 40 × 30 pixels
    path = split.records[0].path.rename(tmp_path / "from" / "a b.png")
    split = replace(split, records=(replace(split.records[0], path=path),))
    (tmp_path / "to").mkdir()
    label_studio.write({"val": split}, tmp_path / "to")
    (stated,) = json.loads((tmp_path / "to" / "val" / "tasks.json").read_text())
    assert stated["data"] == {"image": "/data/local-files/?d=val/a%20b.png"}
    ((result,),) = [entry["result"] for entry in stated["annotations"]]
    assert (result["original_width"], result["original_height"], result["type"]) == (40, 30, "rectanglelabels")
    assert result["value"].pop("rectanglelabels") == ["owl"]
    assert result["value"] == pytest.approx({"x": 10, "y": 10, "width": 25, "height": 50, "rotation": 0})
    assert list(boxes_of(label_studio.read(tmp_path / "to")["val"])) == ["val/a b.png"]


def test_pixels_are_those_that_the_boxes_were_drawn_on(tmp_path):
    (tmp_path / "to").mkdir()
    label_studio.write({"train": turned_split(tmp_path / "from")}, tmp_path / "to")
    split = label_studio.read(tmp_path / "to")["train"]
    ((file, ((_, box),)),) = boxes_of(split).items()
    with Image.open(tmp_path / "to" / file) as image:
        assert image.size == (40, 30)
        assert image.getexif().get(274, 1) == 1
    assert box == pytest.approx([1, 2, 3, 4])
