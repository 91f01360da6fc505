"""Names with descriptions in captions: only the name is matched, and what is too long is cut at a sentence."""

import pytest

from glip_adapt.core.captions import MAX_TOKENS, ClassPrompt
from glip_adapt.core.knowledge import Knowledge
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.describing import describe_classes
from glip_adapt.trunks.tokenizer import CaptionTooLongError

LONG = "the red dog " * 20  # 60 tokens or more


@pytest.fixture
def describe(tiny_trunk):
    def describe(texts):
        return describe_classes(
            list(texts), Knowledge("wiki", {n: t for n, t in texts.items() if t}), tiny_trunk.tokenizer
        )

    return describe


def test_a_description_follows_its_name_and_no_full_stop_ends_a_class_within(describe):
    assert describe({"dog": "An animal. Is it red? 1.5 m high;  barks...", "box": None}) == (
        ClassPrompt(name="dog", suffix=": An animal; Is it red; 1 5 m high; barks"),
        ClassPrompt(name="box"),
    )


def test_only_the_tokens_of_the_name_are_matched(describe, tiny_trunk):
    (tokens,) = attach(tiny_trunk, "zero_shot", classes=describe({"dog": "a red dog", "arrow": "a dog"})).captions
    words = tiny_trunk.tokenizer.words(tokens)
    matched = [["".join(w for w, own in zip(words, row, strict=True) if own)] for row in tokens.token_map[0].tolist()]
    assert matched == [["do##g"], ["arrow"]]
    assert [row.nonzero()[0].item() for row in tokens.token_map[0]] == [1, words.index("arrow")]
    assert words.count("##g") == 3


def test_descriptions_that_do_not_fit_together_take_several_captions(describe, tiny_trunk):
    model = attach(tiny_trunk, "zero_shot", classes=describe(dict.fromkeys(("dog", "box", "arrow", "cat"), LONG * 2)))
    assert len(model.captions) > 1
    assert sum(model.class_counts) == 4
    assert all(tokens.ids.shape[1] <= MAX_TOKENS for tokens in model.captions)


def test_one_description_alone_is_cut_at_the_last_sentence_that_fits(describe, tiny_trunk, caplog):
    (prompt,) = describe({"dog": f"A short one. {LONG}. {LONG}{LONG}{LONG}. Its end."})
    assert prompt.suffix == f": A short one; {LONG.strip()}"
    assert "wiki about 'dog': 2 of 4 sentences fit" in caplog.text
    attach(tiny_trunk, "zero_shot", classes=[prompt])


def test_a_first_sentence_longer_than_a_caption_is_an_error(describe):
    with pytest.raises(CaptionTooLongError, match=r"first sentence of 'wiki' about 'dog' is longer .* 254 tokens"):
        describe({"dog": LONG * 5})
