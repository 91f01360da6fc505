"""Tokenise captions: uncased WordPiece with the class → token map of grounded detectors.

The map follows ``create_positive_dict`` of maskrcnn_benchmark/engine/inference.py of the public GLIP code.

Shape letters: T tokens, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glip_adapt.core.captions import MAX_TOKENS, Caption, ClassPrompt, build_caption
from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.core.structures import Tokens

if TYPE_CHECKING:
    from tokenizers import Encoding

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HUB_VOCABULARY = ("google-bert/bert-base-uncased", "vocab.txt")
FULL_STOP = "."
PHRASE_ENDS = str.maketrans(".?", "  ")


class CaptionTooLongError(GlipAdaptError, ValueError):
    """A caption has more tokens than the model reads."""


class Tokenizer:
    """Uncased WordPiece with the class → token map of grounded detectors."""

    def __init__(self, vocabulary: Sequence[str], *, closed: bool = False) -> None:
        """Build from WordPiece entries in id order.

        Args:
            vocabulary: the entries.
            closed: whether names are phrases that a full stop ends, as Grounding DINO reads them: one is put behind the
                caption, and marks that would end a phrase within a name are read as spaces.

        Raises:
            ValueError: if one of the special tokens of BERT is missing.
        """
        if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
            raise ValueError(
                f"A WordPiece vocabulary needs {', '.join(SPECIAL_TOKENS)}; {', '.join(missing)} missing among "
                f"{len(vocabulary)} entries. Use the vocab.txt of bert-base-uncased."
            )
        from tokenizers.implementations import BertWordPieceTokenizer  # a baked model does without

        self._tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(vocabulary)}, lowercase=True)
        self.size, self._closed = len(vocabulary), closed

    @classmethod
    def from_file(cls, path: str | Path, *, closed: bool = False) -> Tokenizer:
        """Return the tokenizer of a ``vocab.txt``: one entry per line, UTF-8; ``closed`` as above.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is not UTF-8, or not a vocabulary.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No vocabulary at {path}. Name the vocab.txt of bert-base-uncased.")
        try:
            return cls(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), closed=closed)
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def encode(self, caption: Caption) -> Tokens:
        """Return the tokens of one caption, first dimension 1.

        Raises:
            CaptionTooLongError: if there are more than 256 tokens with [CLS] and [SEP].
            ValueError: if a class name maps to no token.
        """
        read = _closed(caption) if self._closed else caption
        encoding = self._tokenizer.encode(read.text)
        if len(encoding.ids) > MAX_TOKENS:
            lengths = [len(span_to_tokens(encoding, span)) for span in read.spans]
            longest = caption.names[lengths.index(max(lengths))]
            raise CaptionTooLongError(
                f"The caption of {len(caption.names)} classes has {len(encoding.ids) - 2} tokens; the model reads "
                f"{MAX_TOKENS - 2}. The longest name, {_short(longest)}, has {max(lengths)}. Shorten the names or "
                "prompts, or split the classes over several runs."
            )
        token_map = torch.zeros(len(caption.names), len(encoding.ids), dtype=torch.bool)
        for row, span, name in zip(token_map, read.spans, caption.names, strict=True):
            tokens = span_to_tokens(encoding, span)
            if not tokens:
                raise ValueError(
                    f"Class name {name!r} maps to no token of the caption {caption.text!r}. "
                    "Give it a name with letters or digits."
                )
            row[list(tokens)] = True
        ids = torch.tensor([encoding.ids])
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), token_map[None])

    def encode_in_chunks(self, classes: Sequence[str | ClassPrompt], most: int | None = None) -> list[Tokens]:
        """Return the tokens of as few captions as possible that hold all classes in order.

        Each chunk's ``token_map`` has one row per class of the *chunk*; rows over all chunks are the classes. With
        ``most``, a chunk holds so many classes, the last one the rest; one that is too long is split again.
        """
        if most is not None and len(classes) > most:
            parts = (classes[first : first + most] for first in range(0, len(classes), most))
            return [tokens for part in parts for tokens in self.encode_in_chunks(part)]
        try:
            return [self.encode(build_caption(classes))]
        except CaptionTooLongError:
            if len(classes) == 1:
                raise
        chunks, first = [self.encode(build_caption(classes[:1]))], 0
        for end in range(2, len(classes) + 1):
            try:
                chunks[-1] = self.encode(build_caption(classes[first:end]))
            except CaptionTooLongError:
                first = end - 1
                chunks.append(self.encode(build_caption(classes[first:end])))
        return chunks

    def doubts(self, classes: Sequence[ClassPrompt], encoded: Sequence[Tokens]) -> list[str]:
        """Describe unknown words, and classes that have the same tokens, one sentence each.

        ``encoded`` are the tokens of the classes, in label order, from ``encode_in_chunks``.
        """
        unknown, sentences = self._tokenizer.token_to_id("[UNK]"), []
        seen: dict[tuple[Any, ...], str] = {}
        owned = [ids[row].tolist() for tokens in encoded for ids in tokens.ids for row in tokens.token_map[0]]
        for prompt, ids in zip(classes, owned, strict=True):
            if unknown in ids:
                sentences.append(
                    f"The class {_short(prompt.name)} holds words outside the vocabulary, which are all read as [UNK]. "
                    "Use English names."
                )
            key = (*ids, prompt.prefix.casefold(), prompt.suffix.casefold())
            if key in seen:
                read = self._tokenizer.decode(ids, skip_special_tokens=False)
                sentences.append(
                    f"The classes {_short(seen[key])} and {_short(prompt.name)} have the same wording in the caption, "
                    f"{_short(read)}, so a detector cannot tell them apart. Text in parentheses and upper case are not "
                    "read: use other names."
                )
            seen[key] = prompt.name
        return sentences

    def words(self, tokens: Tokens) -> list[str]:
        """Return the WordPiece of each id of the first caption."""
        return [self._tokenizer.id_to_token(i) or "[UNK]" for i in tokens.ids[0].tolist()]


def read_vocabulary(path: Path | None, size: int, *, closed: bool = False) -> Tokenizer:
    """Return the tokenizer of a ``vocab.txt``, by default that of bert-base-uncased on the Hub.

    Args:
        path: of the file.
        size: entries that the text encoder has.
        closed: as for ``Tokenizer``.

    Raises:
        FileNotFoundError: if the file is missing, or the Hub cannot be reached.
        ValueError: if the vocabulary has another size.
    """
    from glip_adapt.trunks.weights import fetch

    tokenizer = Tokenizer.from_file(path or fetch(*HUB_VOCABULARY, option="--vocabulary"), closed=closed)
    if tokenizer.size != size:
        raise ValueError(
            f"The vocabulary has {tokenizer.size} entries, the text encoder {size}. "
            "Name the vocab.txt that the trunk was trained with."
        )
    return tokenizer


def made_up_tokenizer(size: int, separators: Sequence[int] = (2, 3, 5), *, closed: bool = False) -> Tokenizer:
    """Return a tokenizer of the words ``w0 w1 …``, for measurements without files.

    Args:
        size: entries.
        separators: ids of [CLS], [SEP], the full stop and further marks.
        closed: as for ``Tokenizer``.
    """
    fixed = {0: "[PAD]", **dict(zip(separators, ("[CLS]", "[SEP]", FULL_STOP, "?"), strict=False))}
    rest = itertools.chain(("[UNK]", "[MASK]"), (f"w{i}" for i in itertools.count()))
    return Tokenizer([fixed.get(i) or next(rest) for i in range(size)], closed=closed)


def _closed(caption: Caption) -> Caption:
    """Return the caption with one full stop behind it and none within a name; no character moves.

    A span leaves out the spaces around its name, of which there may be more than ``span_to_tokens`` skips.
    """
    text, spans = caption.text, []
    for start, end in caption.spans:
        name = text[start:end].translate(PHRASE_ENDS)
        text = text[:start] + name + text[end:]
        first = start + len(name) - len(name.lstrip())
        spans.append((first, first + len(name.strip())) if name.strip() else (start, end))
    return Caption(text + FULL_STOP * (not text.endswith(FULL_STOP)), tuple(spans), caption.names)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def span_to_tokens(encoding: Encoding, span: tuple[int, int]) -> range:
    """Return the indices of the tokens that cover characters ``span`` (end exclusive); empty if there are none.

    A character without a token (a space) is replaced by the next two to the right at the start of the span, and by
    the next two to the left at its end.
    """
    start, end = span
    first, last = (
        next((token for c in characters if c >= 0 and (token := encoding.char_to_token(c)) is not None), None)
        for characters in ((start, start + 1, start + 2), (end - 1, end - 2, end - 3))
    )
    return range(0) if first is None or last is None else range(first, last + 1)
