"""Captions from sentences: which words of a sentence are the phrases to find.

GLIP, arXiv 2112.03857, section 3.1. Noun phrases follow the grammar of ``find_noun_phrases`` in
maskrcnn_benchmark/engine/predictor_glip.py of the public code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from glip_adapt.core.captions import UNPRINTABLE, Caption
from glip_adapt.core.tagger import nltk_tags

Span = tuple[int, int]
"""Start and end of some characters of a sentence, end exclusive."""

Tagger = Callable[[str], Sequence[tuple[str, str]]]
"""Sentence → its words in order, each with its tag of the Penn Treebank, such as ``("dog", "NN")``."""

HINT = "Put what to find in brackets, such as '[a man] with [a red umbrella]'."

_NOUN_PHRASE = re.compile("(?:<DT>)?(?:<JJ[^<>]*>)*(?:<NN[^<>]*>)+")
_BRACKETS = re.compile(r"[\[\]]")
_NO_WORD = "?"  # the tag of what a tagger returns and the sentence does not hold


def sentence_caption(sentence: str, phrases: Sequence[str | Span] | None = None, tagger: Tagger = nltk_tags) -> Caption:
    """Return a sentence as a caption, with the span of each phrase to find.

    Args:
        sentence: where it has brackets, and ``phrases`` is not given, these hold the phrases; they are taken out of the
            text. Without brackets its noun phrases are taken.
        phrases: words of the sentence, upper case or not, each taken wherever it stands; or their spans.
        tagger: finds the noun phrases; by default that of nltk.

    Raises:
        ValueError: if the sentence is empty or holds control characters, a phrase or a span is not in it, brackets do
            not pair, or there is no phrase.
        RuntimeError: if nltk is needed and not installed.
        FileNotFoundError: if the data of nltk are needed and not there.
    """
    if not sentence.strip() or UNPRINTABLE.search(sentence):
        raise ValueError(f"A caption needs a sentence without control characters; got {sentence!a}. {HINT}")
    if phrases is not None:
        text, spans = sentence, [span for phrase in phrases for span in places(sentence, phrase)]
    elif _BRACKETS.search(sentence):
        text, spans = _without_brackets(sentence)
    else:
        text, spans = sentence, noun_phrases(sentence, tagger)
    if not spans:
        raise ValueError(f"No phrase to find in {sentence!r}. {HINT}")
    once = tuple(dict.fromkeys(spans))
    return Caption(text, once, tuple(text[start:end] for start, end in once))


def noun_phrases(sentence: str, tagger: Tagger = nltk_tags) -> list[Span]:
    """Return the spans of the noun phrases: nouns with the adjectives and the article or pronoun in front of them.

    The tagger reads the sentence in lower case, as in the public code.

    Raises:
        ValueError: if there is none.
        RuntimeError, FileNotFoundError: of the tagger, as for ``sentence_caption``.
    """
    text = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in sentence)  # none moves
    tags, words, place = "", [], 0
    for word, tag in tagger(text):
        start = text.find(word, place)
        tags += f"<{tag if start >= 0 else _NO_WORD}>"  # nltk writes quotation marks otherwise
        place = start + len(word) if start >= 0 else place
        words.append((start, place))
    found = [
        (words[tags.count("<", 0, match.start())][0], words[tags.count("<", 0, match.end()) - 1][1])
        for match in _NOUN_PHRASE.finditer(tags)
    ]
    if not found:
        raise ValueError(f"The sentence {sentence!r} has no noun phrase. {HINT}")
    return found


def places(sentence: str, phrase: str | Span) -> list[Span]:
    """Return the spans of a phrase in a sentence, given by its words, upper case or not, or by its span.

    Raises:
        ValueError: if the words do not stand in the sentence, or the span holds none.
    """
    if isinstance(phrase, str):
        words = r"(?<!\w)" + re.escape(phrase.strip()) + r"(?!\w)"
        found = [match.span() for match in re.finditer(words, sentence, re.IGNORECASE) if match.group()]
        if not found:
            raise ValueError(f"The phrase {phrase!r} does not stand in the sentence {sentence!r}. Write it as it does.")
        return found
    start, end = phrase
    if not (0 <= start < end <= len(sentence) and sentence[start:end].strip()):
        raise ValueError(
            f"The span {start} to {end} holds no words of {sentence!r}, which has {len(sentence)} characters. "
            "Count them from 0, the end exclusive."
        )
    return [(start, end)]


def _without_brackets(sentence: str) -> tuple[str, list[Span]]:
    """Return a sentence without its brackets, and the spans of what stood in them."""
    parts = re.split(r"\[([^\[\]]*)\]", sentence)  # between brackets, inside, between, …
    if any(_BRACKETS.search(part) for part in parts) or not all(part.strip() for part in parts[1::2]):
        raise ValueError(f"The brackets of {sentence!r} do not pair, or are empty. Write '[a man] with [a dog]'.")
    text, spans = "", []
    for position, part in enumerate(parts):
        if position % 2:
            spans.append((len(text), len(text) + len(part)))
        text += part
    return text, spans
