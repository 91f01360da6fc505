"""Every format holds what every other one holds; what is written is whole, and stays in its folder."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.core.errors import UnknownNameError
from glip_adapt.core.structures import Target
from glip_adapt.data import convert
from glip_adapt.data.check import check_folder
from glip_adapt.data.convert import convert_dataset
from glip_adapt.data.dataset import FORMATS, load_dataset, unlabelled_images
from glip_adapt.data.formats import coco, voc, yolo
from glip_adapt.data.split import Annotation, ImageRecord, Split

NAMES = [known.NAME for known in FORMATS]
NOTHING = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
ODD = "aB1 ._-,;'\"<&>%#+@()[]{}éß日本~$!=^`:?*|\\\u00a0\u0301😀"
CLASSES = st.one_of(
    st.text(ODD, min_size=1, max_size=6),
    st.sampled_from(
        ["no", "null", "~", "1", "NaN", "None", "background", "true", "classes", "# a", "a: b", "- a", "0"]
    ),
)


def sides(most):
    return st.integers(0, 8 * most).map(lambda n: n / 8)


@st.composite
def boxes(draw, category_ids, height, width):
    x, y = draw(sides(width - 1)), draw(sides(height - 1))
    w, h = draw(sides(width).filter(bool)), draw(sides(height).filter(bool))
    return Annotation(draw(st.sampled_from(category_ids)), (x, y, min(w, width - x), min(h, height - y)), 1, False)


@st.composite
def datasets(draw):
    """Splits as (height, width), file name and boxes of each image; classes, and their category ids."""
    classes = draw(st.lists(CLASSES.filter(lambda n: n.strip()), min_size=1, max_size=4, unique_by=lambda n: n.strip()))
    ids = sorted(draw(st.sets(st.integers(0, 99), min_size=len(classes), max_size=len(classes))))
    splits = {}
    for name in draw(st.sets(st.sampled_from(["train", "val", "test"]), min_size=1)):
        splits[name] = []
        for _ in range(draw(st.integers(1, 3))):
            height, width = draw(st.integers(2, 24)), draw(st.integers(2, 24))
            drawn = draw(
                st.lists(boxes(ids, height, width), max_size=3, unique_by=lambda a: (a.category_id, a.bbox_xywh))
            )
            splits[name].append(((height, width), draw(st.text(ODD, min_size=1, max_size=6)), tuple(drawn)))
    return splits, tuple(classes), tuple(ids)


def build(made, folder):
    """Return splits in memory, with images on disk; the colour of an image tells which it is."""
    images, classes, ids = made
    splits, number = {}, 0
    for split_name, entries in images.items():
        records = []
        for size_hw, name, annotations in entries:
            number += 1
            path = folder / str(number) / f"{name}.png"
            path.parent.mkdir()
            Image.new("RGB", size_hw[::-1], (number, 2, 3)).save(path, "PNG")
            records.append(ImageRecord(number, path, size_hw, NOTHING, annotations))
        splits[split_name] = Split(f"made/{split_name}", tuple(records), classes, ids)
    return splits


def contents(splits):
    """Return the boxes of each image by split and colour."""
    found = {}
    for name, split in splits.items():
        name_of = dict(zip(split.category_ids, split.classes, strict=True))
        for record in split.records:
            assert record.load().size[::-1] == record.size_hw
            found[name, record.load().getpixel((0, 0))[0]] = [
                (name_of[a.category_id].strip(), a.bbox_xywh) for a in split.annotations_of(record)
            ]
    return found


def close(found, expected):
    assert found.keys() == expected.keys()
    for key, stated in expected.items():
        assert [name for name, _ in found[key]] == [name for name, _ in stated]
        for (_, box), (_, other) in zip(found[key], stated, strict=True):
            assert box == pytest.approx(other, abs=0.01)


@pytest.mark.parametrize("first", FORMATS, ids=NAMES)
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(made=datasets())
def test_a_dataset_survives_the_way_through_every_two_formats(first, made):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        splits = build(made, folder)
        names = tuple(name.strip() for name in made[1])
        (folder / "a").mkdir()
        first.write({name: replace(split, classes=names) for name, split in splits.items()}, folder / "a")
        data = load_dataset(folder / "a")
        assert (data.format, data.classes) == (first.NAME, names)
        close(contents(data.splits), contents(splits))
        for second in NAMES:
            convert_dataset(folder / "a", second, folder / f"to {second}")
            again = load_dataset(folder / f"to {second}")
            assert (again.format, again.classes) == (second, names)
            close(contents(again.splits), contents(splits))
            assert unlabelled_images(folder / f"to {second}") == []
            checked = check_folder(folder / f"to {second}")
            kinds = {defect.kind for split in checked.splits.values() for defect in split.defects}
            assert kinds <= {"class name outside the vocabulary", "classes with one wording", "coordinates from 0 to 1"}
        made_here = {path.name for path in folder.iterdir() if not path.name.isdigit()}
        assert made_here == {"a", *(f"to {name}" for name in NAMES)}


# One dataset by hand -------------------------------------------------------------------------------------------------


def write_coco(folder, images=("a.png",), boxes=((1, 2, 10, 8),), classes=("dog",), **changes):
    """A COCO split ``train`` with the same boxes, all of the first class, in each image of 40 × 20 pixels."""
    for name in images:
        path = folder / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (len(name), 0, 0)).save(path)
    entries = [
        {"image_id": n, "category_id": 1, "bbox": box, "area": 7} | changes for n in range(len(images)) for box in boxes
    ]
    content = {
        "images": [{"id": n, "file_name": name, "height": 20, "width": 40} for n, name in enumerate(images)],
        "annotations": [entry | {"id": n} for n, entry in enumerate(entries)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, start=1)],
    }
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_images_are_copied_and_counted(tmp_path):
    source = write_coco(tmp_path / "a", images=("a.png", "b.png"), boxes=[(1, 2, 10, 8), (0, 0, 5, 5)])
    calls = []
    written = convert_dataset(source, "yolo", tmp_path / "x" / "b", on_image=lambda *call: calls.append(call))
    assert (written.images, written.boxes, written.left_out) == ({"train": 2}, {"train": 4}, ())
    assert calls == [(1, 2), (2, 2)]
    copies = tmp_path / "x" / "b" / "images" / "train"
    assert all((copies / name).read_bytes() == (source / "train" / name).read_bytes() for name in ("a.png", "b.png"))


def test_names_that_collide_get_a_number_and_stay_in_the_folder(tmp_path):
    names = ("one/a.png", "two/a.png", "three/A.PNG", "a.bmp", "a_2.png", ".hidden.png", "line\nend.png", "back\\a.png")
    convert_dataset(write_coco(tmp_path / "a", images=names), "voc", tmp_path / "b")
    found = [path.name for path in (tmp_path / "b" / "JPEGImages").iterdir()]
    expected = {"a.png", "a_2.png", "A_3.PNG", "a_4.bmp", "a_2_2.png", "hidden.png", "line_end.png", "back_a.png"}
    assert set(found) == expected
    assert len(load_dataset(tmp_path / "b").train) == len(names)


def test_an_image_twice_in_a_split_is_written_twice(tmp_path):
    source = write_coco(tmp_path / "a", images=("a.png", "b.png"))
    file = source / "train" / "_annotations.coco.json"
    file.write_text(file.read_text().replace("b.png", "a.png"))
    convert_dataset(source, "coco", tmp_path / "b")
    assert files(tmp_path / "b") == ["train/_annotations.coco.json", "train/a.png", "train/a_2.png"]


def test_a_suffix_that_readers_do_not_know_becomes_png(tmp_path):
    source = write_coco(tmp_path / "a", images=("a.png",))
    (source / "train" / "a.png").rename(source / "train" / "a.picture")
    file = source / "train" / "_annotations.coco.json"
    file.write_text(file.read_text().replace("a.png", "a.picture"))
    convert_dataset(source, "coco", tmp_path / "b")
    assert files(tmp_path / "b") == ["train/_annotations.coco.json", "train/a.png"]


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("is_upright", [True, False])
def test_boxes_stay_on_their_pixels_whatever_the_orientation(tmp_path, to, orientation, is_upright):
    """The stored image is 40 × 20 with a white left half; the boxes surround that half as ``load`` shows it."""
    source = write_coco(tmp_path / "a", images=("a.jpg",))
    image = Image.new("RGB", (40, 20))
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(source / "train" / "a.jpg", exif=exif, quality=95)
    file = source / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    is_turned = orientation != 3 and is_upright
    shown = {3: (20, 0, 20, 20), 6: (0, 0, 20, 20), 8: (0, 20, 20, 20)}[orientation]
    content["annotations"][0]["bbox"] = shown if is_turned or orientation == 3 else (0, 0, 20, 20)
    content["images"][0] |= {"height": 40, "width": 20} if is_turned else {"height": 20, "width": 40}
    file.write_text(json.dumps(content))
    convert_dataset(source, to, tmp_path / "b")
    for folder in ("a", "b"):
        (record,) = load_dataset(tmp_path / folder).train.records
        x, y, w, h = record.annotations[0].bbox_xywh
        white = record.load().convert("L").point(lambda value: 255 * (value > 128)).getbbox()
        assert white == pytest.approx((x, y, x + w, y + h), abs=1)
        is_applied = orientation == 3 or is_upright
        if folder == "a" or to in ("coco", "voc", "yolo"):  # a reader of YOLO would turn the image
            assert record.path.suffix == (".jpg" if folder == "a" or is_applied or to != "yolo" else ".png")
        assert record.load().size[::-1] == record.size_hw


def test_crowds_and_splits_without_a_place_are_left_out_and_said(tmp_path, monkeypatch):
    source = write_coco(tmp_path / "a", iscrowd=1)
    data = load_dataset(source)
    two = replace(data, splits={"train": data.train, "minival": data.train})
    monkeypatch.setattr(convert, "load_dataset", lambda *_, **__: two)
    written = convert_dataset(source, "voc", tmp_path / "b")
    assert written.boxes == {"train": 0}
    assert [sentence.partition(" is left")[0] for sentence in written.left_out[:1]] == ["The split minival"]
    assert "1 crowd regions" in written.left_out[1]
    assert convert_dataset(source, "coco", tmp_path / "c").boxes == {"train": 1}
    assert [a.iscrowd for a in load_dataset(tmp_path / "c").train.records[0].annotations] == [True]
    monkeypatch.setattr(convert, "load_dataset", lambda *_, **__: replace(data, splits={"minival": data.train}))
    with pytest.raises(ValueError, match="none of the splits train, val, test, only minival"):
        convert_dataset(source, "voc", tmp_path / "d")


def test_a_class_called_background_stays_one(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for ids in ((0, 4), (1, 4)):
        record = ImageRecord(1, tmp_path / "a.png", (9, 9), NOTHING, (Annotation(4, (1, 1, 2, 2), 4, False),))
        (tmp_path / str(ids[0])).mkdir()
        coco.write({"val": Split("a", (record,), ("background", "dog"), ids)}, tmp_path / str(ids[0]))
        split = load_dataset(tmp_path / str(ids[0])).val
        assert (split.classes, split.category_ids[0]) == (("background", "dog"), 1)
        assert [split.classes[split.category_ids.index(a.category_id)] for a in split.records[0].annotations] == ["dog"]


def test_coco_keeps_areas_and_ids(tmp_path):
    convert_dataset(write_coco(tmp_path / "a", classes=("dog", "None")), "coco", tmp_path / "b")
    data = load_dataset(tmp_path / "b")
    assert data.classes == ("dog", "None")  # is no root category
    assert (data.train.records[0].image_id, data.train.records[0].annotations[0].area) == (0, 7)


@pytest.mark.parametrize(
    ("classes", "said"),
    [(("dog", "dog "), "two classes called 'dog'"), (("a\nb",), "line end"), (("a\x1bb",), "control code"),
     (("a\ud800",), "control code")],
)  # fmt: skip
def test_names_that_formats_cannot_hold_are_refused(tmp_path, classes, said):
    with pytest.raises(ValueError, match=said):
        convert_dataset(write_coco(tmp_path / "a", classes=classes), "voc", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_place_that_is_not_empty_or_inside_the_source_is_refused(tmp_path):
    source = write_coco(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    convert_dataset(source, "voc", tmp_path / "empty")
    for place in (tmp_path / "empty", source / "train" / "a.png"):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            convert_dataset(source, "voc", place)
    with pytest.raises(ValueError, match="inside the dataset"):
        convert_dataset(source, "voc", source / "voc")
    assert files(source) == ["train/_annotations.coco.json", "train/a.png"]
    with pytest.raises(UnknownNameError, match=r"Unknown format 'yolov8'.*yolo"):
        convert_dataset(source, "yolov8", tmp_path / "c")
    with pytest.raises(ValueError, match="Whole pixels are for voc"):
        convert_dataset(source, "yolo", tmp_path / "c", integers=True)
    assert convert_dataset(source, "voc", tmp_path / "c", integers=True).boxes == {"train": 1}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error):
    source = write_coco(tmp_path / "a")

    def write(splits, folder):
        coco.write(splits, folder)
        assert not (tmp_path / "b").exists()
        raise error

    monkeypatch.setattr(yolo, "write", write)
    with pytest.raises(type(error)):
        convert_dataset(source, "yolo", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_source_in_several_formats_is_read_in_the_one_that_is_named(tmp_path):
    source = write_coco(tmp_path / "a")
    (source / "train" / "a.txt").write_text("0 0.5 0.5 1 1\n0 0.5 0.5 0.5 0.5\n")
    (source / "classes.txt").write_text("owl\n")
    with pytest.raises(ValueError, match=r"several formats: coco .*yolo"):
        convert_dataset(source, "voc", tmp_path / "b")
    assert convert_dataset(source, "voc", tmp_path / "b", format="yolo").boxes == {"train": 2}
    assert load_dataset(tmp_path / "b").classes == ("owl",)


def test_integers_are_for_voc_alone(tmp_path):
    convert_dataset(write_coco(tmp_path / "a", boxes=[(1.4, 2.6, 10, 8)]), voc.NAME, tmp_path / "b", integers=True)
    assert load_dataset(tmp_path / "b").train.records[0].annotations[0].bbox_xywh == (1, 3, 10, 8)
