import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.captions import MAX_TOKENS, Caption, ClassPrompt, build_caption
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.glip import text
from glip_adapt.trunks.glip.text import TextEncoder, phrase_attention
from glip_adapt.trunks.tokenizer import SPECIAL_TOKENS, CaptionTooLongError, Tokenizer

TESTS = Path(__file__).resolve().parents[1]
VOCABULARY = TESTS.parents[1] / "shared" / "parity" / "vocab.txt"
GOLDEN = json.loads((TESTS / "parity" / "text.json").read_text())
SIGNS = string.ascii_lowercase + string.digits
# One token per letter or digit, so token counts can be told by looking.
SPELLING = [*SPECIAL_TOKENS, ".", *SIGNS, *(f"##{sign}" for sign in SIGNS), *string.punctuation.replace(".", "")]
NANO = Tokenizer(SPELLING)

few = settings(max_examples=40, deadline=None)
words = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
names = st.lists(words, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from(" -_'").map(lambda joint: joint.join(parts))
)
long_names = st.text(string.ascii_lowercase, min_size=10, max_size=90)


def spelled(tokens, row):
    """The characters that the tokens of one class stand for."""
    pieces = NANO.words(tokens)
    return "".join(pieces[t].removeprefix("##") for t in row.nonzero().flatten().tolist())


@given(st.lists(names, min_size=1, max_size=6))
@few
def test_the_tokens_of_a_class_spell_its_name(classes):
    caption = build_caption(classes)
    tokens = NANO.encode(caption)
    assert tokens.token_map.shape == (1, len(classes), tokens.ids.shape[1])
    for row, name in zip(tokens.token_map[0], caption.names, strict=True):
        assert spelled(tokens, row) == name.lower().replace(" ", "")


@given(st.lists(names, min_size=1, max_size=6))
@few
def test_no_token_belongs_to_two_classes_or_to_a_separator(classes):
    tokens = NANO.encode(build_caption(classes))
    assert tokens.token_map[0].sum(0).max() == 1
    pieces = NANO.words(tokens)
    assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
    between = [piece for piece, used in zip(pieces, tokens.token_map[0].any(0), strict=True) if not used]
    assert between == ["[CLS]", *["."] * (len(classes) - 1), "[SEP]"]
    assert tokens.mask.all()


@given(st.lists(long_names, min_size=1, max_size=40))
@few
def test_chunks_hold_all_classes_in_order_and_as_many_as_fit(classes):
    chunks = NANO.encode_in_chunks(classes)
    rows = [(chunk, row) for chunk in chunks for row in chunk.token_map[0]]
    cleaned = [build_caption([name]).names[0].lower().replace(" ", "") for name in classes]
    assert [spelled(chunk, row) for chunk, row in rows] == cleaned
    start = 0
    for chunk in chunks[:-1]:
        assert chunk.ids.shape[1] <= MAX_TOKENS
        end = start + chunk.token_map.shape[1]
        with pytest.raises(CaptionTooLongError):
            NANO.encode(build_caption(classes[start : end + 1]))
        start = end


@pytest.mark.skipif(not VOCABULARY.is_file(), reason="the vocabulary of bert-base-uncased is not in ../shared/parity")
@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: "-".join(entry["labels"])[:40])
def test_ids_and_class_maps_equal_the_public_code(entry):
    worded = entry["manual_prompt"]
    classes = [ClassPrompt(**prompt) for prompt in worded] if worded else entry["labels"]
    tokens = Tokenizer.from_file(VOCABULARY).encode(build_caption(classes))
    assert tokens.ids[0].tolist() == entry["input_ids"]
    found = {str(k): row.nonzero().flatten().tolist() for k, row in enumerate(tokens.token_map[0], start=1)}
    assert found == entry["positive_map"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (ClassPrompt(name="ab", prefix=" ", suffix=" c d"), "ab"),
        (ClassPrompt(name="ab (wood)", suffix=" c"), "ab"),  # the name ends in a space: look to the left
        (ClassPrompt(name=" ab", prefix="c"), "ab"),  # it starts with one: look to the right
        (ClassPrompt(name="Émile", prefix="a "), "emile"),  # lowercased and without accents
        (ClassPrompt(name="ab", prefix="c"), "cab"[1:]),  # from within a word
    ],
)
def test_only_the_name_is_mapped_whatever_surrounds_it(prompt, expected):
    tokens = NANO.encode(build_caption(["x", prompt, "y"]))
    assert spelled(tokens, tokens.token_map[0, 1]) == expected


def test_hand_computed_tokens():
    tokens = NANO.encode(build_caption(["cab", "b"]))
    assert NANO.words(tokens) == ["[CLS]", "c", "##a", "##b", ".", "b", "[SEP]"]
    assert tokens.token_map[0].long().tolist() == [[0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]]
    assert tokens.ids.dtype == torch.int64


def test_254_tokens_fit_and_255_do_not():
    longest = ["a"] * 126 + ["ab"]  # 126 × (letter and separator) + 2
    assert NANO.encode(build_caption(longest)).ids.shape == (1, MAX_TOKENS)
    with pytest.raises(CaptionTooLongError, match=r"127 classes has 255 tokens; the model reads 254.*Shorten.*split"):
        NANO.encode(build_caption([*longest[:-1], "abc"]))


def test_classes_that_do_not_fit_one_caption_are_split():
    chunks = NANO.encode_in_chunks(["a" * 90] * 5)  # 2 × 90 tokens and a separator fit, 3 × 90 do not
    assert [chunk.token_map.shape[1] for chunk in chunks] == [2, 2, 1]
    assert [chunk.ids.shape[1] for chunk in chunks] == [183, 183, 92]


@pytest.mark.parametrize(("most", "counts"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (6, [5])])
def test_a_caption_holds_no_more_names_than_asked_for(most, counts):
    classes = ["cat", "a dog", "b", "owl", "ab"]
    chunks = NANO.encode_in_chunks(classes, most)
    assert [chunk.token_map.shape[1] for chunk in chunks] == counts
    rows = [spelled(chunk, row) for chunk in chunks for row in chunk.token_map[0]]
    assert rows == ["cat", "adog", "b", "owl", "ab"]


def test_names_that_do_not_fit_are_split_further():
    chunks = NANO.encode_in_chunks(["a" * 90] * 4, 3)
    assert [chunk.token_map.shape[1] for chunk in chunks] == [2, 1, 1]


@pytest.mark.skipif(not VOCABULARY.is_file(), reason="the vocabulary of bert-base-uncased is not in ../shared/parity")
@pytest.mark.parametrize("most", [40, 85])
def test_names_are_spread_over_captions_as_in_the_public_code(most):
    with np.load(TESTS / "parity" / "extra" / "chunked_glip_tiny.npz") as golden:
        names, captions = golden["names"].tolist(), golden[f"chunk{most}/captions"].tolist()
        maps = [json.loads(text) for text in golden[f"chunk{most}/positive_maps"].tolist()]
    tokenizer = Tokenizer.from_file(VOCABULARY)
    chunks = tokenizer.encode_in_chunks(names, most)
    for chunk, caption, positive in zip(chunks, captions, maps, strict=True):
        assert torch.equal(chunk.ids, tokenizer.encode(Caption(caption, (), ())).ids)
        assert [row.nonzero().flatten().tolist() for row in chunk.token_map[0]] == list(positive.values())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_class_that_no_caption_can_hold_is_an_error_wherever_it_stands(place):
    classes = ["cat", "dog"]
    classes.insert(place, " ".join(["a" * 90] * 3))
    with pytest.raises(CaptionTooLongError, match=r"1 classes has 270 tokens.*longest name, 'aaa.*, has 270"):
        NANO.encode_in_chunks(classes)
    with pytest.raises(CaptionTooLongError):
        NANO.encode_in_chunks(classes[place : place + 1])


@pytest.mark.parametrize("classes", [["\u200b", "cat"], ["cat", "\u200b", "dog"], ["cat", "\u200b"], ["\u200b"]])
def test_a_name_without_a_token_is_an_error_naming_it(classes):
    with pytest.raises(ValueError, match="maps to no token") as failure:
        NANO.encode(build_caption(classes))
    assert repr("\u200b") in str(failure.value)
    assert "letters or digits" in str(failure.value)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no-vocab\.txt.*bert-base-uncased"):
        Tokenizer.from_file(tmp_path / "no-vocab.txt")


def test_a_file_that_is_no_vocabulary_is_refused_with_what_it_lacks(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("[PAD]\n[CLS]\n[SEP]\ncat\n")
    with pytest.raises(ValueError, match=r"\[UNK\], \[MASK\] missing among 4 entries"):
        Tokenizer.from_file(path)


def test_a_vocabulary_from_windows_reads_the_same(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPELLING, ""]).encode())
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.size == NANO.size == len(SPELLING)
    caption = build_caption(["cab"])
    assert torch.equal(tokenizer.encode(caption).ids, NANO.encode(caption).ids)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(vocabulary_size=NANO.size, width=16, layers=2, heads=2, hidden_width=32).eval()


def test_caption_padding_changes_nothing_for_real_tokens(encoder):
    tokens = NANO.encode(build_caption(["cab", "b"]))
    padding = torch.zeros(1, 4, dtype=torch.int64)
    padded = Tokens(
        torch.cat((tokens.ids, padding), 1),
        torch.cat((tokens.mask, padding.bool()), 1),
        torch.cat((tokens.token_map, padding.bool()[:, None].expand(1, 2, 4)), 2),
    )
    with torch.no_grad():
        trimmed, full = encoder(tokens), encoder(padded)
    torch.testing.assert_close(full.features[:, : tokens.ids.shape[1]], trimmed.features, rtol=1e-5, atol=1e-5)
    assert full.mask is padded.mask
    assert full.token_map is padded.token_map


def test_a_mask_without_padding_which_a_gpu_gets_changes_nothing(encoder, monkeypatch):
    tokens = NANO.encode(build_caption(["cab", "b"]))
    with torch.no_grad():
        expected = encoder(tokens).features
        monkeypatch.setattr(text, "may_hold_false", lambda mask: True)
        found = encoder(tokens).features
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_each_caption_of_a_batch_is_encoded_alone(encoder):
    ids = torch.randint(5, NANO.size, (3, 7), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(3, 1, 7, dtype=torch.bool))
    with torch.no_grad():
        together = encoder(tokens).features
        alone = [
            encoder(Tokens(*(x[i : i + 1] for x in (ids, tokens.mask, tokens.token_map)))).features for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert together.shape == (3, 7, 16)


def test_the_features_are_the_last_hidden_layer_without_a_pooler(encoder):
    tokens = NANO.encode(build_caption(["cab"]))
    with torch.no_grad():
        hidden = encoder.bert(input_ids=tokens.ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(encoder(tokens).features, hidden)
    assert not [key for key in encoder.state_dict() if "pooler" in key]


# Phrases read by themselves


@pytest.fixture(scope="module")
def phrase_encoder():
    torch.manual_seed(0)
    separators = [SPELLING.index(token) for token in ("[CLS]", "[SEP]", ".")]
    sizes = {"width": 16, "layers": 2, "heads": 2, "hidden_width": 32}
    return TextEncoder(vocabulary_size=NANO.size, separators=separators, **sizes).eval()


def name_features(encoder, tokens, row=0):
    """The features of each class's tokens."""
    with torch.no_grad():
        features = encoder(tokens).features[row]
    return [features[own] for own in tokens.token_map[row] if own.any()]


@given(st.lists(words, min_size=2, max_size=5, unique_by=str.lower), st.randoms())
@few
def test_a_phrase_means_the_same_in_every_caption(phrase_encoder, classes, dice):
    shuffled = dice.sample(classes, len(classes))
    here = dict(zip(classes, name_features(phrase_encoder, NANO.encode(build_caption(classes))), strict=True))
    there = dict(zip(shuffled, name_features(phrase_encoder, NANO.encode(build_caption(shuffled))), strict=True))
    for name in classes:
        alone = name_features(phrase_encoder, NANO.encode(build_caption([name])))[0]
        torch.testing.assert_close(here[name], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(there[name], alone, rtol=1e-4, atol=1e-5)


def test_without_separators_a_phrase_depends_on_its_neighbours(encoder):
    first, second = (
        name_features(encoder, NANO.encode(build_caption(names)))[0] for names in (["ab", "c"], ["ab", "d"])
    )
    assert not torch.allclose(first, second, atol=1e-3)


def test_captions_of_several_lengths_are_encoded_as_each_alone(encoder, phrase_encoder):
    captions = [NANO.encode(build_caption(names)) for names in (["cab"], ["a", "dog 7", "b"])]
    batch = Tokens.stack(captions)
    for model in (encoder, phrase_encoder):
        for row, tokens in enumerate(captions):
            together, alone = name_features(model, batch, row), name_features(model, tokens)
            for found, expected in zip(together, alone, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_phrase_starts_counting_after_each_separator():
    together, place = phrase_attention(torch.tensor([[2, 7, 8, 5, 9, 3, 0, 0]]), (2, 3, 5))
    assert place.tolist() == [[0, 0, 1, 0, 0, 0, 0, 1]]
    blocks = [[0], [1, 2], [3], [4], [5], [6, 7]]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    for block in blocks:
        expected[torch.tensor(block)[:, None], torch.tensor(block)] = True
    assert torch.equal(together, expected[None, None])


def test_stacked_captions_are_padded_and_keep_their_classes():
    captions = [NANO.encode(build_caption(names)) for names in (["cab"], ["a", "b"])]
    batch = Tokens.stack(captions)
    assert batch.ids.shape == batch.mask.shape == (2, 5)
    assert batch.token_map.shape == (2, 2, 5)
    for row, tokens in enumerate(captions):
        count, length = tokens.token_map.shape[1:]
        assert torch.equal(batch.ids[row, :length], tokens.ids[0])
        assert torch.equal(batch.token_map[row, :count, :length], tokens.token_map[0])
        assert batch.mask[row].tolist() == [position < length for position in range(5)]
    assert not batch.token_map[0, 1].any()


def doubts(*classes):
    prompts = [ClassPrompt(name=entry) if isinstance(entry, str) else entry for entry in classes]
    return NANO.doubts(prompts, NANO.encode_in_chunks(prompts))


@pytest.mark.parametrize(
    ("first", "second"), [("die (one)", "die (two)"), ("Dog", "dog"), ("stop_sign", "stop sign"), ("dog", "dog")]
)
def test_names_with_the_same_wording_are_doubted_once(first, second):
    (sentence,) = doubts("cat", first, second)
    assert repr(first) in sentence
    assert repr(second) in sentence
    assert "cannot tell them apart" in sentence


def test_names_that_differ_in_their_prompt_are_not_doubted():
    pair = [ClassPrompt(name="mushroom", prefix=f"{colour} ") for colour in ("flat", "yellow")]
    assert doubts(*pair) == []
    assert len(doubts(pair[0], pair[0])) == 1


def test_words_outside_the_vocabulary_are_doubted():
    sentences = doubts("cat", "\U0001f3b2", "a \U0001f3b2")
    assert [("[UNK]" in sentence, "cat" in sentence) for sentence in sentences] == [(True, False)] * 2


def test_classes_of_several_captions_are_compared():
    many = [f"thing number {n}" for n in range(120)]
    assert len(NANO.encode_in_chunks(many)) > 1
    (sentence,) = doubts(*many, "Thing Number 3")
    assert "'thing number 3'" in sentence


def test_a_vocabulary_that_is_not_text_names_its_file(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00[PAD]")
    with pytest.raises(ValueError, match=r"vocab\.txt is not a vocabulary"):
        Tokenizer.from_file(tmp_path / "vocab.txt")
