"""Phrases of sentences, found by both families, with and without an adapter."""

import numpy as np
import pytest
import torch
from PIL import Image

from glip_adapt.core.captions import build_caption
from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.engine.adapted import adapt, attach

SMALL = ViewConfig(short_side=64, max_long_side=120)
SENTENCE = "the [red box] is near a [blue box] and a [red box]"
PLAIN = SENTENCE.replace("[", "").replace("]", "")
SPANS = ((4, 11), (22, 30), (37, 44))
IMAGE = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


@pytest.fixture(params=["tiny_trunk", "dino_trunk"])
def trunk(request):
    return request.getfixturevalue(request.param)


def test_each_phrase_has_its_span_and_its_boxes(trunk):
    found = adapt(trunk, "zero_shot").ground(IMAGE, SENTENCE, view=SMALL)
    assert [(phrase.text, phrase.span) for phrase in found.phrases] == [
        (PLAIN[start:end], (start, end)) for start, end in SPANS
    ]
    assert sum(len(phrase.boxes_xyxy) for phrase in found.phrases) == len(found) > 0
    for label, phrase in enumerate(found.phrases):
        assert torch.equal(phrase.scores, found.scores[found.labels == label])
        assert torch.equal(phrase.boxes_xyxy, found.boxes_xyxy[found.labels == label])


def test_only_boxes_above_the_threshold_are_returned(trunk):
    ground = adapt(trunk, "zero_shot").ground
    every = ground(IMAGE, SENTENCE, view=SMALL)
    middle = every.scores.median().item()
    some = ground(IMAGE, SENTENCE, view=SMALL, threshold=middle)
    assert 0 < len(some) < len(every)
    assert some.scores.min() >= middle
    assert len(some.phrases) == 3


def test_a_sentence_of_names_is_the_caption_of_these_classes(trunk):
    classes = ["red box", "blue box", "tree"]
    caption = build_caption(classes)
    named = attach(trunk, "zero_shot", classes=classes).predict(IMAGE, view=SMALL)
    found = adapt(trunk, "zero_shot").ground(IMAGE, caption.text, list(caption.spans), view=SMALL)
    assert torch.equal(found.boxes_xyxy, named.boxes_xyxy)
    assert torch.equal(found.scores, named.scores)
    assert torch.equal(found.labels, named.labels)
    assert (found.class_names, found.spans, named.spans) == (named.class_names, caption.spans, ())
    assert named.phrases == ()


def test_the_words_around_a_phrase_count(trunk):
    ground = adapt(trunk, "zero_shot").ground
    near, far = (ground(IMAGE, text, view=SMALL) for text in ("a [red box] here", "a [red box] on a tree"))
    assert not torch.equal(near.scores, far.scores)


def test_noun_phrases_come_from_the_tagger(trunk):
    def tagger(sentence):
        return [("the", "DT"), ("red", "JJ"), ("box", "NN"), ("is", "VBZ")]

    found = adapt(trunk, "zero_shot").ground(IMAGE, PLAIN, tagger=tagger, view=SMALL)
    assert [(phrase.text, phrase.span) for phrase in found.phrases] == [("the red box", (0, 11))]


@pytest.mark.parametrize("method", ["linear_probe", "lora"])
def test_an_adapted_model_grounds_by_its_own_tensors(trunk, method):
    model = attach(trunk, method, classes=["red box"])
    with torch.no_grad():
        for tensor in model.owned_tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    ours, plain = (m.ground(IMAGE, SENTENCE, view=SMALL) for m in (model, adapt(trunk, "zero_shot")))
    assert len(ours.phrases) == len(plain.phrases) == 3
    assert not torch.equal(ours.scores, plain.scores)
    caption = build_caption(["red box"])
    same = model.ground(IMAGE, caption.text, list(caption.spans), view=SMALL)
    assert torch.equal(same.scores, model.predict(IMAGE, view=SMALL).scores)


@pytest.mark.parametrize("method", ["prompt", "context"])
def test_tensors_of_one_caption_read_no_sentence(trunk, method):
    model = attach(trunk, method, classes=["red box"])
    with pytest.raises(ValueError, match=f"{method} belong to a caption of classes.*Take zero_shot"):
        model.ground(IMAGE, SENTENCE)


def test_a_model_for_a_sentence_is_not_saved_as_one_for_classes(tiny_trunk, tmp_path):
    model = attach(tiny_trunk, "lora", classes=["red box"]).for_sentence(sentence_caption(SENTENCE))
    with pytest.raises(ValueError, match="is not saved"):
        model.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_full_stop_at_the_end_of_a_sentence_is_not_doubled(dino_trunk):
    encode = dino_trunk.tokenizer.encode
    with_stop, without = (encode(sentence_caption(f"a [red box]{end}")) for end in (".", ""))
    assert torch.equal(with_stop.ids, without.ids)


def test_any_image_that_predict_takes_will_do(tiny_trunk, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    ground = adapt(tiny_trunk, "zero_shot").ground
    assert torch.equal(ground(tmp_path / "a.png", SENTENCE).scores, ground(IMAGE, SENTENCE).scores)
