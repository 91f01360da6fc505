"""Captions from sentences: brackets, given phrases and spans, noun phrases of a stand-in tagger."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.captions import Caption
from glip_adapt.core.sentences import noun_phrases, sentence_caption
from glip_adapt.core.tagger import nltk_tags

GOLDEN = json.loads((Path(__file__).parents[1] / "parity" / "extra" / "phrases.json").read_text())
SENTENCE = "A man in a blue jacket holds a man's umbrella"
words = st.text("ab '", min_size=1, max_size=6)


def tagged(text):
    """Return a tagger that answers with ``word/TAG`` pairs, whatever the sentence."""
    return lambda _: [tuple(pair.rsplit("/", 1)) for pair in text.split()]


@given(st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=4), words)
@settings(max_examples=40, deadline=None)
def test_brackets_hold_the_phrases_and_vanish_from_the_text(parts, rest):
    caption = sentence_caption("".join(f"{before}[{phrase}]" for before, phrase in parts) + rest)
    assert caption.text == "".join(before + phrase for before, phrase in parts) + rest
    assert caption.names == tuple(phrase for _, phrase in parts)
    assert tuple(caption.text[start:end] for start, end in caption.spans) == caption.names


def test_a_phrase_is_taken_wherever_it_stands_and_once_each():
    caption = sentence_caption(SENTENCE, ["a man", "UMBRELLA", "a man"])
    assert caption == Caption(SENTENCE, ((0, 5), (29, 34), (37, 45)), ("A man", "a man", "umbrella"))


def test_a_phrase_is_whole_words():
    assert sentence_caption("A woman and a man", ["man"]).spans == ((14, 17),)


def test_spans_are_taken_as_they_are_and_may_overlap():
    caption = sentence_caption(SENTENCE, [(29, 45), (37, 45)])
    assert caption.names == ("a man's umbrella", "umbrella")


def test_with_phrases_brackets_are_letters_like_others():
    assert sentence_caption("a [sic] dog", ["dog"]) == Caption("a [sic] dog", ((8, 11),), ("dog",))


@pytest.mark.parametrize("case", [case for case in GOLDEN["cases"] if "noun_phrases" in case], ids=lambda c: c["tag"])
def test_noun_phrases_are_those_of_the_public_code(case):
    spans = noun_phrases(case["caption"], tagged(GOLDEN["tags"][case["caption"].lower()]))
    assert [case["caption"][start:end].lower() for start, end in spans] == case["noun_phrases"]


def test_a_noun_phrase_that_comes_twice_has_two_places():
    tags = "a/DT man/NN in/IN a/DT blue/JJ jacket/NN holds/VBZ a/DT man/NN 's/POS umbrella/NN"
    assert sentence_caption(SENTENCE, tagger=tagged(tags)).spans == ((0, 5), (9, 22), (29, 34), (37, 45))


def test_what_a_tagger_spells_otherwise_ends_a_phrase_and_moves_none():
    spans = noun_phrases('the "big" dog', tagged("the/DT ``/NN big/JJ ''/NN dog/NN"))
    assert spans == [(10, 13)]


def test_adjectives_and_nouns_of_any_degree_and_number_belong_to_a_phrase():
    tags = "the/DT bigger/JJR brown/JJ dogs/NNS of/IN rome/NNP"
    assert noun_phrases("the bigger brown dogs of Rome", tagged(tags)) == [(0, 21), (25, 29)]


def test_a_letter_that_grows_in_lower_case_moves_no_span():
    assert noun_phrases("İİ Dog", lambda text: [("dog", "NN")]) == [(3, 6)]


@pytest.mark.parametrize(
    ("sentence", "phrases", "expected"),
    [
        (SENTENCE, ["a cat"], "The phrase 'a cat' does not stand in the sentence"),
        (SENTENCE, ["a man", ""], "The phrase '' does not stand"),
        (SENTENCE, [(40, 46)], "The span 40 to 46 holds no words of .*, which has 45 characters"),
        (SENTENCE, [(-3, 4)], "The span -3 to 4"),
        (SENTENCE, [(5, 5)], "The span 5 to 5"),
        (SENTENCE, [(5, 6)], "The span 5 to 6"),
        (SENTENCE, [], "No phrase to find"),
        ("[a man", None, "do not pair, or are empty"),
        ("a man] [a", None, "do not pair"),
        ("[a [red] hat]", None, "do not pair"),
        ("a [ ] hat", None, "are empty"),
        (" ", None, "needs a sentence"),
        ("[a\x00 man]", None, "without control characters"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(sentence, phrases, expected):
    with pytest.raises(ValueError, match=expected):
        sentence_caption(sentence, phrases)


def test_a_sentence_without_a_noun_phrase_is_one_clear_error():
    with pytest.raises(ValueError, match=r"'Run away!' has no noun phrase. Put what to find in brackets"):
        sentence_caption("Run away!", tagger=tagged("run/VB away/RB !/."))


def test_without_nltk_the_error_says_what_to_install_and_what_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(RuntimeError, match=r"pip install 'glip-adapt\[phrases\]'. Brackets need nothing"):
        sentence_caption("a dog")
    assert sentence_caption("[a dog]").names == ("a dog",)


def test_nltk_reads_words_and_tags_and_its_missing_data_are_named(monkeypatch):
    nltk = ModuleType("nltk")
    nltk.word_tokenize, nltk.pos_tag = str.split, lambda words: [(word, "NN") for word in words]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    assert nltk_tags("a dog") == [("a", "NN"), ("dog", "NN")]

    def missing(sentence):
        raise LookupError("a page of text")

    nltk.word_tokenize = missing
    with pytest.raises(FileNotFoundError, match=r"python -m nltk.downloader punkt_tab"):
        sentence_caption("a dog")
