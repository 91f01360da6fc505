"""Scores on LVIS and Flickr30k Entities in the official layout."""

import json

import pytest
import torch
from suites_on_disk import PEOPLE, write_flickr30k, write_lvis

from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.described import phrases_to_find, read_described
from glip_adapt.data.flickr import read_sentences
from glip_adapt.data.odinw import find_spec
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.metrics.lvis import fixed_ap, standard_ap
from glip_adapt.engine.metrics.recall import recall
from glip_adapt.engine.phrases import evaluate_phrases

SMALL = ViewConfig(short_side=64, max_long_side=120)


@pytest.fixture
def minival(tmp_path):
    write_lvis(tmp_path)
    return load_dataset("lvis/minival", root=tmp_path)


def detector(trunk, data):
    settings = {"names_per_caption": data.names_per_caption}
    return attach(trunk, "zero_shot", classes=data.classes, settings=settings)


@pytest.mark.parametrize(("metric", "score"), [("fixed_ap", fixed_ap), ("lvis_ap", standard_ap)])
def test_lvis_is_scored_as_by_its_own_file(tiny_trunk, minival, metric, score):
    found = evaluate(detector(tiny_trunk, minival), minival.test, SMALL, metric=metric)
    truth = json.loads(minival.test.annotation_file.read_text())
    expected = score(found.predictions, truth)
    assert found.values == expected.values
    assert set(found.values) > {"ap", "ap_rare", "ap_common", "ap_frequent"}
    assert found.values["ap_common"] is None
    assert len(found.predictions) > 0


def test_a_file_without_frequencies_is_refused_before_the_work(tiny_trunk, tmp_path, monkeypatch):
    write_lvis(tmp_path, categories=({"id": 3, "name": "red_box"}, {"id": 7, "name": "blue_box"}))
    data = load_dataset("lvis/minival", root=tmp_path)
    monkeypatch.setattr("glip_adapt.engine.evaluate.predict_split", lambda *_, **__: pytest.fail("it went to work"))
    with pytest.raises(ValueError, match=r"Expected a `frequency` of each class.*'red_box' has None.* a COCO file by"):
        evaluate(detector(tiny_trunk, data), data.test, SMALL, metric="fixed_ap")
    with pytest.raises(ValueError, match=r"Unknown metric 'fixed_app'.*mean 'fixed_ap'"):
        evaluate(detector(tiny_trunk, data), data.test, SMALL, metric="fixed_app")


def test_a_part_of_lvis_keeps_what_its_metrics_need(tiny_trunk, minival):
    one = minival.test.few_shot(1, seed=3, source="sampled")
    assert evaluate(detector(tiny_trunk, minival), one, SMALL, metric="fixed_ap").values.keys() >= {"ap_rare"}


@pytest.fixture
def described(tmp_path):
    write_flickr30k(tmp_path)
    return read_described(find_spec("flickr30k/val"), tmp_path)


def test_phrases_without_a_box_are_not_asked_for(described):
    captions = [phrases_to_find(sentence) for sentence in described.images[0].sentences]
    assert [caption.names for caption in captions] == [("A man", "a dog"), ("A dog",)]
    assert captions[0].text == "A man with a dog on a hill ."
    assert captions[0].spans == ((0, 5), (11, 16))


def test_phrases_are_found_in_their_sentence_and_scored(tiny_trunk, described, tmp_path):
    seen = []
    found = evaluate_phrases(adapt(tiny_trunk, "zero_shot"), described, SMALL, on_image=lambda *at: seen.append(at))
    assert [(entry["image_id"], entry["sentence_id"]) for entry in found.predictions] == [("7", 0), ("7", 1)]
    assert seen == [(1, 1)]
    sentences = read_sentences(tmp_path / "flickr30k" / "flickr30k" / "val.txt")
    for boxes in ("any", "merged"):
        assert found.values[boxes] == recall(found.predictions, sentences, boxes)
    assert set(found.values["any"]) == {"all", "people", "animals"}
    expected = adapt(tiny_trunk, "zero_shot").ground(
        described.folder / "7.jpg", "A man with a dog on a hill .", [(0, 5), (11, 16)], view=SMALL
    )
    assert sum(len(phrase.boxes_xyxy) for phrase in expected.phrases) > 0
    for corners, phrase in zip(found.predictions[0]["boxes"], expected.phrases, strict=True):
        last_pixel = phrase.boxes_xyxy - torch.tensor([0, 0, 1, 1])
        torch.testing.assert_close(torch.tensor(corners).reshape(-1, 4), last_pixel, atol=1e-3, rtol=0)


def test_a_method_bound_to_a_caption_reads_no_sentences(tiny_trunk, described):
    model = attach(tiny_trunk, "prompt", classes=["dog"])
    with pytest.raises(ValueError, match="belong to a caption of classes"):
        evaluate_phrases(model, described, SMALL)


def test_an_image_without_phrases_to_find_counts_nothing(tiny_trunk, tmp_path):
    write_flickr30k(tmp_path, sentences=PEOPLE.replace("#1", "#8").replace("#2", "#9"))
    described = read_described(find_spec("flickr30k/val"), tmp_path)
    found = evaluate_phrases(adapt(tiny_trunk, "zero_shot"), described, SMALL)
    assert (found.predictions, found.values["any"]["all"]["r1"]) == ([], None)


def test_a_missing_image_says_where_it_belongs(tmp_path):
    write_flickr30k(tmp_path)
    (tmp_path / "flickr30k" / "flickr30k_images" / "val" / "7.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image .*val/7\.jpg\. Put flickr30k/flickr30k/val\.txt and the"):
        read_described(find_spec("flickr30k/val"), tmp_path)
