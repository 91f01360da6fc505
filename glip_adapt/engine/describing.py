"""Word classes by their names and descriptions, as far as a caption has room."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from glip_adapt.core.captions import MAX_TOKENS, ClassPrompt, build_caption
from glip_adapt.core.knowledge import Knowledge
from glip_adapt.trunks.tokenizer import PHRASE_ENDS, CaptionTooLongError, Tokenizer

logger = logging.getLogger(__name__)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|;\s+")


def describe_classes(classes: Sequence[str], knowledge: Knowledge, tokenizer: Tokenizer) -> tuple[ClassPrompt, ...]:
    """Return the classes with their descriptions behind their names: ``penguin: a bird that swims``.

    The description is context: boxes are matched to the tokens of the name only. Full stops end a class in a caption.
    Therefore sentences are joined by semicolons, and other full stops and question marks are left out. Classes that do
    not fit together are divided over several captions, as ``Tokenizer.encode_in_chunks`` does. Where one class alone is
    too long, sentences are left out from the end, with a warning, as the first ones say what a thing is.

    Raises:
        CaptionTooLongError: if the first sentence of a description alone is too long.
    """
    return tuple(
        _described(name, knowledge.texts[name], knowledge.source, tokenizer)
        if name in knowledge.texts
        else ClassPrompt(name=name)
        for name in classes
    )


def _described(name: str, text: str, source: str, tokenizer: Tokenizer) -> ClassPrompt:
    spaced = (sentence.translate(PHRASE_ENDS).split() for sentence in _SENTENCE_END.split(text))
    sentences = [" ".join(words) for words in spaced if words]
    fitting = ClassPrompt(name=name)
    for count in range(1, len(sentences) + 1):
        prompt = ClassPrompt(name=name, suffix=": " + "; ".join(sentences[:count]))
        try:
            tokenizer.encode(build_caption([prompt]))
        except CaptionTooLongError as error:
            if count == 1:
                raise CaptionTooLongError(
                    f"The first sentence of {source!r} about {name!r} is longer than a caption, which has "
                    f"{MAX_TOKENS - 2} tokens. Shorten it."
                ) from error
            logger.warning(
                f"{source} about {name!r}: {count - 1} of {len(sentences)} sentences fit into a caption; the rest is "
                "left out."
            )
            break
        fitting = prompt
    return fitting
