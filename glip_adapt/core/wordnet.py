"""Definitions of a word, by WordNet of nltk: an extra, whose data are a download of their own."""

from __future__ import annotations


def nltk_senses(name: str) -> list[str]:
    """Return the definitions of a noun, the most frequent sense first; empty if WordNet lacks it.

    Args:
        name: one or several words, in singular or plural.

    Raises:
        RuntimeError: if nltk is not installed.
        FileNotFoundError: if the data of WordNet are not on this machine.
    """
    try:
        from nltk.corpus import wordnet
    except ModuleNotFoundError as error:
        raise RuntimeError("WordNet is read by nltk: pip install 'glip-adapt[phrases]'.") from error
    try:
        return [sense.definition() for sense in wordnet.synsets("_".join(name.split()), pos="n")]
    except LookupError as error:  # its own message fills a page
        raise FileNotFoundError(
            "nltk lacks the data of WordNet. Download them once: python -m nltk.downloader wordnet"
        ) from error
