import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled import boxes_of, check_round_trip, classes_of, make_split, objects, turned_split
from PIL import Image

from glip_adapt.data.formats import image_folder


def put(folder, *rows, images=()):
    """Write ``metadata.jsonl`` with these rows, and pictures of 40 × 30 pixels; by default those that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in images or [row["file_name"] for row in rows]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def row(name="a.png", boxes=((1, 2, 3, 4),), categories=("dog",)):
    return {"file_name": name, "objects": {"bbox": list(boxes), "categories": list(categories)}}


def read(folder, *rows, **options):
    """Return the only split of a folder with these rows."""
    put(folder, *rows, **options)
    (split,) = image_folder.read(folder).values()
    return split


@pytest.mark.parametrize("column", ["categories", "category", "labels", "label"])
def test_boxes_are_left_top_width_height_in_pixels(tmp_path, column):
    stated = {"bbox": [[1, 2.5, 3, 4], [5, 6, 7, 8]], column: ["dog", " cat "], "area": [12, 56], "id": [0, 1]}
    split = read(tmp_path, {"file_name": "a.png", "width": 40, "height": 30, "objects": stated})
    assert boxes_of(split) == {"a.png": [("dog", [1, 2.5, 3, 4]), ("cat", [5, 6, 7, 8])]}
    assert split.findings == ()


def test_objects_may_be_a_list(tmp_path):
    stated = [{"bbox": [1, 2, 3, 4], "category": "dog"}, {"bbox": [5, 6, 7, 8], "label": "cat"}]
    split = read(tmp_path, {"file_name": "a.png", "objects": stated}, {"file_name": "b.png", "objects": []})
    assert boxes_of(split) == {"a.png": [("dog", [1, 2, 3, 4]), ("cat", [5, 6, 7, 8])], "b.png": []}


def test_numbers_are_named_by_classes_txt(tmp_path):
    stated = row(boxes=[[1, 2, 3, 4]] * 3, categories=[1, 0, "ant"])
    with pytest.raises(
        ValueError, match=r"metadata\.jsonl, line 1: category 1 is a number\. .*classes\.txt, one a line"
    ):
        read(tmp_path, stated)
    (tmp_path / "classes.txt").write_text("owl\ndog\nant\n")
    split = read(tmp_path, stated)
    assert [name for name, _ in boxes_of(split)["a.png"]] == ["dog", "owl", "ant"]
    assert classes_of(split) == ["owl", "dog", "ant"]


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_without_a_name_is_an_unknown_category(tmp_path, number):
    (tmp_path / "classes.txt").write_text("owl\ndog\n")
    split = read(tmp_path, row(boxes=[[1, 2, 3, 4]] * 2, categories=[0, number]))
    assert boxes_of(split) == {"a.png": [("owl", [1, 2, 3, 4])]}
    example = f"metadata.jsonl, line 1, object 1: category {number}, but there are 2 names"
    assert split.findings == (("unknown category", example),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"categories": ["dog", None]}, "the category is None"),
        ({"categories": ["dog", ""]}, "the category is ''"),
        ({"categories": ["dog", True]}, "the category is True"),
        ({"bbox": [[1, 2, 3, 4], [1, 2, 3]]}, "the bbox is [1, 2, 3], not [x, y, width, height]"),
        ({"bbox": [[1, 2, 3, 4], None]}, "the bbox is None, not [x, y, width, height]"),
        ({"bbox": [[1, 2, 3, 4], [1, 2, 3, "wide"]]}, "'wide' is no finite number"),
        ({"bbox": [[1, 2, 3, 4], [1, 2, 3, float("nan")]]}, "nan is no finite number"),
    ],
)
def test_a_damaged_object_is_told_and_leaves_the_others(tmp_path, changes, reason):
    stated = {"bbox": [[1, 2, 3, 4]] * 2, "categories": ["dog", "cat"]} | changes
    split = read(tmp_path, {"file_name": "a.png", "objects": stated})
    assert boxes_of(split) == {"a.png": [("dog", [1, 2, 3, 4])]}
    assert split.findings == (("malformed label", f"metadata.jsonl, line 1, object 1: {reason}"),)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": "b.png", "obj', "Unterminated string"),
        ('{"objects": []}', "has no file_name"),
        ('{"file_name": " ", "objects": []}', "has no file_name"),
        ("[3]", "has no file_name"),
        pytest.param("[" * 100_000, "recursion", id="deep"),
        ('{"file_name": "b.png", "objects": 3}', "expected objects with bbox and categories"),
        ('{"file_name": "b.png", "objects": [3]}', "expected objects with bbox and categories"),
        ('{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": []}}', "of one length"),
        ('{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3, 4]]}}', "of one length"),
    ],
)
def test_a_damaged_line_is_told_with_its_number_and_its_image_is_in_no_split(tmp_path, line, reason):
    split = read(tmp_path, row(), "", line, images=["a.png", "b.png"])
    assert list(boxes_of(split)) == ["a.png"]
    (kind, example), note = split.findings
    assert kind == "malformed label"
    assert example.startswith("metadata.jsonl, line 3: ")
    assert reason in example
    assert note == ("image without a label file", "b.png")


def test_a_line_without_objects_leaves_its_image_unlabelled(tmp_path):
    split = read(tmp_path, row(), {"file_name": "b.png", "text": "a dog"}, {"file_name": "c.png", "objects": None})
    assert list(boxes_of(split)) == ["a.png"]
    assert split.findings == (("image without a label file", "b.png"), ("image without a label file", "c.png"))


@pytest.mark.parametrize("base", ["", "data"])
def test_splits_are_folders_with_their_own_file(tmp_path, base):
    for place, name in (("train", "a"), ("validation", "b"), ("test", "c")):
        put(tmp_path / base / place, row(f"more/{name}.png", categories=[name]))
    found = image_folder.read(tmp_path)
    prefix = f"{base}/" if base else ""
    assert {name: list(boxes_of(split)) for name, split in found.items()} == {
        "train": [f"{prefix}train/more/a.png"],
        "val": [f"{prefix}validation/more/b.png"],
        "test": [f"{prefix}test/more/c.png"],
    }
    assert [classes_of(split) for split in found.values()] == [["a", "b", "c"]] * 3


def test_one_file_may_name_images_in_the_folders_of_splits(tmp_path):
    put(tmp_path, row("train/a.png"), row("test/a.png"), row("test/absent.png"), row("other/a.png"))
    (tmp_path / "test" / "absent.png").unlink()
    found = image_folder.read(tmp_path)
    assert {name: list(boxes_of(split)) for name, split in found.items()} == {
        "train": ["train/a.png", "other/a.png"],
        "test": ["test/a.png", "test/absent.png"],
    }


def test_no_size_is_stated_so_that_boxes_lie_on_the_upright_image(tmp_path):
    (entry,) = read(tmp_path, row()).document["images"]
    assert entry == {"id": 1, "file_name": "a.png"}


# Recognition and damage ----------------------------------------------------------------------------------------------


def test_a_folder_is_recognised_by_a_column_of_objects(tmp_path):
    assert not image_folder.recognises(tmp_path)
    put(tmp_path / "train", {"file_name": "a.png", "text": "all objects"})
    put(tmp_path / "test", images=["b.png"])
    assert not image_folder.recognises(tmp_path)
    put(tmp_path / "deep" / "data", row())
    assert image_folder.recognises(tmp_path)
    (tmp_path / "deep" / "data" / "metadata.jsonl").rename(tmp_path / "deep" / "data" / "other_metadata.jsonl")
    assert not image_folder.recognises(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "objects": {"bbox"')
    assert image_folder.recognises(tmp_path)


def test_a_file_that_is_no_text_is_told_with_its_name(tmp_path):
    put(tmp_path, row())
    (tmp_path / "metadata.jsonl").write_bytes(json.dumps(row()).encode() + b"\xff")
    assert image_folder.recognises(tmp_path)
    (split,) = image_folder.read(tmp_path).values()
    length = len(json.dumps(row()))
    assert split.findings[0] == ("malformed label file", f"metadata.jsonl: byte {length} is not UTF-8")


def test_without_any_objects_one_clear_error(tmp_path):
    put(tmp_path, {"file_name": "a.png", "objects": None})
    with pytest.raises(ValueError, match="no label file speaks of an image"):
        image_folder.read(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1, 2, 3, 4]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bbox", "categories", "label", "objects", "file_name"]), inner)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(line=st.text(st.characters(exclude_categories=["Cs"])) | JSON.map(json.dumps), stated=JSON)
def test_no_content_breaks_the_reader(tmp_path, line, stated):
    (tmp_path / "classes.txt").write_text("owl\ndog\n")
    split = read(tmp_path, row(), line, {"file_name": "b.png", "objects": stated}, images=["a.png", "b.png"])
    assert boxes_of(split)["a.png"] == [("dog", [1, 2, 3, 4])]


# Writing -------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(train=st.lists(objects, min_size=1, max_size=3), test=objects)
def test_what_is_written_is_read_again(tmp_path_factory, train, test):
    check_round_trip(image_folder, tmp_path_factory.mktemp("round"), {"train": train, "test": [test]})


def test_a_written_file_is_one_of_hugging_face(tmp_path):
    split = make_split(tmp_path / "from", [[("owl", (4, 3, 10, 15))], []])
    (tmp_path / "to").mkdir()
    image_folder.write({"val": split}, tmp_path / "to")
    lines = (tmp_path / "to" / "val" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file_name": "1.png", "objects": {"bbox": [[4, 3, 10, 15]], "categories": ["owl"]}},
        {"file_name": "2.png", "objects": {"bbox": [], "categories": []}},
    ]


def test_pixels_are_those_that_the_boxes_were_drawn_on(tmp_path):
    (tmp_path / "to").mkdir()
    image_folder.write({"train": turned_split(tmp_path / "from")}, tmp_path / "to")
    (file,) = boxes_of(image_folder.read(tmp_path / "to")["train"])
    with Image.open(tmp_path / "to" / file) as image:
        assert image.size == (40, 30)
        assert image.getexif().get(274, 1) == 1
