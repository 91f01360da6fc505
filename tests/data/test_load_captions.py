"""Captioned datasets: each format by hand, the numbers of the public parser, and what holds for all captions."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captioned_files import DETECTED, entry, grounded, mdetr, positive, write_flickr, write_pictures, xml
from conftest import load_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.captions import build_caption
from glip_adapt.data.caption_entries import caption_of, span_of
from glip_adapt.data.captioned import CaptionedImage
from glip_adapt.data.captions import load_captions
from glip_adapt.data.captions.odvg import _Others
from glip_adapt.data.split import ImageRecord

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "parity" / "extra" / "flickr_recall.json").read_text())


@pytest.fixture(scope="module")
def parity():
    yield from load_benchmark("parity_scores")


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path)


def boxes_of(image):
    """Return (phrase, left, top, right, bottom) of each box that training learns from."""
    target = image.record.target
    names = [image.caption.names[label] for label in target.labels.tolist()]
    return [(name, *box) for name, box in zip(names, target.boxes_xyxy.tolist(), strict=True)]


def phrases_of(image):
    return [(image.caption.text[start:end], start, end) for start, end in image.caption.spans]


def test_each_sentence_of_flickr_is_a_caption_with_the_boxes_of_its_chains(folder):
    split = load_captions(
        write_flickr(
            folder,
            "[/EN#1/people A man] with [/EN#2/animals a  dog] .\n\n"
            "  Two of [/EN#1/people them] at [/EN#0/notvisual noon]\n",
            xml(1, 2, 3, 10, 20) + xml(2, 0, 0, 40, 30) + xml(1, 5, 6, 7, 8) + xml(2, 4, 4, 4, 9) + xml(9, 1, 1, 9, 9),
        )
    )
    first, second = split.images
    assert (split.name, first.record.image_id, second.record.path) == ("train", "1", folder / "images" / "1.jpg")
    assert first.record.size_hw == (30, 40)
    assert first.caption.text == "A man with a dog"  # a stop at the end goes when sentences are joined
    assert first.sentences[0].text == "A man with a dog ."
    assert phrases_of(first) == [("A man", 0, 5), ("a dog", 11, 16)]
    assert boxes_of(first) == [("A man", 2, 3, 10, 20), ("A man", 5, 6, 7, 8), ("a dog", 0, 0, 39, 29)]
    assert phrases_of(second) == [("them", 7, 11), ("noon", 15, 19)]
    assert boxes_of(second) == [("them", 2, 3, 10, 20), ("them", 5, 6, 7, 8)]
    assert tuple(first.absent) == ()


@pytest.mark.parametrize("name", ["images", "flickr30k-images", "flickr30k_images", "elsewhere"])
def test_images_lie_beside_the_list_or_where_one_says(folder, name):
    listed = write_flickr(folder, "[/EN#1/people A man] .")
    (folder / "images").rename(folder / name)
    (folder / "flickr30k_images").mkdir(exist_ok=True)  # one without the image is passed by
    split = load_captions(str(listed), folder / name if name == "elsewhere" else None)
    assert split.images[0].record.path == folder / name / "1.jpg"


def test_sentences_of_flickr_are_those_of_the_public_parser(tmp_path, parity):
    listed = parity.write_entities(GOLDEN, tmp_path)
    (tmp_path / "images").mkdir()
    for image_id in GOLDEN["test_ids"]:
        (tmp_path / "images" / f"{image_id}.jpg").touch()
    expected = []
    for image_id in GOLDEN["test_ids"]:
        annotations = GOLDEN["annotations_parsed"][image_id]
        limit = np.array([annotations["width"], annotations["height"]] * 2) - 1
        for sentence in GOLDEN["sentences_parsed"][image_id]:
            phrases = [phrase["phrase"] for phrase in sentence["phrases"]]
            boxes = [annotations["boxes"].get(phrase["phrase_id"], []) for phrase in sentence["phrases"]]
            pairs = [(p, *np.minimum(box, limit)) for p, its in zip(phrases, boxes, strict=True) for box in its]
            expected.append((image_id, sentence["sentence"], phrases, pairs))
    read = [
        (image.record.image_id, image.sentences[0].text, list(image.caption.names), boxes_of(image))
        for image in load_captions(listed).images
    ]
    assert read == expected
    assert sum(len(pairs) for *_, pairs in expected) > 20


def test_images_of_mdetr_have_one_phrase_for_each_span(folder):
    images = [entry(), entry(id="b", file_name="sub\\3.jpg", caption="Nothing .\t")]
    annotations = [
        positive([[11, 16]]),
        positive([[0, 1], [2, 5]]),  # "A", "man": from the first start to the last end
        positive([[2, 5], [0, 1]], bbox=[3, 4, 5, 6]),
        positive([], bbox=[0, 0, 9, 9]),
        positive([[10, 17]], bbox=[30, 20, 30, 20]),  # with blanks around it, and partly outside
        positive(bbox=[3, 4, 1, 20]),
        positive(bbox=[3, 4, 9, 9], iscrowd=1),
    ]
    (folder / "final.json").write_text(mdetr(images, annotations))
    split = load_captions(folder / "final.json")
    first, second = split.images
    assert (split.name, first.record.image_id, second.record.image_id) == ("final", 7, "b")
    assert second.record.path == folder / "images" / "sub/3.jpg"
    assert phrases_of(first) == [("a dog", 11, 16), ("A man", 0, 5)]
    assert boxes_of(first) == [
        ("a dog", 1, 2, 10, 21),
        ("A man", 1, 2, 10, 21),
        ("A man", 3, 4, 7, 9),
        ("a dog", 30, 20, 39, 29),
    ]
    assert (second.caption.text, phrases_of(second), boxes_of(second)) == ("Nothing", [], [])


def test_regions_of_odvg_have_the_span_of_their_tokens_or_of_their_words(folder):
    text = grounded(
        {"phrase": "a DOG", "bbox": [1, 2, 11, 22]},
        {"phrase": "man", "bbox": [[0, 0, 5, 5], [6, 6, 9, 50], [3, 3, 3.5, 9]]},
        {"phrase": "?", "bbox": [7, 7, 9, 9], "tokens_positive": [[0, 1], [2, 5]]},
        {"phrase": "dog", "bbox": [2, 2, 9, 9], "tokens_positive": [[11, 16]]},
        {"phrase": "with", "bbox": []},
    )
    (folder / "train_od.json").write_text("\n" + text)  # mmdetection writes lines into .json as well
    (image,) = load_captions(folder / "train_od.json").images
    assert (image.record.image_id, image.record.path) == ("1.jpg", folder / "images" / "1.jpg")
    assert phrases_of(image) == [("a dog", 11, 16), ("man", 2, 5), ("A man", 0, 5), ("with", 6, 10)]
    assert boxes_of(image) == [
        ("a dog", 1, 2, 10, 21),
        ("man", 0, 0, 4, 4),
        ("man", 6, 6, 8, 29),
        ("A man", 7, 7, 8, 8),
        ("a dog", 2, 2, 8, 8),
    ]
    assert tuple(image.absent) == ()


def test_classes_of_odvg_are_sentences_and_the_others_of_the_file_are_absent(folder):
    (folder / "a.jsonl").write_text(DETECTED)
    first, captioned, last = load_captions(folder / "a.jsonl").images
    assert [sentence.text for sentence in first.sentences] == ["traffic light", "owl"]
    assert phrases_of(first) == [("traffic light", 0, 13), ("owl", 15, 18)]
    assert boxes_of(first) == [("traffic light", 1, 2, 10, 21), ("owl", 0, 0, 8, 8), ("traffic light", 5, 5, 8, 8)]
    assert [tuple(image.absent) for image in (first, captioned, last)] == [("ant",), (), ("traffic light", "owl")]
    assert pickle.loads(pickle.dumps(first)).absent == first.absent


def test_a_label_map_names_the_classes_of_odvg(folder):
    (folder / "a_label_map.json").write_text(json.dumps({"0": "bird", "1": "bug", "2": "cat_(pet)", "3": "lamp"}))
    (folder / "a_od.jsonl").write_text(DETECTED)
    first, _, last = load_captions(folder / "a_od.jsonl").images
    assert first.caption.text == "lamp. bird"
    assert [tuple(first.absent), tuple(last.absent)] == [("bug", "cat"), ("bird", "cat", "lamp")]


def test_of_several_label_maps_that_of_the_file_is_taken(folder):
    for name, word in (("a", "one"), ("a_b", "two"), ("c", "three")):
        (folder / f"{name}_label_map.json").write_text(json.dumps({str(n): f"{word} {n}" for n in range(4)}))
    for name, text in (("a_x", "one 3. one 0"), ("a_b_x", "two 3. two 0")):
        (folder / f"{name}.jsonl").write_text(DETECTED)
        assert load_captions(folder / f"{name}.jsonl").images[0].caption.text == text
    (folder / "x.jsonl").write_text(DETECTED)
    with pytest.raises(
        ValueError, match=r"several label maps, and none is named after x\.jsonl\. Name its own one x_lab"
    ):
        load_captions(folder / "x.jsonl")


@given(st.integers(0, 12), st.sets(st.integers(0, 11)))
def test_the_others_are_all_names_but_those(count, without):
    names = tuple(map(str, range(count)))
    left_out = tuple(sorted(position for position in without if position < count))
    expected = tuple(name for position, name in enumerate(names) if position not in left_out)
    others = _Others(names, left_out)
    assert (tuple(others), len(others), others[1:-1], others[::-1]) == (
        expected, len(expected), expected[1:-1], expected[::-1]
    )  # fmt: skip
    with pytest.raises(IndexError):
        others[len(expected)]


@st.composite
def _texts(draw):
    """Return a text, and spans of words in it."""
    text = draw(st.text("ab .é\t", min_size=1, max_size=20).filter(lambda t: t.strip(" \t.")))
    ends = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))
    return text, draw(st.lists(ends.filter(lambda s: text[s[0] : s[1]].strip()).map(list), max_size=4))


@given(_texts())
def test_a_span_has_no_blanks_around_its_words(drawn):
    text, pairs = drawn
    for pair in pairs:
        start, end = span_of([pair], text, "here")
        assert text[start:end] == text[pair[0] : pair[1]].strip()
        assert pair[0] <= start < end <= pair[1]
    if pairs:
        start, end = span_of(pairs, text, "here")
        low, high = min(s for s, _ in pairs), max(e for _, e in pairs)
        assert text[start:end] == text[low:high].strip()


@given(
    _texts(),
    st.lists(st.sampled_from(["owl", "ant", "tawny owl", "a. b", "c."]), unique=True, max_size=5),
    st.integers(0, 4),
    st.integers(0, 6),
    st.integers(0, 9),
)
@settings(deadline=None)
def test_a_drawn_caption_keeps_all_phrases_and_each_absent_name_comes_at_most_once(drawn, names, cut, negatives, seed):
    text, pairs = drawn
    spans = list(dict.fromkeys(span_of([pair], text, "here") for pair in pairs))
    record = ImageRecord(1, Path("1.jpg"), (30, 40), lambda: None)
    sentences = [caption_of(text, spans), *(build_caption([name]) for name in names[:cut])]
    absent = _Others(tuple(names), tuple(range(min(cut, len(names)))))
    image = CaptionedImage(record=record, sentences=tuple(sentences), absent=absent)
    phrases = [sentence.text[start:end] for sentence in sentences for start, end in sentence.spans]
    assert [image.caption.text[start:end] for start, end in image.caption.spans] == phrases
    caption = image.drawn(negatives, np.random.default_rng(seed))
    read = [caption.text[start:end] for start, end in caption.spans]
    assert read[: len(phrases)] == phrases
    assert read == list(caption.names)
    added = read[len(phrases) :]
    assert len(set(added)) == len(added) == min(negatives, len(image.absent))
    assert set(added) <= set(image.absent)


def test_the_absent_names_of_a_file_can_be_drawn(folder):
    (folder / "a.jsonl").write_text(DETECTED)
    last = load_captions(folder / "a.jsonl").images[-1]
    texts = {last.drawn(1, np.random.default_rng(seed)).text for seed in range(40)}
    assert texts == {"ant. owl", "owl. ant", "ant. traffic light", "traffic light. ant"}


def test_captions_are_read_without_torch(folder):
    (folder / "a.jsonl").write_text(DETECTED)
    code = "import sys; from glip_adapt import load_captions; load_captions(sys.argv[1]).images[0].caption; "
    report = code + "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", report, folder / "a.jsonl"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
