"""The verb ``detect`` on sentences."""

import json
import sys
from types import ModuleType

import pytest
from PIL import Image

from glip_adapt import attach, bake, load_trunk

SMALL = ["--short-side", "64"]
SENTENCE = "a [red box] next to [a blue box]"


@pytest.fixture
def detect(glip, coco_folder, tmp_path):
    """Detect in one image of 0.png; return exit code, result and errors."""

    def run(*options):
        image, out = coco_folder / "test" / "0.png", tmp_path / "found"
        code, _, err = glip("detect", image, *options, "--out", out, "--threshold", "0", *SMALL)
        return code, json.loads((out / "0.json").read_text()) if code == 0 else None, err

    return run


def test_a_sentence_gives_phrases_with_their_spans_and_is_drawn_below_the_image(detect, coco_folder, tmp_path):
    code, result, err = detect("--caption", SENTENCE)
    assert code == 0, err
    assert result["sentence"] == "a red box next to a blue box"
    assert {(box["phrase"], *box["span"]) for box in result["detections"]} == {
        ("red box", 2, 9),
        ("a blue box", 18, 28),
    }
    assert all(box["class"] == box["phrase"] for box in result["detections"])
    before, drawn = Image.open(coco_folder / "test" / "0.png"), Image.open(tmp_path / "found" / "0.png")
    assert drawn.width == before.width
    assert drawn.height > before.height


@pytest.mark.parametrize("names", [("--classes", "red box"), ("--caption", "box"), ("--caption", "red box. blue box.")])
def test_names_have_neither_phrase_nor_span(detect, names):
    code, result, err = detect(*names)
    assert code == 0, err
    assert "sentence" not in result
    assert {"phrase", "span"}.isdisjoint(result["detections"][0])


def test_without_brackets_the_noun_phrases_are_taken(detect, monkeypatch):
    nltk, tags = ModuleType("nltk"), {"a": "DT", "red": "JJ", "box": "NN"}
    nltk.word_tokenize, nltk.pos_tag = str.split, lambda words: [(word, tags.get(word, "RB")) for word in words]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    code, result, err = detect("--caption", "There is a red box there.")
    assert code == 0, err
    assert {(box["phrase"], *box["span"]) for box in result["detections"]} == {("a red box", 9, 18)}


def test_without_nltk_the_error_says_what_to_do(detect, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    code, _, err = detect("--caption", "There is a red box.")
    assert code == 1
    assert "pip install 'glip-adapt[phrases]'" in err
    assert "Brackets need nothing" in err


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_an_adapter_reads_a_sentence_unless_its_tensors_belong_to_a_caption(detect, tmp_path, method):
    attach(load_trunk("glip-nano"), method, classes=["red box"]).save(tmp_path / "adapter")
    code, result, err = detect("--caption", SENTENCE, "--adapter", tmp_path / "adapter")
    assert (code, "belong to a caption of classes" in err) == ((0, False) if method == "lora" else (1, True))
    assert method == "prompt" or result["sentence"]


def test_a_baked_model_reads_none(detect, tmp_path):
    bake(attach(load_trunk("glip-nano"), "zero_shot", classes=["red box"])).save(tmp_path / "baked")
    code, _, err = detect("--caption", SENTENCE, "--adapter", tmp_path / "baked")
    assert (code, "has no text encoder" in err) == (1, True)


@pytest.mark.parametrize("caption", ["a [red box", "[]", "a [ ] b"])
def test_brackets_that_do_not_pair_are_an_error(detect, caption):
    code, _, err = detect("--caption", caption)
    assert (code, "do not pair, or are empty" in err) == (1, True)
