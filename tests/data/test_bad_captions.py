"""What a captioned dataset says that is not in its format, or not complete."""

import json

import pytest
from captioned_files import (
    DETECTED,
    detected,
    entry,
    grounded,
    line,
    mdetr,
    positive,
    write_flickr,
    write_pictures,
    xml,
)

from glip_adapt.data.captions import load_captions


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path)


MAN = {"phrase": "man", "bbox": [0, 0, 5, 5]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json holds no captions in a known format\. Expected flickr: .*; mdetr: .*; odvg: "),
        ("a.csv", "x", r"a\.csv holds no captions in a known format"),
        ("a.json", '{"images": [', r"a\.json: expected JSON, which cannot be read \(Expecting"),
        ("a.json", mdetr([], []), r"a\.json: expected an object with a list of images, got \[\]"),
        ("a.json", '{"images": [{}]}', r"a\.json: expected an object with a list of annotations, got None"),
        ("a.json", mdetr([entry(), 3], []), r"a\.json, image 1: expected an object with id, got 3"),
        ("a.json", mdetr([entry(), entry()], []), r"image 1: the id 7 stands twice"),
        ("a.json", mdetr([entry(file_name=None)], []), r"image 0: expected the name of an image file, got None"),
        ("a.json", mdetr([entry(file_name="../1.jpg")], []), r"image 0: the image '../1.jpg' is outside of the image"),
        ("a.json", mdetr([entry(file_name="/etc/1.jpg")], []), r"image 0: the image '/etc/1.jpg' is outside of the"),
        ("a.json", mdetr([entry(file_name="b\\..\\..\\1.jpg")], []), r"image 0: the image .* is outside of the image"),
        ("a.json", mdetr([entry(height=0)], []), r"image 0: expected height and width in pixels, got \[0, 40\]"),
        ("a.json", mdetr([entry(caption=" . ")], []), r"image 0: expected a caption with words, got ' \. '"),
        ("a.json", mdetr([entry(caption=None)], []), r"image 0: expected a caption with words, got None"),
        ("a.json", mdetr([entry(caption="a\x1bb")], []), r"image 0: the caption 'a\\x1bb' holds control characters"),
        ("a.json", mdetr([entry()], [{"image_id": 8}]), r"annotation 0: no image has the id 8"),
        ("a.json", mdetr([entry()], [None]), r"annotation 0: expected an object with image_id, got None"),
        ("a.json", mdetr([entry()], [{"image_id": 7}]), r"annotation 0: expected an object with tokens_positive"),
        ("a.json", mdetr([entry()], [positive([[0, 19]])]), r"annotation 0: expected spans .* has 18 characters, got"),
        ("a.json", mdetr([entry()], [positive([[5, 5]])]), r"annotation 0: expected spans"),
        ("a.json", mdetr([entry()], [positive([[5, 6]])]), r"annotation 0: expected spans"),
        ("a.json", mdetr([entry()], [positive([[-1, 6]])]), r"annotation 0: expected spans"),
        ("a.json", mdetr([entry()], [positive([[0, 1, 2]])]), r"annotation 0: expected spans"),
        ("a.json", mdetr([entry()], [positive(), positive(bbox=[1])]), r"annotation 1: expected a box of four finite"),
        ("a.json", mdetr([entry()], [positive(bbox=[1, 2, 3, float("nan")])]), r"annotation 0: expected a box of four"),
        ("a.json", mdetr([entry()], [positive() | {"bbox": "1234"}]), r"annotation 0: expected a box of four"),
        ("a.jsonl", grounded(MAN) + "\n{", r"a\.jsonl, line 3: expected JSON, which cannot be read"),
        ("a.jsonl", "[]", r"a\.jsonl, line 1: expected an object, got \[\]"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: expected JSON, which cannot be read"),
        ("a.jsonl", "\n", r"a\.jsonl holds no image with a caption or instances"),
        ("a.jsonl", detected(), r"a\.jsonl holds no image with a caption or instances"),
        ("a.jsonl", line(), r"line 1: expected an object under either grounding or detection, got"),
        (
            "a.jsonl",
            line(grounding={}, detection={}),
            r"line 1: expected an object under either grounding or detection",
        ),
        ("a.jsonl", line(grounding=[]), r"line 1: expected an object under either grounding or detection"),
        ("a.jsonl", line("../1.jpg", grounding={}), r"line 1: the image '../1.jpg' is outside of the image folder"),
        ("a.jsonl", line(grounding={"regions": []}), r"line 1: expected a caption with words, got None"),
        ("a.jsonl", line(grounding={"caption": "a"}), r"line 1: expected a list of regions, got None"),
        ("a.jsonl", grounded(MAN, 3), r"line 1, region 1: expected an object with bbox, got 3"),
        ("a.jsonl", grounded({"phrase": "cat", "bbox": []}), r"line 1, region 0: The phrase 'cat' does not stand in"),
        ("a.jsonl", grounded({"bbox": []}), r"line 1, region 0: expected a phrase of the caption 'A man .*, got None"),
        ("a.jsonl", grounded({"phrase": "man"}), r"line 1, region 0: expected a box of four finite numbers, got None"),
        ("a.jsonl", grounded(MAN | {"tokens_positive": [[40, 50]]}), r"line 1, region 0: expected spans"),
        ("a.jsonl", line(detection={}), r"line 1: expected a list of instances, got None"),
        ("a.jsonl", detected((0, None, [0, 0, 5, 5])), r"line 1, instance 0: expected the name of a class, got None"),
        (
            "a.jsonl",
            detected((0, "(x)", [0, 0, 5, 5])),
            r"line 1, instance 0: expected the name of a class, got '\(x\)'",
        ),
        ("a.jsonl", detected((0, "owl", [0, 0])), r"line 1, instance 0: expected a box of four finite numbers"),
        (
            "a.jsonl",
            json.dumps({"filename": "1.jpg", "grounding": {"caption": "a", "regions": []}}),
            r"line 1: expected h",
        ),
    ],
)
def test_a_bad_file_gets_one_error_with_its_place(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_captions(folder / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"label_map\.json: expected JSON, which cannot be read"),
        ("[]", r"label_map\.json: expected names by label, such as .*, got \[\]"),
        ('{"0": 3}', r"label_map\.json, label '0': expected the name of a class, got 3"),
        ('{"0": "owl"}', r"a\.jsonl, line 1, instance 0: the label map has no label 3"),
    ],
)
def test_a_bad_label_map_is_named(folder, content, message):
    (folder / "label_map.json").write_text(content)
    (folder / "a.jsonl").write_text(DETECTED)
    with pytest.raises(ValueError, match=message):
        load_captions(folder / "a.jsonl")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sentences": "[/EN#1/people A man"}, r"1\.txt, sentence 0: expected phrases as in"),
        ({"sentences": "A \x1b man"}, r"1\.txt, sentence 0: the caption 'A \\x1b man' holds control characters"),
        ({"sentences": "x\n ."}, r"1\.txt, sentence 1: expected a caption with words"),
        ({"sentences": "x [/EN#1/people  ]"}, r"1\.txt, sentence 0: expected spans"),
        ({"sentences": "x", "size": ""}, r"1\.xml: expected the height and width of the image, got none"),
        ({"sentences": "x", "ids": " \n"}, r"train\.txt lists no images"),
        (
            {"sentences": "[/EN#1/people A man]", "objects": xml(1, "nan", 2, 3, 4)},
            r"1\.txt, sentence 0, phrase 'A man': expected a box of four finite numbers",
        ),
    ],
)
def test_a_bad_file_of_flickr_is_named(folder, facts, message):
    with pytest.raises(ValueError, match=message):
        load_captions(write_flickr(folder, **facts))


def test_what_is_missing_is_named(folder):
    listed = write_flickr(folder, "A man .")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*b\.txt\. Expected flickr: "):
        load_captions(folder / "b.txt")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*pictures\. Pass the folder of the images as"):
        load_captions(listed, folder / "pictures")
    with pytest.raises(FileNotFoundError, match=r"names 1 images that are not there, such as .*sub/1\.jpg\. Pass the"):
        load_captions(listed, folder / "images" / "sub")
    (folder / "Sentences" / "1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*1\.txt: expected the sentences of an image"):
        load_captions(listed)
