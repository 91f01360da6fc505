"""Phrases of a caption, the encoder that reads each by itself, and captions in which a full stop ends every name."""

import string
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.grounding_dino.modeling_grounding_dino import (
    generate_masks_with_special_tokens_and_transfer_map,
)

from glip_adapt.core.captions import MAX_TOKENS, ClassPrompt, build_caption
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.dino.text import PhraseEncoder, phrase_of, places_in_phrase, seen_together
from glip_adapt.trunks.encoder_config import TextConfig
from glip_adapt.trunks.tokenizer import SPECIAL_TOKENS, CaptionTooLongError, Tokenizer

# One token per letter or mark, so tokens can be told by looking.
SPELLING = [
    *(*SPECIAL_TOKENS, ".", "?", ","),
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
    *string.digits,
]
CLS, SEP, STOP, ASKS, COMMA = (SPELLING.index(token) for token in ("[CLS]", "[SEP]", ".", "?", ","))
ENDS = (CLS, SEP, STOP, ASKS)
OPEN, CLOSED = Tokenizer(SPELLING), Tokenizer(SPELLING, closed=True)

few = settings(max_examples=60)
ids_of_batches = st.tuples(st.integers(1, 3), st.integers(1, 14)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from((*ENDS, 20, 21, 22, 0)), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0], max_size=shape[0],
    )
)  # fmt: skip


# Phrases -------------------------------------------------------------------------------------------------------------


@given(ids_of_batches, st.lists(st.sampled_from(ENDS), min_size=1, unique=True))
@settings(max_examples=200)
def test_who_sees_whom_and_the_places_are_those_of_transformers(batch, separators):
    ids = torch.tensor(batch)
    expected, places = generate_masks_with_special_tokens_and_transfer_map(ids, torch.tensor(separators))
    phrases = phrase_of(ids, separators)
    assert torch.equal(seen_together(phrases), expected)
    assert torch.equal(places_in_phrase(phrases), places)


def test_phrases_by_hand():
    #        [CLS] cat  .    red  fox  ?  dog [SEP]
    ids = [[CLS, 20, STOP, 21, 22, ASKS, 23, SEP]]
    phrases = phrase_of(torch.tensor(ids), ENDS)
    assert phrases.tolist() == [[8, 2, 2, 5, 5, 5, 14, 15]]  # what no mark closes stands alone
    assert places_in_phrase(phrases).tolist() == [[0, 0, 1, 0, 1, 2, 0, 0]]
    assert seen_together(phrases)[0, 3].tolist() == [False, False, False, True, True, True, False, False]


def test_a_batch_has_the_phrases_of_each_caption():
    captions = torch.tensor([[CLS, 20, STOP, 21, STOP, SEP], [CLS, 20, 21, ASKS, SEP, 0]])
    assert torch.equal(phrase_of(captions, ENDS), torch.cat([phrase_of(row[None], ENDS) for row in captions]))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = TextConfig(
        vocabulary_size=len(SPELLING), width=16, layers=2, heads=2, hidden_width=32, dropout=0.0, separators=ENDS
    )
    return PhraseEncoder(config, 24).eval().double()


@torch.no_grad()
def test_a_phrase_does_not_depend_on_what_else_the_caption_says(encoder):
    one, other = (CLOSED.encode(build_caption(["cab", name, "owl"])) for name in ("dog", "red fox, or a wolf"))
    first, second = (encoder(tokens).features[0] for tokens in (one, other))
    for label, same in ((0, True), (1, False), (2, True)):
        mine, theirs = first[one.token_map[0, label]], second[other.token_map[0, label]]
        if same:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        else:
            assert not torch.allclose(mine[:1], theirs[:1], atol=1e-3)


@torch.no_grad()
def test_words_of_a_phrase_are_read_together(encoder):
    one, other = (CLOSED.encode(build_caption([name])) for name in ("red cat", "red dog"))
    assert not torch.allclose(encoder(one).features[0, 1], encoder(other).features[0, 1], atol=1e-3)


@given(st.lists(st.text("abc ", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=3))
@few
@torch.no_grad()
def test_padding_behind_a_closed_caption_changes_nothing(encoder, names):
    tokens = CLOSED.encode(build_caption(names))
    longer = CLOSED.encode(build_caption([*names, "xyz"]))
    padded = Tokens.stack([tokens, longer])
    found, alone, count = encoder(padded), encoder(tokens), tokens.ids.shape[1]
    torch.testing.assert_close(found.features[0, :count], alone.features[0], rtol=0, atol=1e-12)
    assert found.mask is padded.mask
    assert found.token_map is padded.token_map
    assert torch.equal(seen_together(found.phrases)[0, :count, :count], seen_together(alone.phrases)[0])


def test_features_have_the_width_of_the_detector_and_the_phrases_beside_them(encoder):
    tokens = CLOSED.encode(build_caption(["cab", "b"]))
    found = encoder(tokens)
    assert found.features.shape == (*tokens.ids.shape, 24)
    assert torch.equal(found.phrases, phrase_of(tokens.ids, ENDS))


# Closed captions -----------------------------------------------------------------------------------------------------


def spelled(tokens, label):
    """Return the characters that the tokens of one class stand for."""
    pieces = CLOSED.words(tokens)
    return "".join(pieces[t].removeprefix("##") for t in tokens.token_map[0, label].nonzero().flatten().tolist())


def assert_one_phrase_each(tokens):
    """Each class is one phrase, its tokens and the full stop behind them, and there are no others."""
    (phrases,), (token_map,) = phrase_of(tokens.ids, ENDS), tokens.token_map
    own = [phrases[row].unique().tolist() for row in token_map]
    assert [len(found) for found in own] == [1] * len(token_map)
    ends = [found[0] for found in own]
    assert ends == sorted(set(ends))
    assert [tokens.ids[0, end].item() for end in ends] == [STOP] * len(ends)
    assert phrases.tolist()[0] > tokens.ids.shape[1] - 1  # [CLS] and [SEP] stand alone
    assert phrases.tolist()[-1] > tokens.ids.shape[1] - 1
    assert set(phrases.tolist()[1:-1]) == set(ends)


words = st.text(string.ascii_lowercase, min_size=1, max_size=5)
marks = st.sampled_from([".", "?", ",", ". ", "? ", ", ", " ", "..", "?!.."[:1], "... ", " ."])
marked_names = st.builds(
    lambda before, first, rest, behind: before + first + "".join(mark + word for mark, word in rest) + behind,
    st.sampled_from(["", ".", "? ", "...", " .?."]),
    words,
    st.lists(st.tuples(marks, words), max_size=3),
    st.sampled_from(["", ".", "?", "...", "?? ", ". . ."]),
)


@given(st.lists(marked_names, min_size=1, max_size=5))
@few
def test_any_name_with_marks_is_one_phrase_and_one_class(names):
    tokens = CLOSED.encode(build_caption(names))
    assert tokens.token_map.shape[1] == len(names)
    assert_one_phrase_each(tokens)
    for label, name in enumerate(names):
        assert spelled(tokens, label) == name.translate(str.maketrans("", "", ".? "))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("St. Bernard", ["s", "##t", "b", "##e", "##r", "##n", "##a", "##r", "##d"]),
        ("what?", ["w", "##h", "##a", "##t"]),
        ("salt, pepper", ["s", "##a", "##l", "##t", ",", "p", "##e", "##p", "##p", "##e", "##r"]),
        ("etc...", ["e", "##t", "##c"]),
        ("...more", ["m", "##o", "##r", "##e"]),
        ("U.S.A.", ["u", "s", "a"]),
    ],
)
def test_marks_in_a_name_move_no_other_class(name, expected):
    plain = CLOSED.encode(build_caption(["cat", "owl", "dog"]))
    tokens = CLOSED.encode(build_caption(["cat", name, "dog"]))
    pieces = CLOSED.words(tokens)
    assert pieces == ["[CLS]", "c", "##a", "##t", ".", *expected, ".", "d", "##o", "##g", ".", "[SEP]"]
    assert_one_phrase_each(tokens)
    middle = range(5, 5 + len(expected))
    assert tokens.token_map[0, 1].nonzero().flatten().tolist() == list(middle)
    assert tokens.token_map[0, 0].nonzero().flatten().tolist() == [1, 2, 3]
    assert tokens.token_map[0, 2].nonzero().flatten().tolist() == [middle.stop + i for i in (1, 2, 3)]
    for label in (0, 2):
        assert torch.equal(tokens.ids[0][tokens.token_map[0, label]], plain.ids[0][plain.token_map[0, label]])


def test_without_marks_a_closed_caption_is_the_open_one_with_a_full_stop():
    caption = build_caption(["cab", ClassPrompt(name="owl", prefix="a ", suffix=" on grey")])
    closed, plain = CLOSED.encode(caption), OPEN.encode(caption)
    assert closed.ids.tolist()[0] == [*plain.ids.tolist()[0][:-1], STOP, SEP]
    assert torch.equal(closed.token_map[..., :-1], plain.token_map)
    assert not closed.token_map[..., -1].any()


def test_marks_around_a_name_belong_to_the_prompt_and_stay():
    tokens = CLOSED.encode(build_caption([ClassPrompt(name="owl.", prefix="bird? an ", suffix=", grey")]))
    assert "".join(piece.removeprefix("##") for piece in CLOSED.words(tokens)[1:-1]) == "bird?anowl,grey."
    assert spelled(tokens, 0) == "owl"


@pytest.mark.parametrize("name", [".", "?", "..", "?.", "...", " . ", ". ? .", "?" * 9])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_name_of_marks_only_is_one_clear_error_wherever_it_stands(name, place):
    classes: list[str | ClassPrompt] = ["cat", "dog"]
    for entry in (name, ClassPrompt(name=name, prefix="a ", suffix=" on grey")):
        worded = [*classes[:place], entry, *classes[place:]]
        with pytest.raises(ValueError, match="maps to no token") as failure:
            CLOSED.encode(build_caption(worded))
        assert repr(name) in str(failure.value)
        assert "Give it a name with letters or digits" in str(failure.value)


def test_127_letters_with_a_full_stop_each_fit_and_128_do_not():
    assert CLOSED.encode(build_caption(["a"] * 127)).ids.shape == (1, MAX_TOKENS)
    with pytest.raises(CaptionTooLongError, match=r"128 classes has 256 tokens; the model reads 254"):
        CLOSED.encode(build_caption(["a"] * 128))


@given(st.lists(st.text("ab.", min_size=20, max_size=90).filter(lambda name: name.strip(".")), min_size=2, max_size=12))
@few
def test_chunks_are_closed_captions_that_hold_all_classes_in_order(names):
    chunks = CLOSED.encode_in_chunks(names)
    found = [spelled(chunk, label) for chunk in chunks for label in range(chunk.token_map.shape[1])]
    assert found == [name.replace(".", "") for name in names]
    for chunk in chunks:
        assert chunk.ids.shape[1] <= MAX_TOKENS
        assert chunk.ids[0, -2:].tolist() == [STOP, SEP]
        assert_one_phrase_each(chunk)


def test_the_tokenizer_of_the_family_is_closed():
    from glip_adapt.trunks.dino.config import GROUNDING_DINO_T
    from glip_adapt.trunks.dino.family import DinoFamily

    config = replace(GROUNDING_DINO_T, text=replace(GROUNDING_DINO_T.text, vocabulary_size=40, separators=(2, 3, 5, 7)))
    tokenizer = DinoFamily().made_up_tokenizer(config)
    assert tokenizer.size == 40
    tokens = tokenizer.encode(build_caption(["w0 w1?", "w2. w3"]))
    assert tokenizer.words(tokens) == ["[CLS]", "w0", "w1", ".", "w2", "w3", ".", "[SEP]"]
    assert [tokens.ids[0, i].item() for i in (0, 3, -1)] == [2, 5, 3]
    assert tokenizer.encode(build_caption([ClassPrompt(name="w0", suffix="?")])).ids[0, 2] == 7
