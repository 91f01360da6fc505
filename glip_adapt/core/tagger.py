"""Words of a sentence with their parts of speech, by nltk: an extra, whose data are a download of their own."""

from __future__ import annotations

BRACKETS = "Brackets need nothing: '[a man] with [a red umbrella]'."


def nltk_tags(sentence: str) -> list[tuple[str, str]]:
    """Return the words of a sentence, each with its tag of the Penn Treebank.

    Raises:
        RuntimeError: if nltk is not installed.
        FileNotFoundError: if its data are not on this machine.
    """
    try:
        import nltk
    except ModuleNotFoundError as error:
        raise RuntimeError(f"Noun phrases are found by nltk: pip install 'glip-adapt[phrases]'. {BRACKETS}") from error
    try:
        return nltk.pos_tag(nltk.word_tokenize(sentence))
    except LookupError as error:  # its own message fills a page
        raise FileNotFoundError(
            "nltk lacks its data. Download them once: python -m nltk.downloader punkt_tab "
            f"averaged_perceptron_tagger_eng. {BRACKETS}"
        ) from error
