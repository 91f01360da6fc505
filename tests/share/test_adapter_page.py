"""The page of an adapter: whole, self-contained, escaped, and right in its numbers."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.core.structures import Target
from glip_adapt.data.split import Annotation, ImageRecord, Split
from glip_adapt.share import gallery
from glip_adapt.share.page import AdapterPage, format_page, write_page

VOID = {"meta", "link", "img", "br", "hr", "input"}
BOX, FAR = (2.0, 2.0, 12.0, 12.0), (24.0, 10.0, 12.0, 12.0)


class Reader(HTMLParser):
    """Keeps tags with their attributes and the text outside the style, and fails on a tag that closes another."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f"{data}\n"

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def build(folder, images, classes=("cat", "dog"), **changes):
    """Return a page of images, each a list of (label, box) and a file name; the adapted model finds every box."""
    folder.mkdir(exist_ok=True)
    records, found = [], []
    for number, (name, objects) in enumerate(images, start=1):
        path = folder / name
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path, "PNG")
        annotations = tuple(Annotation(label + 1, box, box[2] * box[3], False) for label, box in objects)
        nothing = Target(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))
        records.append(ImageRecord(number, path, (30, 40), nothing, annotations))
        found += [result(number, label, box) for label, box in objects]
    fields = {
        "title": "Pets", "split": Split("pets", tuple(records), tuple(classes), tuple(range(1, len(classes) + 1))),
        "start": [], "adapted": found, "thresholds": dict.fromkeys(classes, 0.5), "facts": [("trained on", "2 images")],
        "tried": [("lora", 0.21, "chosen"), ("full", None, "failed")], "expected": (0.21, (0.104, 0.3)),
        "zero_shot": 0.13, "test": (0.45, 0.67), "notes": ["Made up."],
    }  # fmt: skip
    return AdapterPage(**{**fields, **changes})


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(gallery, "PICTURE_SIDE", 80)  # in seconds rather than minutes


def result(image, label, box, score=0.9):
    return {"image_id": image, "category_id": label + 1, "bbox": list(box), "score": score}


@pytest.fixture
def page(tmp_path):
    return build(tmp_path / "in", [("one.png", [(0, BOX), (1, FAR)]), ("two.png", [(0, FAR)])])


def rows(text):
    """Return the cells of every table row, without markup."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [[re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in found]


def test_a_page_is_one_whole_file_with_title_and_language(page, tmp_path):
    write_page(tmp_path / "out" / "page.html", page)
    text = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["page.html"]
    read = Reader(text)
    assert read.attributes("html") == [{"lang": "en"}]
    assert "<title>Pets</title>" in text
    assert {"charset": "utf-8"} in read.attributes("meta")
    assert any(meta.get("name") == "viewport" for meta in read.attributes("meta"))
    for words in (
        "What to expect",
        "How it was made",
        "Class by class",
        "Precision and recall",
        "Made up.",
        "2 images",
    ):
        assert words in read.text


def test_nothing_is_loaded_from_elsewhere_and_every_link_has_its_place(page):
    text = format_page(page)
    assert not re.search(r"\b(src|href)=[\"'](?!#|data:image/webp;base64,)", text)
    assert not re.search(r"@import|url\(|https?:|<script", text)
    read = Reader(text)
    assert [link["href"][1:] for link in read.attributes("a")] == [s["id"] for s in read.attributes("section")]


def test_pictures_can_be_opened_and_have_alternative_texts(page):
    images = Reader(format_page(page)).attributes("img")
    assert [image["alt"] for image in images] == [
        "one.png, truth: 2 boxes",
        "one.png, zero-shot: 0 hits, 2 misses, 0 false alarms",
        "one.png, adapted: 2 hits, 0 misses, 0 false alarms",
        "two.png, truth: 1 box",
        "two.png, zero-shot: 0 hits, 1 miss, 0 false alarms",
        "two.png, adapted: 1 hit, 0 misses, 0 false alarms",
    ]
    for image in images:
        opened = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert opened.size == (int(image["width"]), int(image["height"])) == (80, 60)


def test_the_expected_score_its_interval_and_the_test_scores_are_shown(page):
    text = format_page(page)
    shown = re.findall(r"<div><b>(.*?)</b><span>(.*?)</span><small>(.*?)</small></div>", text)
    assert shown == [
        ("13", "zero-shot", ""),
        ("21", "adapted", "likely 10 to 30"),
        ("45", "zero-shot", ""),
        ("67", "adapted", ""),
    ]
    assert "<b>3 of 3 labelled boxes</b>" in text
    assert ["lora", "21", "chosen"] in rows(text)
    assert ["full", "–", "failed"] in rows(text)


def test_what_is_not_known_is_not_shown_as_a_number(page):
    text = format_page(replace(page, expected=(None, None), zero_shot=None, test=None, facts=[], tried=[], notes=[]))
    assert re.findall(r"<div><b>(.*?)</b>", text) == ["–", "–"]
    assert "interval" not in Reader(text).text
    assert "test images" not in text
    assert "too few labelled images" in text


def test_the_table_of_classes_by_hand(page):
    """Cats: two boxes, one found, and a false alarm below the threshold that does not count. Dogs: a false alarm."""
    adapted = [result(1, 0, BOX), result(2, 0, BOX, 0.4), result(2, 1, BOX, 0.8)]
    text = format_page(replace(page, adapted=adapted, start=[result(1, 0, BOX), result(2, 0, FAR)]))
    cat, dog = (row for row in rows(text) if row[1:2] in (["cat"], ["dog"]) and len(row) == 8)
    assert cat == ["1", "cat", "2", "2", "100 → 50", "0.50", "100", "50"]
    assert dog == ["2", "dog", "1", "1", "0 → 0", "0.50", "0", "0"]
    assert "<b>1 of 3 labelled boxes</b>" in text
    assert "<b>1 false alarm</b>" in text


def test_confusions_are_counted_and_the_most_frequent_said(page):
    text = format_page(replace(page, adapted=[result(1, 0, BOX), result(1, 0, FAR), result(2, 1, BOX)]))
    assert ["cat", "1", "", "1"] in rows(text)
    assert ["dog", "1", "", ""] in rows(text)
    assert ["nothing", "", "1", ""] in rows(text)
    assert "dog found as cat: 1" in text


def headings(text):
    return re.findall(r"<article><h3>(.*?)</h3>", text)


def test_the_image_with_most_errors_is_first_and_those_left_out_are_counted(tmp_path, monkeypatch):
    images = [(f"{n}.png", [(0, BOX)]) for n in range(4)]
    page = build(tmp_path / "in", images)
    wrong = [result(3, 0, FAR), result(3, 1, FAR), result(2, 1, FAR)]
    page = replace(page, adapted=[*page.adapted, *wrong])
    assert headings(format_page(page)) == ["2.png", "1.png", "0.png", "3.png"]
    assert "left out" not in format_page(page)
    monkeypatch.setattr(gallery, "MOST_SHOWN", 3)
    assert headings(format_page(page)) == ["2.png", "1.png", "0.png"]
    assert "1 image with fewer errors, or as many, is left out" in format_page(page)
    monkeypatch.setattr(gallery, "GALLERY_BYTES", 10)
    assert headings(format_page(page)) == ["2.png"]
    assert "3 images with fewer errors, or as many, are left out" in format_page(page)


def test_the_gallery_keeps_to_its_room_and_that_is_a_few_megabytes(tmp_path, monkeypatch):
    assert gallery.GALLERY_BYTES <= 4_000_000
    monkeypatch.setattr(gallery, "GALLERY_BYTES", 200_000)
    page = build(tmp_path / "in", [(f"{n}.png", [(0, BOX)]) for n in range(40)])
    write_page(tmp_path / "page.html", page)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 100_000 < len(text) < 220_000
    assert f"{40 - len(headings(text))} images" in text


HOSTILE = ("<script>alert(1)</script>", "\"'&amp;</title>", "\x00\x1b\udce4\u202e", "犬", "")


def test_names_of_any_characters_are_text(tmp_path):
    page = build(
        tmp_path / "in", [("<b onload='x'>&\".png", [(k, BOX) for k in range(5)])], HOSTILE,
        title=HOSTILE[0], facts=[(HOSTILE[0], HOSTILE[1])], tried=[(HOSTILE[0], None, HOSTILE[2])], notes=HOSTILE,
    )  # fmt: skip
    write_page(tmp_path / "page.html", page)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Reader(text)
    assert not {"script", "b onload='x'"} & {tag for tag, _ in read.tags}
    assert not any("onload" in attributes for _, attributes in read.tags)
    assert HOSTILE[0] in read.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)


_texts = st.text(max_size=12)


@settings(max_examples=25)
@given(_texts, _texts, _texts, _texts)
def test_any_text_leaves_the_page_whole(tmp_path_factory, title, name, fact, remark):
    folder = tmp_path_factory.mktemp("page")
    page = build(
        folder, [("x.png", [(0, BOX)])], (name,),
        title=title, facts=[(fact, remark)], tried=[(name, 0.5, remark)], notes=[fact],
    )  # fmt: skip
    plain = build(folder, [("x.png", [(0, BOX)])], ("a",), facts=[("a", "a")], tried=[("a", 0.5, "a")], notes=["a"])
    tags = [tag for tag, _ in Reader(format_page(page)).tags]
    assert tags == [tag for tag, _ in Reader(format_page(plain)).tags]


def test_a_page_without_any_prediction(page):
    read = Reader(format_page(replace(page, start=[], adapted=[])))
    assert "0 of 3 labelled boxes" in read.text.replace("\n", "")


def test_a_page_without_any_box(tmp_path):
    Reader(format_page(build(tmp_path / "in", [("one.png", [])], ("cat",))))


def test_sixty_classes_have_a_row_and_a_curve_each(tmp_path):
    names = [f"class {k}" for k in range(60)]
    images = [(f"{n}.png", [(k, BOX) for k in range(20 * n, 20 * n + 20)]) for n in range(3)]
    text = format_page(build(tmp_path / "in", images, names))
    assert [row[1] for row in rows(text) if len(row) == 8 and row[0].isdigit()] == names
    assert text.count('role="img"') == 60
    assert len([row for row in rows(text) if len(row) == 62]) == 62  # a head, the classes, and background


def test_errors_name_what_is_wrong_and_leave_no_file(page, tmp_path):
    with pytest.raises(ValueError, match="threshold"):
        write_page(tmp_path / "page.html", replace(page, thresholds={"cat": 0.5}))
    with pytest.raises(ValueError, match="image 99"):
        write_page(tmp_path / "page.html", replace(page, adapted=[result(99, 0, BOX)]))
    page.split.records[0].path.unlink()
    with pytest.raises(FileNotFoundError, match=r"one\.png"):
        write_page(tmp_path / "page.html", page)
    assert not (tmp_path / "page.html").exists()
