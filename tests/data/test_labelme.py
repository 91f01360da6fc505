import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled import boxes_of, check_round_trip, classes_of, make_split, objects, turned_split
from PIL import Image

from glip_adapt.data.formats import labelme


def shape(label, points, kind="rectangle", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def put(folder, name, shapes=(), size=(40, 30), **changes):
    """Write a picture and its LabelMe file; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / name)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
    content |= {"imageHeight": size[1], "imageWidth": size[0]} | changes
    path = (folder / name).with_suffix(".json")
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def only_box(folder, *args, **more):
    put(folder, "a.png", [shape("x", *args, **more)])
    ((_, box),) = boxes_of(labelme.read(folder)["train"])["a.png"]
    return box


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("rectangle", [[3, 4], [13, 24]], [3, 4, 10, 20]),
        ("rectangle", [[13, 4.5], [3, 24]], [3, 4.5, 10, 19.5]),
        ("rectangle", [[3, 4], [13, 4], [13, 24], [3, 24]], [3, 4, 10, 20]),
        ("polygon", [[5, 1], [9, 7], [2, 3.5]], [2, 1, 7, 6]),
        (None, [[5, 1], [9, 7], [2, 3.5]], [2, 1, 7, 6]),
        ("circle", [[20, 15], [23, 19]], [15, 10, 10, 10]),
        ("mask", [[3, 4], [12, 23]], [3, 4, 10, 20]),  # first and last pixels
        ("oriented_rectangle", [[10, 5], [15, 10], [10, 15], [5, 10]], [5, 5, 10, 10]),
        ("rotation", [[10, 5], [15, 10], [10, 15], [5, 10]], [5, 5, 10, 10]),
    ],
)
def test_a_shape_becomes_the_box_around_it(tmp_path, kind, points, box):
    assert only_box(tmp_path, points, kind) == box


@given(
    corners=st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4),
    turn=st.floats(0, 2 * math.pi),
    radius=st.floats(0, 100),
)
def test_a_box_is_the_same_for_any_order_of_corners_and_any_point_on_the_rim(corners, turn, radius):
    x1, y1, x2, y2 = corners
    orders = [[[x1, y1], [x2, y2]], [[x2, y2], [x1, y1]], [[x1, y2], [x2, y1]], [[x2, y1], [x1, y2]]]
    assert len({labelme._parse(shape("x", points))[2] for points in orders}) == 1
    rim = [x1 + radius * math.cos(turn), y1 + radius * math.sin(turn)]
    edges = labelme._parse(shape("x", [[x1, y1], rim], "circle"))[2]
    assert edges == pytest.approx((x1 - radius, y1 - radius, x1 + radius, y1 + radius), abs=1e-6)


@pytest.mark.parametrize("kind", ["point", "line", "linestrip", "points", "cuboid"])
def test_what_has_no_area_is_left_out_and_told(tmp_path, kind):
    put(tmp_path, "a.png", [shape("nose", [[3, 4], [5, 6]], kind), shape("dog", [[1, 1], [9, 9]])])
    document = labelme.read(tmp_path)["train"]
    assert boxes_of(document) == {"a.png": [("dog", [1, 1, 8, 8])]}
    assert document.findings == (
        ("annotation without a box", f"a.json, shapes[0]: a {kind} of 2 points called 'nose'"),
    )


def test_a_polygon_of_two_points_has_no_box(tmp_path):
    put(tmp_path, "a.png", [shape("x", [[1, 1], [5, 5]], "polygon")])
    assert labelme.read(tmp_path)["train"].findings[0][0] == "annotation without a box"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": ""}, "the label is ''"),
        ({"label": 7}, "the label is 7"),
        ({"points": None}, r"no list of \[x, y\]"),
        ({"points": [[1, 2, 3], [4, 5, 6]]}, r"no list of \[x, y\]"),
        ({"points": [[1, 2], [3, "much"]]}, "'much' is no finite number"),
        ({"points": [[1, 2], [3, math.inf]]}, "inf is no finite number"),
        ({"points": [[1, 2], [3, 10**400]]}, "is no finite number"),
        ({"points": [[1, 2], [3, True]]}, "True is no finite number"),
    ],
)
def test_a_damaged_shape_is_told_and_leaves_the_others(tmp_path, changes, reason):
    put(tmp_path, "a.png", [shape("dog", [[1, 1], [9, 9]]), shape("cat", [[1, 1], [9, 9]]) | changes])
    document = labelme.read(tmp_path)["train"]
    assert boxes_of(document) == {"a.png": [("dog", [1, 1, 8, 8])]}
    ((kind, example),) = document.findings
    assert kind == "malformed label"
    with pytest.raises(AssertionError, match=r"^a.json, shapes\[1\]: .*" + reason):
        raise AssertionError(example)


def test_regions_to_ignore_are_no_objects(tmp_path):
    put(tmp_path, "a.png", [shape("__ignore__", [[1, 1], [5, 5]]), shape("dog", [[1, 1], [9, 9]])])
    document = labelme.read(tmp_path)["train"]
    assert (boxes_of(document), classes_of(document)) == ({"a.png": [("dog", [1, 1, 8, 8])]}, ["dog"])
    assert document.findings == (("region to ignore", "a.json, shapes[0]: __ignore__"),)


@pytest.mark.parametrize("shapes", [3, None])
def test_a_shape_that_is_none_is_told(tmp_path, shapes):
    put(tmp_path, "a.png", [shapes])
    document = labelme.read(tmp_path)["train"]
    assert boxes_of(document) == {"a.png": []}
    assert document.findings == (("malformed label", f"a.json, shapes[0]: {shapes} is no object"),)


@pytest.mark.parametrize("shapes", [None, {}, "none"])
def test_a_file_whose_shapes_are_no_list_is_damaged(tmp_path, shapes):
    put(tmp_path, "a.png", shapes)
    document = labelme.read(tmp_path)["train"]
    assert boxes_of(document) == {}
    assert document.findings[0] == ("malformed label file", f"a.json: shapes is {shapes!r}, no list")


def test_parts_of_one_group_and_label_are_one_object(tmp_path):
    left, right = [[1, 1], [5, 1], [5, 9]], [[20, 3], [30, 3], [30, 12]]
    put(
        tmp_path,
        "a.png",
        [
            shape("dog", left, "polygon", group_id=1),
            shape("cat", left, "polygon", group_id=1),
            shape("dog", right, "polygon", group_id=1),
            shape("dog", right, "polygon", group_id=2),
            shape("dog", [[1, 1], [2, 2]], group_id=1),
            shape("dog", [[3, 3], [4, 4]], group_id=1),
        ],
    )
    assert boxes_of(labelme.read(tmp_path)["train"])["a.png"] == [
        ("dog", [1, 1, 29, 11]),
        ("cat", [1, 1, 4, 8]),
        ("dog", [20, 3, 10, 9]),
        ("dog", [1, 1, 1, 1]),
        ("dog", [3, 3, 1, 1]),
    ]


def test_splits_are_folders_at_any_depth(tmp_path):
    for place, name in (("annotations/training", "a"), ("annotations/valid", "b"), ("test", "c"), ("test/more", "d")):
        put(tmp_path / place, f"{name}.png", [shape(name, [[1, 1], [9, 9]])])
    found = labelme.read(tmp_path)
    assert {name: list(boxes_of(document)) for name, document in found.items()} == {
        "train": ["annotations/training/a.png"],
        "val": ["annotations/valid/b.png"],
        "test": ["test/c.png", "test/more/d.png"],
    }
    names = [classes_of(document) for document in found.values()]
    assert names == [["a", "b", "c", "d"]] * 3


def test_the_folders_of_images_tell_splits_if_those_of_labels_do_not(tmp_path):
    for place in ("train", "test"):
        file = put(tmp_path / "labels", f"{place}.png", imagePath=f"../images/{place}/a.png").with_suffix(".png")
        (tmp_path / "images" / place).mkdir(parents=True)
        file.rename(tmp_path / "images" / place / "a.png")
    found = labelme.read(tmp_path)
    assert {name: list(boxes_of(document)) for name, document in found.items()} == {
        "train": ["images/train/a.png"],
        "test": ["images/test/a.png"],
    }


def test_a_file_name_or_the_folder_itself_is_no_split(tmp_path):
    put(tmp_path / "test", "val_train.png")
    assert list(labelme.read(tmp_path / "test")) == ["train"]


@pytest.mark.parametrize(
    ("image", "stated"),
    [
        ("images/a.png", r"..\images\a.png"),
        ("images/A.PNG", "/home/somebody/pictures/a.png"),
        ("labels/b.JPG", "long_ago.jpg"),  # both renamed
        ("labels/b.png", None),
    ],
)
def test_the_image_is_found_by_the_name_in_the_file(tmp_path, image, stated):
    put(tmp_path / "labels", "b.bmp", [shape("x", [[1, 1], [9, 9]])], imagePath=stated)
    (tmp_path / "labels" / "b.bmp").unlink()
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(tmp_path / image)
    document = labelme.read(tmp_path)["train"]
    assert list(boxes_of(document)) == [image]
    assert document.findings == ()


def test_labels_txt_fixes_the_order_of_classes(tmp_path):
    put(tmp_path, "a.png", [shape("ant ", [[1, 1], [9, 9]])])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncat\nant\n")
    assert classes_of(labelme.read(tmp_path)["train"]) == ["cat", "ant"]
    (tmp_path / "classes.txt").write_text("ant\n")
    assert classes_of(labelme.read(tmp_path)["train"]) == ["ant"]


@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, (30, 40)), ({"imageHeight": None}, None), ({"imageWidth": 0}, None), ({"imageWidth": "40"}, None)],
)
def test_the_size_is_stated_if_the_file_states_a_sound_one(tmp_path, changes, size):
    put(tmp_path, "a.png", **changes)
    (entry,) = labelme.read(tmp_path)["train"].document["images"]
    assert (entry.get("height"), entry.get("width")) == (size or (None, None))


# Recognition and damage ----------------------------------------------------------------------------------------------


def test_a_folder_is_recognised_at_any_depth_and_with_damage(tmp_path):
    assert not labelme.recognises(tmp_path)
    assert not labelme.recognises(tmp_path / "absent")
    (tmp_path / "boxes.json").write_text('{"images": [], "annotations": [], "categories": [{"name": "shapes"}]}')
    (tmp_path / "list.json").write_text('["shapes"]')
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    assert not labelme.recognises(tmp_path)
    file = put(tmp_path / "some" / "train", "a.png", [shape("x", [[1, 1], [2, 2]])])
    assert labelme.recognises(tmp_path)
    file.write_text(file.read_text()[:-20])
    assert labelme.recognises(tmp_path)


def test_a_file_that_is_no_json_is_told_with_its_name(tmp_path):
    file = put(tmp_path / "test", "a.png")
    file.write_text(file.read_text()[:-20])
    ((kind, example),) = labelme.read(tmp_path)["test"].findings[:1]
    assert kind == "malformed label file"
    assert example.startswith("test/a.json: Expecting")
    put(tmp_path / "train", "b.png")
    found = labelme.read(tmp_path)
    assert list(found) == ["train"]
    assert found["train"].findings[0] == (kind, example)


def test_a_file_of_endless_depth_is_told(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.json").write_text('{"shapes":' + "[" * 100_000)
    assert labelme.recognises(tmp_path)
    kind, example = labelme.read(tmp_path)["train"].findings[0]
    assert (kind, "recursion" in example) == ("malformed label file", True)


def test_other_json_files_are_passed_over_but_one_must_be_of_labelme(tmp_path):
    (tmp_path / "settings.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="no label file speaks of an image"):
        labelme.read(tmp_path)
    put(tmp_path, "a.png")
    assert len(labelme.read(tmp_path)["train"].document["images"]) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.png"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["label", "points", "shape_type", "group_id", "shapes"]), inner)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(shapes=JSON | st.lists(JSON, max_size=3), stated=JSON, height=JSON)
def test_no_content_breaks_the_reader(tmp_path, shapes, stated, height):
    put(tmp_path, "a.png", shapes, imagePath=stated, imageHeight=height)
    assert labelme.recognises(tmp_path)
    document = labelme.read(tmp_path)["train"]
    assert [kind for kind, _ in document.findings] or boxes_of(document)


# Writing -------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(train=st.lists(objects, min_size=1, max_size=3), test=objects)
def test_what_is_written_is_read_again(tmp_path_factory, train, test):
    check_round_trip(labelme, tmp_path_factory.mktemp("round"), {"train": train, "test": [test]})


def test_a_written_file_is_one_that_labelme_opens(tmp_path):
    split = make_split(tmp_path / "from", [[("owl", (1.5, 2, 10, 20))]])
    (tmp_path / "to").mkdir()
    labelme.write({"val": split}, tmp_path / "to")
    content = json.loads((tmp_path / "to" / "val" / "1.json").read_text())
    assert {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} == content.keys()
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("1.png", 30, 40)
    assert content["shapes"] == [
        {"label": "owl", "points": [[1.5, 2], [11.5, 22]], "shape_type": "rectangle", "flags": {}}
    ]


def test_images_of_one_stem_keep_their_own_files(tmp_path):
    split = make_split(tmp_path / "from", [[("owl", (1, 2, 3, 4))], [("ant", (5, 6, 7, 8))]])
    (tmp_path / "from" / "other").mkdir()
    twin = tmp_path / "from" / "other" / "1.jpg"
    Image.new("RGB", (40, 30)).save(twin)
    first, second = split.records
    split = replace(split, records=(first, replace(second, path=twin)))
    (tmp_path / "to").mkdir()
    labelme.write({"train": split}, tmp_path / "to")
    found = boxes_of(labelme.read(tmp_path / "to")["train"])
    assert {box for boxes in found.values() for _, box in [(c, tuple(b)) for c, b in boxes]} == {
        (1, 2, 3, 4),
        (5, 6, 7, 8),
    }
    assert len(found) == 2


def test_pixels_are_those_that_the_boxes_were_drawn_on(tmp_path):
    (tmp_path / "to").mkdir()
    labelme.write({"train": turned_split(tmp_path / "from")}, tmp_path / "to")
    (entry,) = labelme.read(tmp_path / "to")["train"].document["images"]
    with Image.open(tmp_path / "to" / entry["file_name"]) as image:
        assert image.size == (40, 30)
        assert image.getexif().get(274, 1) == 1
    assert (entry["height"], entry["width"]) == (30, 40)
