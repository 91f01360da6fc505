"""Images with captions, and boxes for the phrases of each caption: what detectors learn to ground text from.

GLIP, arXiv 2112.03857, section 3.1: a list of class names is a caption as well, one sentence for each name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glip_adapt.core.captions import SEPARATOR, Caption, build_caption
from glip_adapt.data.split import ImageRecord

_SIDES = re.compile(r"\b(?:left|right)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """An image with one caption; an image with several captions stands several times.

    Attributes:
        record: the image; the label of a box is the position of its phrase among those of all sentences.
        sentences: what the caption says, with the span of each phrase; a class name is a sentence of one phrase.
            Phrases need not have boxes.
        absent: names of what the image does not show; ``drawn`` adds some of them.
    """

    record: ImageRecord
    sentences: tuple[Caption, ...]
    absent: Sequence[str] = ()

    @functools.cached_property
    def caption(self) -> Caption:
        """The sentences in their order."""
        return join(self.sentences, range(len(self.sentences)))

    @functools.cached_property
    def has_sides(self) -> bool:
        """Whether a sentence tells left from right, so that it would be wrong of the mirrored image."""
        return any(_SIDES.search(sentence.text) for sentence in self.sentences)

    def drawn(self, negatives: int, dice: np.random.Generator) -> Caption:
        """Return the sentences and up to ``negatives`` absent names, shuffled; the labels of the boxes stay valid."""
        more = dice.permutation(len(self.absent))[:negatives]
        sentences = (*self.sentences, *(build_caption([self.absent[i]]) for i in more))
        return join(sentences, dice.permutation(len(sentences)).tolist())


@dataclass(frozen=True)
class CaptionedSplit:
    """Captioned images, such as the training part of Flickr30k Entities.

    Attributes:
        name: shown in messages.
        images: in the order of their file.
        negatives: most absent names that training adds to a caption, others at each visit of an image.
    """

    name: str
    images: tuple[CaptionedImage, ...]
    negatives: int = 20

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, positions: Iterable[int]) -> CaptionedSplit:
        """Return some of the images, in the order of ``positions``."""
        return replace(self, images=tuple(self.images[i] for i in positions))


def join(sentences: Sequence[Caption], order: Iterable[int]) -> Caption:
    """Return sentences as one caption, written in some order; spans and names are in the order of ``sentences``."""
    text, starts = "", [0] * len(sentences)
    for position in order:
        text += SEPARATOR * bool(text)
        starts[position] = len(text)
        text += _without_stop(sentences[position])
    spans = [(s + start, e + start) for part, start in zip(sentences, starts, strict=True) for s, e in part.spans]
    return Caption(text, tuple(spans), tuple(name for part in sentences for name in part.names))


def _without_stop(sentence: Caption) -> str:
    """Return a text without blanks and the full stop at its end, unless a phrase reaches so far."""
    text = sentence.text.rstrip().removesuffix(".").rstrip()
    return sentence.text[: max([len(text), *(end for _, end in sentence.spans)])]
