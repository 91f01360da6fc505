import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_coco import CATEGORIES, annotation, image_entry, load, write

from glip_adapt.data.check import Defect, check_folder, check_split
from glip_adapt.data.documents import Draft, LabelledImage, build_documents
from glip_adapt.data.formats.coco import build_split
from glip_adapt.data.scan import list_defects

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def kinds(path):
    return {defect.kind for defect in check_split(path, path.parent)}


BROKEN = {
    "NaN or infinite box": {"annotations": [annotation(1, 1, 3, [1, math.nan, 5, 5])]},
    "unknown category": {"annotations": [annotation(1, 1, 4, [1, 1, 5, 5])]},
    "unknown image id": {"annotations": [annotation(1, 2, 3, [1, 1, 5, 5])]},
    "duplicate image id": {"images": [image_entry(1), image_entry(1, file_name="other.png")]},
    "duplicate category id": {"categories": [*CATEGORIES, {"id": 3, "name": "again"}]},
    "empty split": {"images": []},
    "malformed JSON": {"annotations": {}},
    "malformed entry": {"annotations": [annotation(1, 1, 3, [1, 1, 5])]},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_defect_that_leaves_the_meaning_open_stops_loading_and_is_listed(tmp_path, kind):
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | BROKEN[kind]))
    (tmp_path / "other.png").write_bytes((tmp_path / "1.png").read_bytes())
    with pytest.raises(ValueError, match=rf"{kind}.*Expected.*glip-adapt data check"):
        load(path)
    assert kinds(path) == {kind}


@pytest.mark.parametrize("size", [-math.inf, math.inf, math.nan, 10**400])
def test_no_odd_number_passes_as_a_box(tmp_path, size):
    with pytest.raises(ValueError, match="box"):
        load(write(tmp_path, annotations=[annotation(1, 1, 3, [1, 1, 5, size])]))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_missing_list_is_malformed(tmp_path, key):
    path = write(tmp_path)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(ValueError, match=f"{key}.* is missing"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfa", b"null", b"[]", b"3", b"[" * 100_000])
def test_what_is_not_a_json_object_is_malformed(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="malformed JSON"):
        load(path)
    assert kinds(path) == {"malformed JSON"}


def test_a_missing_annotation_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*glip-adapt data fetch"):
        load(tmp_path / "none.json")
    assert kinds(tmp_path / "none.json") == {"missing annotation file"}


def test_a_missing_image_says_so_unless_images_are_not_needed(tmp_path):
    path = write(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing image file: .*1\.png"):
        load(path)
    assert kinds(path) == {"missing image file"}
    assert len(load(path, require_images=False)) == 1


def test_check_lists_every_defect_with_counts_and_five_examples(tmp_path):
    images = [image_entry(n) for n in range(1, 5)]
    images += [image_entry(5, file_name="1.png"), image_entry(6, width=50), image_entry(7, height="tall")]
    boxes = [annotation(n, 1, 3, [35, 0, 10, 5]) for n in range(10, 18)]
    boxes += [annotation(10, 1, 3, [0, 0, 5, 5]), annotation(20, 1, 99, [0, 0, 5, math.inf]), "no annotation"]
    path = write(tmp_path, images, boxes)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "3.png").unlink()
    defects = {defect.kind: defect for defect in check_split(path, tmp_path)}
    assert {kind: defect.count for kind, defect in defects.items()} == {
        "malformed entry": 2,
        "duplicate file name": 1,
        "missing image file": 1,
        "box outside the image": 8,
        "doubled box": 7,
        "duplicate annotation id": 1,
        "unknown category": 1,
        "NaN or infinite box": 1,
        "unreadable image": 1,
        "declared size differs from real size": 1,
    }
    assert len(defects["box outside the image"].examples) == 5
    assert defects["declared size differs from real size"] == Defect(
        "declared size differs from real size", 1, ("6.png: declared (height, width) (30, 50), stored (30, 40)",)
    )


DOUBTFUL = {
    "zero or negative box size": {
        "annotations": [annotation(1, 1, 3, [1, 1, 0, 5]), annotation(2, 1, 3, [9, 9, 4, -2])]
    },
    "annotation without a box": {"annotations": [annotation(1, 1, 3, []), annotation(2, 1, 3, None)]},
    "odd area": {
        "annotations": [annotation(1, 1, 3, [1, 1, 5, 5], area=-3), annotation(2, 1, 3, [9, 9, 5, 5], area="")]
    },
    "odd iscrowd": {"annotations": [annotation(1, 1, 3, [1, 1, 5, 5], iscrowd="no")]},
    "doubled box": {"annotations": [annotation(n, 1, 3, [1, 1, 5, 5]) for n in (1, 2)]},
    "root category without boxes": {
        "categories": [
            {"id": 0, "name": "dice"},
            *({"id": n, "name": f"n{n}", "supercategory": "dice"} for n in (1, 2)),
        ]
    },
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_changes_a_result_is_one_warning_and_is_listed(tmp_path, caplog, kind):
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | DOUBTFUL[kind]))
    load(path)
    assert [record.message.count(kind) for record in caplog.records] == [1]
    assert str(path) in caplog.text
    assert kinds(path) == {kind}


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("die (one)", "die (two)"), "classes with one wording"),
        (("Stop_Sign", "stop sign"), "classes with one wording"),
        (("dog", "dog"), "classes with one wording"),
        (("骰子", "dog"), "class name outside the vocabulary"),
        (("собака", "dog"), "class name outside the vocabulary"),
    ],
)
def test_names_that_a_detector_cannot_tell_apart_are_listed(tmp_path, names, kind):
    categories = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    assert kinds(write(tmp_path, categories=categories)) == {kind}


def test_names_with_accents_are_words_of_the_vocabulary(tmp_path):
    assert kinds(write(tmp_path, categories=[{"id": 1, "name": "café"}, {"id": 2, "name": "Naïve T-Rex 2"}])) == set()


def test_an_empty_name_is_one_defect_and_its_boxes_are_none(tmp_path):
    path = write(tmp_path, annotations=[annotation(1, 1, 3, [1, 1, 5, 5])], categories=[{"id": 3, "name": " "}])
    assert {defect.kind: defect.count for defect in check_split(path, tmp_path)} == {"malformed entry": 1}


@pytest.mark.parametrize(
    ("declared", "listed"), [((30, 40), "not applied"), ((40, 30), None), (None, "applied"), ((40, 40), "applied")]
)
def test_images_with_an_orientation_are_listed_unless_the_declared_size_is_upright(tmp_path, declared, listed):
    path = write(tmp_path, [image_entry(1, file_name="1.jpg")])
    size = (40, 40) if declared == (40, 40) else (40, 30)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", size).save(tmp_path / "1.jpg", exif=exif)
    document = json.loads(path.read_text())
    document["images"][0] |= {"height": declared and declared[0], "width": declared and declared[1]}
    path.write_text(json.dumps(document))
    examples = {defect.kind: defect.examples[0] for defect in check_split(path, tmp_path)}
    assert set(examples) == ({"EXIF orientation"} if listed else set())
    assert listed is None or f"1.jpg: 6, {listed}" in examples["EXIF orientation"]


def test_a_sound_split_has_no_defects(tmp_path):
    path = write(tmp_path, annotations=[annotation(1, 1, 3, [0, 0, 40, 30]), annotation(2, 1, 0, [0.5, 0, 0.2, 30])])
    assert check_split(path, tmp_path) == []


# What readers of other formats find ---------------------------------------------------------------------------------


def document(folder, *findings):
    """A split of one image as a reader of a format without sizes returns it."""
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    draft = Draft(folder / "labels", [LabelledImage(folder / "a.png", (("dog", (1, 1, 5, 5)),))], list(findings))
    return build_documents({"train": draft}, folder)["train"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("malformed label", "Such labels are left out"),
        ("missing split", "It is left out"),
        ("a new kind", "Look at it"),
    ],
)
def test_what_a_reader_leaves_out_is_one_warning(tmp_path, caplog, kind, said):
    split = document(tmp_path, (kind, "a.txt, line 3"), (kind, "b.txt"))
    assert len(build_split(split, "toy/train").records) == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / 'labels'}: {kind} (2 in all): a.txt, line 3. {said}."
    ]
    assert [(d.kind, d.count, d.is_note) for d in list_defects(split)] == [(kind, 2, False)]


def test_a_note_of_a_reader_is_listed_and_no_warning(tmp_path, caplog):
    split = document(tmp_path, ("image without a label file", "b.png"))
    build_split(split, "toy/train")
    assert caplog.text == ""
    (note,) = list_defects(split)
    assert (note.is_note, note.consequence[:18]) == (True, "It is in no split;")


def test_a_damaged_label_file_stops_and_names_the_folder_to_check(tmp_path):
    split = document(tmp_path, ("malformed label file", "a.xml: ends early"))
    with pytest.raises(ValueError, match=rf"labels: malformed label file: a\.xml: ends early.*check {tmp_path}`"):
        build_split(split, "toy/train")
    assert list_defects(split)[0].consequence == "The dataset cannot be loaded"


@pytest.mark.parametrize(("orientation", "is_note"), [(6, True), (3, True), (1, None)])
def test_what_states_no_size_is_labelled_upright_in_formats_without_sizes(tmp_path, orientation, is_note):
    split = document(tmp_path)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png", exif=exif)
    assert [d.is_note for d in list_defects(split)] == ([] if is_note is None else [is_note])
    sized = {**split.document, "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}]}
    expected = [] if is_note is None else ["EXIF orientation"]  # a size that contradicts it, or does not tell
    assert [d.kind for d in list_defects(replace(split, document=sized))] == expected


def test_a_folder_is_counted_even_if_it_cannot_be_loaded(tmp_path):
    boxes = [annotation(1, 1, 3, [1, 1, 5, 5]), annotation(2, 1, 99, [1, 1, 5, 5]), annotation(3, 2, 3, "what"), 5]
    write(tmp_path, [image_entry(1), image_entry(2), 7], boxes).rename(tmp_path / "train.json")
    (tmp_path / "3.png").touch()
    checked = check_folder(tmp_path)
    split = checked.splits["train"]
    assert (split.images, split.without_boxes, split.boxes) == (2, 1, {"zero": 0, "three": 1, "seven": 0})
    assert (checked.format, checked.known, checked.unlabelled) == ("coco", None, 1)
    assert {d.kind: d.count for d in split.defects} == {"malformed entry": 3, "unknown category": 1}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "1.png", "a\0b", "x" * 300, "../.."]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "image_id", "category_id", "bbox", "name", "file_name", "width"]), inner
        )
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(key=st.sampled_from(["images", "annotations", "categories"]), value=JSON_VALUES, field=st.data())
def test_no_content_makes_the_check_raise_and_what_it_passes_loads(tmp_path, key, value, field):
    path = write(tmp_path, annotations=[annotation(1, 1, 3, [0, 0, 5, 5])])
    content = json.loads(path.read_text())
    if field.draw(st.booleans()):
        content[key] = value
    else:
        content[key][0][field.draw(st.sampled_from(sorted(content[key][0])))] = value
    path.write_text(json.dumps(content))
    if check_split(path, tmp_path) == []:
        load(path)
    else:
        with contextlib.suppress(ValueError, FileNotFoundError):
            load(path)


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the development data is not beside this checkout")
def test_the_real_development_data_checks_without_raising():
    for path in sorted((SHARED / "data" / "odinw").rglob("valid/*.json")):
        assert all(isinstance(defect, Defect) for defect in check_split(path, path.parent))
