import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled import boxes_of, classes_of

from glip_adapt.data.documents import SPLIT_ALIASES, Draft, LabelledImage
from glip_adapt.data.label_files import (
    ImageIndex,
    documents_of,
    files_below,
    named_split,
    one_file_per_split,
    read_json,
    read_text,
    split_of,
    to_number,
)


def put(folder, *names):
    """Make empty files; return their paths."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def below(folder, suffix=".json"):
    return [path.relative_to(folder).as_posix() for path in files_below(folder, suffix)]


def test_files_are_found_at_any_depth_but_not_hidden_ones(tmp_path):
    put(tmp_path, "b.json", "a/deep/c.JSON", "a.txt", ".hidden/d.json", "a/._b.json", "a/json")
    assert below(tmp_path) == ["a/deep/c.JSON", "b.json"]
    assert below(tmp_path / "absent") == []


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    put(tmp_path, "apart/a.json", "data/b.json")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "apart")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert below(tmp_path / "data") == ["b.json", "linked/a.json"]


# Splits --------------------------------------------------------------------------------------------------------------

ALIASES = {alias: name for name, aliases in SPLIT_ALIASES.items() for alias in aliases}
OTHER_NAMES = st.sampled_from(["images", "labels", "2017", "attest", "trainer", "Tests", "evaluation"])


@given(before=st.lists(OTHER_NAMES), after=st.lists(OTHER_NAMES), alias=st.sampled_from([*ALIASES]), name=OTHER_NAMES)
def test_a_folder_at_any_depth_names_the_split(tmp_path_factory, before, after, alias, name):
    folder = tmp_path_factory.getbasetemp() / "test"  # names above the dataset do not count
    path = folder.joinpath(*before, alias, *after, f"{name}.json")
    assert named_split(path, folder) == split_of(path, folder) == ALIASES[alias]
    bare = folder.joinpath(*before, *after, f"{name}.json")
    assert (named_split(bare, folder), split_of(bare, folder)) == (None, "train")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("Test_labels.csv", "test"),
        ("boxes-validation (2).csv", "val"),
        ("train2017.csv", "train"),
        ("trainer.csv", None),
        ("val/train.csv", "val"),
        ("boxes.test", None),
    ],
)
def test_a_word_in_the_name_of_a_file_names_the_split_if_it_may(tmp_path, name, split):
    assert named_split(tmp_path / name, tmp_path, by_file_name=True) == split
    assert named_split(tmp_path / name, tmp_path) == ("val" if name.startswith("val/") else None)


def test_a_file_outside_of_the_folder_names_no_split(tmp_path):
    assert named_split(tmp_path / "train" / "a.json", tmp_path / "data") is None


def test_each_split_has_one_file(tmp_path):
    files = [tmp_path / name for name in ("boxes.csv", "test.csv", "valid/a.csv")]
    assert list(one_file_per_split(files, tmp_path).values()) == [None, "test", "val"]
    for extra in ("train.csv", "other.csv"):
        with pytest.raises(ValueError, match=rf"boxes\.csv and .*{extra} are both of the split train\. .* val\.csv"):
            one_file_per_split([*files, tmp_path / extra], tmp_path)


# Content -------------------------------------------------------------------------------------------------------------


@given(number=st.floats(-1e30, 1e30))
def test_numbers_are_read_as_such_and_as_text(number):
    assert to_number(number) == to_number(str(number)) == to_number(f" {number!r} ") == number


@pytest.mark.parametrize(
    "value", [None, True, "", "1,5", "much", [1], {}, math.nan, math.inf, "inf", 1e39, 10**400, "9" * 400]
)
def test_what_is_no_finite_number_is_an_error(value):
    with pytest.raises(ValueError, match="no finite number"):
        to_number(value)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe", "UTF-8"), (b"a\xe4", "byte 1 is not UTF-8"), (None, "No such file")]
)
def test_a_text_that_cannot_be_read_says_why(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_text(tmp_path / "a.txt")


@given(content=st.binary(max_size=20) | st.just(b"[" * 100_000))
def test_any_bytes_are_json_or_an_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        json.dumps(read_json(path))


# Images --------------------------------------------------------------------------------------------------------------


def found(folder, name, near="labels", split="train"):
    return ImageIndex(folder).find(name, folder / near, split).relative_to(folder).as_posix()


@pytest.mark.parametrize(
    ("image", "stated"),
    [
        ("images/a.png", "../images/a.png"),
        ("images/a.png", r"..\images\a.png"),
        ("labels/a.png", "a.png"),
        ("images/A.PNG", "/home/somebody/pictures/a.png"),
        ("images/deep/a.png", r"C:\pictures\a.png"),
        ("images/a.b.png", "a.b"),
        ("images/ä ß.png", "ä ß.png"),
    ],
)
def test_an_image_is_found_by_path_or_name(tmp_path, image, stated):
    put(tmp_path, image, "labels/x.json", "images/b.png")
    assert found(tmp_path, stated) == image


@pytest.mark.parametrize(("name", "place"), [("a.png", "labels/a.png"), ("x/a.png", "labels/x/a.png"), ("", "labels")])
def test_a_missing_image_is_where_it_should_be(tmp_path, name, place):
    put(tmp_path, "labels/x.json")
    assert found(tmp_path, name) == place


def test_no_name_breaks_the_search(tmp_path):
    put(tmp_path, "labels/x.json", "images/a.png")
    for name in ("\0", "a" * 10_000, "/", "..", "~", "\ud800", "//a.png\0"):
        ImageIndex(tmp_path).find(name, tmp_path / "labels", "train")


def test_of_images_with_one_name_the_nearest_path_is_meant_then_the_split_then_the_case(tmp_path):
    put(tmp_path, "train/x/a.png", "train/y/a.png", "test/x/a.png", "test/x/A.png")
    assert found(tmp_path, "elsewhere/y/a.png", split="test") == "train/y/a.png"
    assert found(tmp_path, "x/a.png", split="train") == "train/x/a.png"
    assert found(tmp_path, "x/A.png", split="test") == "test/x/A.png"
    assert found(tmp_path, "a.png", split="test") == "test/x/a.png"
    with pytest.raises(ValueError, match=r"'a\.png'.*may be .*[xy]/a\.png or .*[xy]/a\.png\. Write the path"):
        found(tmp_path, "a.png", split="train")


# Documents -----------------------------------------------------------------------------------------------------------


def draft(folder, *names, label="dog", findings=()):
    images = [LabelledImage(folder / name, ((label, (1, 2, 3, 4)),)) for name in names]
    return Draft(folder, images, list(findings))


def test_splits_come_in_their_order_with_images_that_no_label_file_speaks_of(tmp_path):
    put(tmp_path, "a.png", "test/b.png", "test/new.png", "val/new.png", "new.png", ".hidden.png")
    drafts = {"test": draft(tmp_path, "test/b.png", label="cat"), "train": draft(tmp_path, "a.png")}
    documents = documents_of(drafts, ImageIndex(tmp_path))
    assert list(documents) == ["train", "test"]
    assert [classes_of(split) for split in documents.values()] == [["cat", "dog"]] * 2
    assert boxes_of(documents["test"]) == {"test/b.png": [("cat", [1, 2, 3, 4])]}
    told = {name: [example for _, example in split.findings] for name, split in documents.items()}
    assert told == {"train": ["new.png", "val/new.png"], "test": ["test/new.png"]}


def test_a_split_without_images_is_left_out_and_its_findings_are_told(tmp_path):
    finding = ("malformed label file", "val/a.json: cut off")
    drafts = {"val": draft(tmp_path, findings=[finding]), "train": draft(tmp_path, "a.png")}
    documents = documents_of(drafts, ImageIndex(tmp_path))
    assert {name: split.findings for name, split in documents.items()} == {"train": (finding,)}
    del drafts["train"]
    assert documents_of(drafts, ImageIndex(tmp_path))["val"].findings == (finding,)
    with pytest.raises(ValueError, match="no label file speaks of an image"):
        documents_of({"train": draft(tmp_path)}, ImageIndex(tmp_path))


@pytest.mark.parametrize(
    "lines", ["__ignore__\n_background_\ncat\ndog\nowl\n", "\ufeffcat\r\ndog \r\n\r\nowl\r\n", "cat\ndog\nowl"]
)
def test_a_list_of_classes_fixes_their_order_and_keeps_unused_ones(tmp_path, lines):
    (tmp_path / "labels.txt").write_text(lines, encoding="utf-8", newline="")
    drafts = {"train": draft(tmp_path, "a.png"), "test": draft(tmp_path, "b.png", label="ant")}
    split = documents_of(drafts, ImageIndex(tmp_path), ("classes.txt", "labels.txt"))["train"]
    assert classes_of(split) == ["cat", "dog", "owl", "ant"]
    assert split.findings == (("unlisted class", "'ant' is not in labels.txt"),)
    assert classes_of(documents_of(drafts, ImageIndex(tmp_path))["test"]) == ["ant", "dog"]


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("IMG 1 (2).jpg", "IMG_1__2_.jpg"),  # as an upload renames it
        ("Scho\u0308n.png", "sch\u00f6n.PNG"),  # as macOS stores it
    ],
)
def test_images_are_found_by_names_that_uploads_and_file_systems_change(tmp_path, stored, named):
    (path,) = put(tmp_path, f"images/{stored}")
    assert ImageIndex(tmp_path).find(named, tmp_path, "train") == path


def test_the_exact_name_comes_first(tmp_path):
    _, exact = put(tmp_path, "a/x y.jpg", "b/x_y.jpg")
    assert ImageIndex(tmp_path).find("x_y.jpg", tmp_path, "train") == exact
