import json
from dataclasses import replace

import pytest
import torch

from glip_adapt.adapters.context import Context
from glip_adapt.core.captions import ClassPrompt, as_prompts
from glip_adapt.engine.adapted import AdaptedTrunk, attach
from glip_adapt.engine.load import load_adapter
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_NANO

CLASSES = ("red box", ClassPrompt(name="blue box", prefix="a ", suffix=" on grey"))
OFFSET = "text_encoder.bert.embeddings.word_embeddings.offset"


def build(trunk, classes=CLASSES, **options):
    return attach(trunk, "context", classes=classes, settings=options)


def move(model, *rows):
    with torch.no_grad():
        offset = model.owned_tensors()[OFFSET]
        offset[list(rows)] += torch.randn(len(rows), offset.shape[1], generator=torch.Generator().manual_seed(1))


def moved_tokens(model, before):
    """The tokens of the caption whose features are no longer what they were."""
    with torch.no_grad():
        (text,) = model.texts()
    return set((text.features != before).any(-1)[0].nonzero().flatten().tolist())


def features(model):
    with torch.no_grad():
        return model.texts()[0].features.clone()


def test_blanks_stand_before_each_prompt_and_no_name_holds_one(tiny_trunk):
    model = build(tiny_trunk, tokens=2)
    assert [(c.prefix, c.name, c.suffix) for c in model.prompts] == [
        ("[MASK] [MASK] ", "red box", ""), ("[MASK] [MASK] a ", "blue box", " on grey"),
    ]  # fmt: skip
    (tokens,) = model.captions
    words = tiny_trunk.tokenizer.words(tokens)
    assert words[:3] == ["[CLS]", "[MASK]", "[MASK]"]
    assert words.count("[MASK]") == 4
    named = [[words[i] for i in row.nonzero().flatten()] for row in tokens.token_map[0]]
    assert ["".join(name).replace("##", "") for name in named] == ["redbox", "bluebox"]


def test_wording_twice_is_wording_once():
    adapter, prompts = Context(tokens=3), as_prompts(CLASSES)
    assert adapter.word(adapter.word(prompts)) == adapter.word(prompts)


@pytest.mark.parametrize(("per_class", "touched"), [(False, {0, 1}), (True, {1})])
def test_a_free_token_is_read_by_every_class_or_by_its_own(tiny_trunk, per_class, touched):
    # Phrases are read alone, so a phrase moves as a whole or not at all.
    trunk = replace(tiny_trunk, network=build_glip(GLIP_NANO).requires_grad_(False))
    separators = trunk.network.text_encoder.separators
    model = build(trunk, tokens=2, per_class=per_class)
    before = features(model)
    move(model, model.owned_tensors()[OFFSET].shape[0] - 1)
    ids = model.captions[0].ids[0]
    phrase = torch.isin(ids, torch.tensor(separators)).cumsum(0) - 1
    expected = {i for i, p in enumerate(phrase.tolist()) if p in touched and int(ids[i]) not in separators}
    assert moved_tokens(model, before) == expected


def test_the_offset_counts_where_its_token_stands(tiny_trunk):
    """Reading a word that the vocabulary has is the same as an offset that leads from the blank to it."""
    classes = ("red box", "blue box")
    model = build(tiny_trunk, classes, tokens=1)
    manual = attach(tiny_trunk, "zero_shot", classes=[ClassPrompt(name=c, prefix="the ") for c in classes])
    words = tiny_trunk.network.text_encoder.bert.embeddings.word_embeddings.weight
    blank, the = (int(m.captions[0].ids[0, 1]) for m in (model, manual))
    with torch.no_grad():
        model.owned_tensors()[OFFSET].copy_(words[the] - words[blank])
    torch.testing.assert_close(features(model), features(manual))


def test_it_loads_for_plain_names_and_for_its_own_prompts(tiny_trunk, tmp_path):
    model = build(tiny_trunk)
    move(model, 0, 3)
    model.save(tmp_path)
    for classes in (None, CLASSES, model.prompts):
        assert torch.equal(features(load_adapter(tmp_path, trunk=tiny_trunk, classes=classes)), features(model))


def test_no_free_token_and_unworded_classes_are_refused(tiny_trunk):
    with pytest.raises(ValueError, match="tokens is 0; expected at least one"):
        build(tiny_trunk, tokens=0)
    with pytest.raises(ValueError, match=r"tokens is 254; .* at most 253"):
        build(tiny_trunk, tokens=254)
    with pytest.raises(ValueError, match=r"4 blanks before each name\. Attach by glip_adapt\.attach"):
        AdaptedTrunk(tiny_trunk, Context()).for_prompts(as_prompts(("red box", "blue box")))


def test_a_saved_adapter_cannot_ask_for_more_free_tokens_than_a_caption_holds(tiny_trunk, tmp_path):
    build(tiny_trunk).save(tmp_path)
    file = tmp_path / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": {"tokens": 10**18}}))  # far beyond any memory
    for classes in (None, CLASSES):
        with pytest.raises(ValueError, match="at most 253"):
            load_adapter(tmp_path, trunk=tiny_trunk, classes=classes)
