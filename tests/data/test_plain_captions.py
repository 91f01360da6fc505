"""Captions without boxes, in the files that people have."""

import json

import pytest
from captioned_files import SENTENCE, write_pictures

from glip_adapt.data.plain_captions import captions_beside, read_captions


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path) / "images"


ROWS = [("1.jpg", SENTENCE), ("sub/3.jpg", "Two dogs, and a cat"), ("1.jpg", "A dog")]


def as_lines(names=("file_name", "text")):
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS)


def as_coco():
    images = [{"id": 4, "file_name": "1.jpg"}, {"id": 9, "file_name": "sub/3.jpg"}]
    ids = {"1.jpg": 4, "sub/3.jpg": 9}
    return json.dumps({"images": images, "annotations": [{"image_id": ids[n], "caption": t} for n, t in ROWS]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", as_lines()),
        ("metadata.jsonl", as_lines(("filename", "caption"))),
        ("a.csv", "file_name,caption\n" + "".join(f'{n},"{t}"\n' for n, t in ROWS)),
        ("a.tsv", "image\ttext\n" + "".join(f"{n}\t{t}\n" for n, t in ROWS)),
        ("captions.json", as_coco()),
    ],
)
def test_each_form_gives_images_and_sentences_in_order(folder, name, text):
    file = folder.parent / name
    file.write_text(text)
    assert read_captions(file, folder) == [(folder / n, t) for n, t in ROWS]


def test_text_beside_images(folder):
    (folder / "1.txt").write_text("A man .\n\n A dog \n")
    (folder / "sub" / "3.txt").write_text("A cat")
    (folder / "other.txt").write_text("no image")
    assert captions_beside(folder) == [
        (folder / "1.jpg", "A man ."),
        (folder / "1.jpg", "A dog"),
        (folder / "sub" / "3.jpg", "A cat"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "{", "no captions that can be read"),
        ("a.jsonl", "[1]\n", "line 1 is"),
        ("a.jsonl", '{"file_name": "1.jpg"}\n', r"line 1: expected a caption with words, got None"),
        ("a.csv", "file_name,caption\n,x\n", r"row 1: expected the name of an image file"),
        ("a.csv", "file_name,caption\n", "holds no caption"),
        ("a.jsonl", '{"file_name": "../x.jpg", "text": "a"}\n', "outside of the image folder"),
        ("a.jsonl", '{"file_name": "1.jpg", "text": "a\\u001b[31m"}\n', "control characters"),
        ("a.json", '{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}', "an entry lacks 1"),
        ("a.json", "[]", "an entry lacks"),
    ],
)
def test_bad_files_are_one_error(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_captions(folder / name, folder)


def test_missing_files_are_told(folder):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_captions(folder / "no.csv", folder)
    (folder / "a.csv").write_text("file_name,caption\nno.jpg,a dog\n")
    with pytest.raises(FileNotFoundError, match="names 1 images that are not there"):
        read_captions(folder / "a.csv", folder)
