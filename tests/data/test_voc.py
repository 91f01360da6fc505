"""Pascal VOC folders of many tools, and the right value of their boxes."""

import contextlib
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_yolo import kinds, put, turned

from glip_adapt.data.check import check_folder
from glip_adapt.data.dataset import load_dataset, unlabelled_images
from glip_adapt.data.formats import voc

BOX = "<bndbox><xmin>11</xmin><ymin>3</ymin><xmax>40</xmax><ymax>12</ymax></bndbox>"  # edges 10, 2, 40, 12
DOG = f"<object><name>dog</name><difficult>1</difficult>{BOX}</object>"
SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


def label(name="a.png", objects=DOG, size=SIZE):
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def one(folder, text):
    return put(folder, {"a.png": Image, "a.xml": text})


def boxes(split):
    return {
        record.path.name: [(split.classes[a.category_id - 1], a.bbox_xywh) for a in record.annotations]
        for record in split.records
    }


def corners(*values, tag="bndbox"):
    keys = ("xmin", "ymin", "xmax", "ymax")
    return f"<{tag}>" + "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, values, strict=True)) + f"</{tag}>"


@pytest.mark.parametrize(
    ("values", "box"),
    [
        ((11, 3, 40, 12), (10, 2, 30, 10)),
        ((1, 1, 40, 20), (0, 0, 40, 20)),
        ((7, 7, 7, 7), (6, 6, 1, 1)),
        ((11.5, 3.25, "40.0", " 12 "), (10.5, 2.25, 29.5, 9.75)),
    ],
)
def test_corners_count_from_1_and_belong_to_the_box(tmp_path, values, box):
    data = load_dataset(one(tmp_path, label(objects=f"<object><name> dog\n</name>{corners(*values)}</object>")))
    assert boxes(data.train)["a.png"] == [("dog", box)]
    assert (data.format, data.classes, data.train.records[0].size_hw) == ("voc", ("dog",), (20, 40))


def test_parts_are_no_objects_and_difficult_ones_are(tmp_path):
    part = f"<part><name>head</name>{corners(12, 4, 20, 8)}</part>"
    data = load_dataset(one(tmp_path, label(objects=f"<object>{part}<name>dog</name>{BOX}{part}</object>{DOG}")))
    assert boxes(data.train)["a.png"] == [("dog", (10, 2, 30, 10))] * 2
    assert data.classes == ("dog",)


@pytest.mark.parametrize(
    "entry",
    [
        f"<object>{BOX}</object>",
        f"<object><name> </name>{BOX}</object>",
        "<object><name>dog</name></object>",
        "<object><name>dog</name><robndbox><cx>3</cx></robndbox></object>",
        f"<object><name>dog</name>{corners(1, 2, 3, 'x')}</object>",
        f"<object><name>dog</name>{corners(1, 2, 3, '')}</object>",
        f"<object><name>dog</name>{corners(1, 2, 'nan', 4)}</object>",
        f"<object><name>dog</name>{corners(1, 2, '1e999', 4)}</object>",
    ],
)
def test_an_object_that_is_none_is_left_out_and_said(tmp_path, caplog, entry):
    folder = one(tmp_path, label(objects=DOG + entry))
    assert len(boxes(load_dataset(folder).train)["a.png"]) == 1
    (warning,) = caplog.records
    assert "malformed label (1 in all): a.xml, object 2: " in warning.getMessage()
    assert kinds(folder) == {"malformed label": 1}


CHALLENGE = {
    "Annotations/a.xml": label("a.png"),
    "Annotations/b.xml": label("b.png", objects=""),
    "Annotations/c.xml": label("c.png"),
    "ImageSets/Main/train.txt": "a\n",
    "ImageSets/Main/val.txt": "b\r\n",
    "ImageSets/Main/trainval.txt": "a\nb\n",
    "ImageSets/Main/dog_train.txt": "a  1\nb -1\n",
    **{f"JPEGImages/{name}.png": Image for name in "abc"},
    "SegmentationClass/a.png": Image,
}
BESIDE = {
    **{"train/a.png": Image, "train/a.xml": label("a.png"), "valid/b.png": Image},
    **{"valid/b.xml": label("elsewhere/b.png", objects=""), "README.txt": "x"},
}
LAYOUTS = {
    "challenge": CHALLENGE,
    "inside VOCdevkit": {f"VOCdevkit/VOC2012/{name}": content for name, content in CHALLENGE.items()},
    "roboflow": BESIDE,
    "one folder of labels for each split": {
        **{"train/Annotations/a.xml": label("a.png"), "train/JPEGImages/a.png": Image},
        **{"val/Annotations/b.xml": label("a.png", objects=""), "val/JPEGImages/b.png": Image},
    },
    "split folders below": {
        **{"Annotations/train/a.xml": label("a.png"), "images/train/a.png": Image},
        **{"Annotations/val/b.xml": label("wrong.png", objects=""), "images/val/b.png": Image},
    },
    "lower case": {
        **{"annotations/train/a.xml": label("a.png"), "images/train/a.png": Image, "images/val/a.png": Image},
        **{"annotations/val/b.xml": label("b.png", objects=""), "images/val/b.png": Image},
    },
    "names in sets with suffix": CHALLENGE | {"ImageSets/Main/train.txt": "a.png\n", "ImageSets/Main/val.txt": "b  1"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_all_tools_are_read(tmp_path, layout, caplog):
    data = load_dataset(put(tmp_path / "pets", LAYOUTS[layout]))
    assert (data.name, data.format, data.classes) == ("pets", "voc", ("dog",))
    assert {name: boxes(split) for name, split in data.splits.items()} == {
        "train": {"a.png": [("dog", (10, 2, 30, 10))]},
        "val": {"b.png": []},
    }
    assert all(record.path.parent.name != "SegmentationClass" for record in data.train.records)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("sets", "splits"),
    [
        ({}, {"train": "abc"}),
        ({"train": "ab", "test": "c"}, {"train": "ab", "test": "c"}),
        ({"trainval": "ab", "val": "b", "test": "c"}, {"train": "ab", "test": "c"}),
        ({"default": "ac"}, {"train": "ac"}),  # CVAT
        ({"train": "a", "valid": "b"}, {"train": "a", "val": "b"}),
        ({"dog": "a", "owl": "b"}, {"train": "abc"}),
    ],
)
def test_image_sets_are_the_splits(tmp_path, sets, splits):
    files = {name: content for name, content in CHALLENGE.items() if "ImageSets" not in name}
    put(tmp_path, files | {f"ImageSets/Main/{name}.txt": "\n".join(listed) for name, listed in sets.items()})
    found = {key: [r.path.stem for r in split.records] for key, split in load_dataset(tmp_path).splits.items()}
    assert found == {key: list(listed) for key, listed in splits.items()}


def test_what_is_in_no_set_and_what_has_no_label_is_told(tmp_path):
    put(tmp_path, CHALLENGE | {"JPEGImages/new.png": Image, "ImageSets/Main/val.txt": "b\nnew\n"})
    assert set(load_dataset(tmp_path).splits) == {"train", "val"}
    assert [path.name for path in unlabelled_images(tmp_path)] == ["c.png", "new.png"]
    checked = check_folder(tmp_path)
    assert (checked.format, checked.unlabelled, checked.splits["val"].without_boxes) == ("voc", 2, 1)
    notes = {d.kind: d.examples for d in checked.splits["train"].defects if d.is_note}
    assert notes == {
        "label file in no image set": ("Annotations/c.xml",),
        "image without a label file": ("JPEGImages/new.png",),
    }
    assert kinds(tmp_path).keys() == notes.keys()


def test_the_image_of_a_file_is_the_one_of_its_name_unless_there_is_none(tmp_path):
    put(tmp_path, {"a.png": Image, "a.jpg": Image, "b.png": Image, "far/c.png": Image})
    put(tmp_path, {"a.xml": label("a.jpg"), "b.xml": label("a.png"), "labels.xml": label("C:\\x\\c.png")})
    assert set(boxes(load_dataset(tmp_path).train)) == {"a.jpg", "b.png", "c.png"}


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size/>", "<size>x</size>"])
def test_without_a_size_boxes_are_those_of_the_upright_image(tmp_path, size):
    turned(one(tmp_path, label(size=size)) / "a.png", 6)
    (record,) = load_dataset(tmp_path).train.records
    assert record.size_hw == record.load().size[::-1] == (40, 20)


def test_a_size_tells_whether_an_orientation_is_applied(tmp_path):
    turned(one(tmp_path / "a", label()) / "a.png", 6)  # its size is that of the stored pixels
    (tmp_path / "b").mkdir()
    splits = load_dataset(tmp_path / "a").splits
    voc.write(splits, tmp_path / "b")
    assert (tmp_path / "b" / "JPEGImages" / "a.png").read_bytes() == (tmp_path / "a" / "a.png").read_bytes()
    for folder in ("a", "b"):
        (record,) = load_dataset(tmp_path / folder).train.records
        assert record.size_hw == record.load().size[::-1] == (20, 40)
        assert record.annotations[0].bbox_xywh == (10, 2, 30, 10)


def test_classes_come_in_the_order_of_a_list(tmp_path):
    objects = "".join(f"<object><name>{name}</name>{BOX}</object>" for name in ("ant", "dog", "bee"))
    put(one(tmp_path, label(objects=objects)), {"classes.txt": "dog\nowl\nbee\n"})
    assert load_dataset(tmp_path).classes == ("dog", "owl", "bee", "ant")


BOMB = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]><annotation><filename>&y;</filename></annotation>'
OUTER = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><filename>a.png", "ParseError"),
        ("", "no element"),
        (b"\xff\x00<annotation>", "ParseError"),
        (BOMB, "EntitiesForbidden"),
        (OUTER, "EntitiesForbidden"),
        ("<annotations/>", "outermost element is annotations"),
        (label() + " " * 2**24, "bytes"),
    ],
)
def test_a_file_that_cannot_be_parsed_stops_with_its_name_and_the_reason(tmp_path, text, said):
    folder = put(tmp_path / "pets", {"a.png": Image, "a.xml": text, "b.png": Image, "b.xml": label("b.png")})
    with pytest.raises(ValueError, match=rf"pets: malformed label file: a\.xml: .*{said}.*data check \S+pets"):
        load_dataset(folder)
    assert kinds(folder)["malformed label file"] == 1


BROKEN = {
    "no label file speaks of an image": {"Annotations/notes.txt": "x", "Annotations/x.xml.bak": "x"},
    r"missing image file: .*JPEGImages/gone\.png": {"Annotations/gone.xml": label("gone.png")},
    "missing image file: .*gone": CHALLENGE | {"ImageSets/Main/train.txt": "a\ngone\n"},
    "several datasets": {f"{name}/Annotations/a.xml": label() for name in ("VOC2007", "VOC2012")},
    "may be .*a.png or .*a.png": {"x/a.png": Image, "y/a.png": Image, "z/a.xml": label()},
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_leaves_the_meaning_open_is_one_clear_error(tmp_path, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_dataset(put(tmp_path, BROKEN[said]), format="voc")


@pytest.mark.parametrize("text", ["<annotations><image/></annotations>", "<html/>", "annotation", ""])
def test_other_xml_files_are_passed_over(tmp_path, text):
    put(tmp_path, {"sitemap.xml": text})
    assert not voc.recognises(tmp_path)
    put(tmp_path, {"train/a.png": Image, "train/a.xml": label()})
    assert len(load_dataset(tmp_path).train) == 1


def test_written_files_are_those_of_the_challenge(tmp_path):
    objects = f"<object><name>dog &lt;&amp;&gt;</name>{corners(1.26, 2.5, 8.123456, 9)}</object>"
    splits = load_dataset(one(tmp_path / "a", label(objects=objects))).splits
    for name, integers, expected in (("b", False, "1.26 2.5 8.1235 9"), ("c", True, "1 2 8 9")):
        (tmp_path / name).mkdir()
        voc.write(splits, tmp_path / name, integers=integers)
        text = (tmp_path / name / "Annotations" / "a.xml").read_text()
        assert "<name>dog &lt;&amp;&gt;</name>" in text
        assert "<width>40</width>" in text
        values = [text.partition(f"<{key}>")[2].partition("<")[0] for key in ("xmin", "ymin", "xmax", "ymax")]
        assert " ".join(values) == expected
        assert (tmp_path / name / "ImageSets" / "Main" / "train.txt").read_text() == "a\n"
        assert (tmp_path / name / "classes.txt").read_text() == "dog <&>\n"
        assert (tmp_path / name / "JPEGImages" / "a.png").is_file()


def test_rounding_leaves_a_pixel_of_a_thin_box(tmp_path):
    objects = f"<object><name>dog</name>{corners(1.6, 2, 0.7, 9)}</object>"
    splits = load_dataset(one(tmp_path / "a", label(objects=objects))).splits
    (tmp_path / "b").mkdir()
    voc.write(splits, tmp_path / "b", integers=True)
    assert boxes(load_dataset(tmp_path / "b").train)["a.png"] == [("dog", (1, 1, 1, 8))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    name=st.sampled_from(["Annotations/a.xml", "ImageSets/Main/train.txt", "classes.txt", "JPEGImages/a.png"]),
    content=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from(["<annotation>", "</annotation>", DOG, SIZE, "<filename>", "</filename>", "../..", "a\0b"])
        )
        .map("".join)
        .map(str.encode),
    ),
)
def test_no_bytes_crash_the_reader(tmp_path, name, content):
    put(tmp_path, CHALLENGE | {name: content})
    logging.disable()
    voc.recognises(tmp_path)
    with contextlib.suppress(ValueError, FileNotFoundError):
        load_dataset(tmp_path)
    with contextlib.suppress(ValueError):
        check_folder(tmp_path)
    logging.disable(logging.NOTSET)
