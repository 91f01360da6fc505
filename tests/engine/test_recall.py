"""Recall of phrases: numbers of the public evaluator, and cases computed by hand."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import load_benchmark

from glip_adapt.data.flickr import Phrase, read_sentences
from glip_adapt.engine.metrics.recall import recall

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "parity" / "extra" / "flickr_recall.json").read_text())
LEFT, RIGHT, BOTH, FAR = [0, 0, 40, 40], [60, 0, 100, 40], [0, 0, 100, 40], [300, 300, 310, 310]


@pytest.fixture(scope="module")
def parity():
    yield from load_benchmark("parity_scores")


@pytest.fixture
def split_file(tmp_path, parity):
    return parity.write_entities(GOLDEN, tmp_path)


def phrase(*boxes, types=("people",), text="a man"):
    return Phrase(text=text, types=types, boxes_xyxy=np.array(boxes, dtype=float).reshape(-1, 4))


def entry(*boxes, image_id="7", sentence_id=0):
    return {"image_id": image_id, "sentence_id": sentence_id, "boxes": list(boxes)}


def test_numbers_are_those_of_the_public_evaluator(parity):
    differences = dict(parity.measure_flickr_recall(GOLDEN))
    assert len(differences) == 2 * 4
    assert max(differences.values()) < 1e-9


def test_the_golden_numbers_are_compared_with_what_is_computed(parity):
    other = copy.deepcopy(GOLDEN)
    for prediction in other["predictions"]:
        prediction["boxes"] = [boxes[1:] for boxes in prediction["boxes"]]
    assert max(dict(parity.measure_flickr_recall(other)).values()) > 1e-3


def test_sentences_are_read_as_by_the_public_code(split_file):
    sentences = read_sentences(split_file)
    for image_id, expected in GOLDEN["sentences_parsed"].items():
        boxes = GOLDEN["annotations_parsed"][image_id]["boxes"]
        read = [[(p.text, list(p.types), p.boxes_xyxy.tolist()) for p in phrases] for phrases in sentences[image_id]]
        assert read == [
            [(p["phrase"], p["phrase_type"], boxes.get(p["phrase_id"], [])) for p in sentence["phrases"]]
            for sentence in expected
        ]


@pytest.mark.parametrize(
    ("boxes", "any_box", "merged"),
    [
        ([LEFT], (1, 1, 1, 1), (0, 0, 0, 0)),
        ([BOTH], (0, 0, 0, 0), (1, 1, 1, 1)),
        ([FAR, BOTH, RIGHT], (0, 1, 1, 1), (0, 1, 1, 1)),
        ([FAR] * 5 + [LEFT], (0, 0, 1, 1), (0, 0, 0, 0)),
        ([FAR] * 10 + [BOTH], (0, 0, 0, 0), (0, 0, 0, 1)),
        ([[0, 0, 20, 40]], (1, 1, 1, 1), (0, 0, 0, 0)),  # exactly one half
        ([[0, 0, 0, 0]], (0, 0, 0, 0), (0, 0, 0, 0)),
        ([], (0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_a_phrase_with_two_boxes_is_found_by_either_or_by_the_box_around_both(boxes, any_box, merged):
    truth = {"7": ((phrase(LEFT, RIGHT),),)}
    for kind, expected in (("any", any_box), ("merged", merged)):
        found = recall([entry(boxes)], truth, kind)
        assert found["all"] == found["people"] == dict(zip(("r1", "r5", "r10", "upper_bound"), expected, strict=True))


def test_a_phrase_counts_for_each_of_its_types_and_one_without_boxes_for_none():
    truth = {"7": ((phrase(LEFT, types=("people", "other")), phrase(types=("scene",)), phrase(RIGHT, types=())),)}
    found = recall([entry([LEFT], [LEFT])], truth)
    assert {kind: values["r1"] for kind, values in found.items()} == {"all": 0.5, "people": 1, "other": 1}
    assert recall([], {"7": ((phrase(),),)}) == {"all": dict.fromkeys(("r1", "r5", "r10", "upper_bound"))}


def test_the_first_of_several_predictions_counts_and_those_without_truth_do_not(caplog):
    truth = {"7": ((phrase(LEFT),), (phrase(),))}
    found = recall([entry([LEFT]), entry([FAR]), entry([FAR], sentence_id=1), entry(sentence_id=1)], truth)
    assert found["all"]["r1"] == 1
    assert [record.message for record in caplog.records] == [
        "Entry 1 is a second one for sentence 0 of image 7; the first counts.",
        "Entry 2 is for sentence 1 of image 7, which has no phrase with a true box; it does not count.",
    ]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], r"Expected boxes for 1 sentences; 1 have none, such as sentence 0 of image 7\."),
        ([entry()], r"Entry 0 has boxes for 0 phrases, but sentence 0 of image 7 has 1 with a true box: 'a man'"),
        ([entry([LEFT]), entry([LEFT], image_id="8")], r"Entry 1 is for sentence 0 of image 8, which the truth does"),
        ([entry([LEFT], sentence_id=1)], r"Entry 0 is for sentence 1 of image 7, which the truth does not have"),
    ],
)
def test_predictions_that_do_not_fit_the_sentences_are_refused(predictions, message):
    with pytest.raises(ValueError, match=message):
        recall(predictions, {"7": ((phrase(LEFT),),)})


@pytest.mark.parametrize("part", ["Sentences/37241.txt", "Annotations/37241.xml", "test.txt"])
def test_a_missing_file_is_named(split_file, part):
    (split_file.parent / part).unlink()
    with pytest.raises(FileNotFoundError, match=rf"No file .*{part}: expected the .*Unpack Flickr30k Entities there"):
        read_sentences(split_file)


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("test.txt", "\n", r"test\.txt lists no images"),
        ("Sentences/37241.txt", "A man .\n[/EN#1/people a man .", r"37241\.txt, sentence 1: expected phrases as in"),
        ("Annotations/37241.xml", "<annotation><object>", r"37241\.xml: expected XML of Flickr30k Entities"),
        (
            "Annotations/37241.xml",
            "<annotation><object><name>1</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            r"37241\.xml: expected XML of Flickr30k Entities with whole boxes",
        ),
    ],
)
def test_a_file_in_another_form_is_named(split_file, part, content, message):
    (split_file.parent / part).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sentences(split_file)
