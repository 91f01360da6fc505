"""Caption → tokens → text features. The only home of transformers.

BERT (arXiv 1810.04805) as in maskrcnn_benchmark/modeling/language_backbone/bert_model.py; class → token map as in
``create_positive_dict`` of maskrcnn_benchmark/engine/inference.py of the public GLIP code.

Shape letters: B batch, T tokens, K classes, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glip_adapt.core.captions import Caption, ClassPrompt, build_caption
from glip_adapt.core.structures import TextFeatures, Tokens

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_TOKENS = 256  # with [CLS] and [SEP]; 254 remain for the caption
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class CaptionTooLongError(ValueError):
    """A caption has more tokens than the model reads."""


class Tokenizer:
    """Uncased WordPiece with the class → token map of GLIP."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        """Build from WordPiece entries in id order.

        Raises:
            ValueError: if one of the special tokens of BERT is missing.
        """
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(
                f"A WordPiece vocabulary needs {', '.join(SPECIAL_TOKENS)}; {', '.join(missing)} missing among "
                f"{len(vocabulary)} entries. Use the vocab.txt of bert-base-uncased."
            )
        from tokenizers.implementations import BertWordPieceTokenizer  # a baked model does without

        self._tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(vocabulary)}, lowercase=True)
        self.size = len(vocabulary)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Return the tokenizer of a ``vocab.txt``: one entry per line, UTF-8.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is not UTF-8, or not a vocabulary.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No vocabulary at {path}. Name the vocab.txt of bert-base-uncased.")
        try:
            return cls(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def encode(self, caption: Caption) -> Tokens:
        """Return the tokens of one caption, first dimension 1.

        Raises:
            CaptionTooLongError: if there are more than 256 tokens with [CLS] and [SEP].
            ValueError: if a class name maps to no token.
        """
        encoding = self._tokenizer.encode(caption.text)
        if len(encoding.ids) > MAX_TOKENS:
            lengths = [len(span_to_tokens(encoding, span)) for span in caption.spans]
            longest = caption.names[lengths.index(max(lengths))]
            raise CaptionTooLongError(
                f"The caption of {len(caption.names)} classes has {len(encoding.ids) - 2} tokens; GLIP reads "
                f"{MAX_TOKENS - 2}. The longest name, {_short(longest)}, has {max(lengths)}. Shorten the names or "
                "prompts, or split the classes over several runs."
            )
        token_map = torch.zeros(len(caption.names), len(encoding.ids), dtype=torch.bool)
        for row, span, name in zip(token_map, caption.spans, caption.names, strict=True):
            tokens = span_to_tokens(encoding, span)
            if not tokens:
                raise ValueError(
                    f"Class name {name!r} maps to no token of the caption {caption.text!r}. "
                    "Give it a name with letters or digits."
                )
            row[list(tokens)] = True
        ids = torch.tensor([encoding.ids])
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), token_map[None])

    def encode_in_chunks(self, classes: Sequence[str | ClassPrompt]) -> list[Tokens]:
        """Return the tokens of as few captions as hold all classes in order.

        Each chunk's ``token_map`` has one row per class of the *chunk*; rows over all chunks are the classes.
        """
        try:
            return [self.encode(build_caption(classes))]
        except CaptionTooLongError:
            if len(classes) == 1:
                raise
        chunks, start = [], 0
        while start < len(classes):
            chunk, end = None, start
            while end < len(classes):
                try:
                    chunk, end = self.encode(build_caption(classes[start : end + 1])), end + 1
                except CaptionTooLongError:
                    if chunk is None:
                        raise
                    break
            assert chunk is not None
            chunks.append(chunk)
            start = end
        return chunks

    def doubts(self, classes: Sequence[ClassPrompt], captions: Sequence[Tokens]) -> list[str]:
        """Return what a detector cannot know about classes, in sentences: unknown words, and names that read the same.

        Args:
            classes: in label order.
            captions: their tokens, from ``encode_in_chunks``.
        """
        unknown, sentences = self._tokenizer.token_to_id("[UNK]"), []
        seen: dict[tuple[Any, ...], str] = {}
        owned = [ids[row].tolist() for tokens in captions for ids in tokens.ids for row in tokens.token_map[0]]
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


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def span_to_tokens(encoding: Encoding, span: tuple[int, int]) -> range:
    """Return the indices of the tokens that cover characters ``span`` (end exclusive); empty if there are none.

    A character without a token (a space) is replaced by the next two to the right at the start of the span, and by
    the next two to the left at its end.
    """
    start, end = span
    first = _first_token(encoding, (start, start + 1, start + 2))
    last = _first_token(encoding, (end - 1, end - 2, end - 3))
    return range(0) if first is None or last is None else range(first, last + 1)


def _first_token(encoding: Encoding, characters: Sequence[int]) -> int | None:
    for character in characters:
        token = encoding.char_to_token(character) if character >= 0 else None
        if token is not None:
            return token
    return None


class TextEncoder(nn.Module):
    """BERT; the features are its last hidden layer."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden_width: int,
        max_positions: int = 512,
        separators: Sequence[int] = (),
    ) -> None:
        """Build with random weights.

        Args:
            vocabulary_size: WordPiece entries.
            width: channels D.
            layers: encoder layers.
            heads: attention heads.
            hidden_width: channels of the feed-forward layer.
            max_positions: longest caption in tokens.
            separators: ids that end a phrase. With them, attention and positions stay within a phrase, so that a
                name has the same features in every caption, as in Grounding DINO (arXiv 2303.05499, section 3.4);
                without, as in GLIP, each token sees the whole caption.
        """
        super().__init__()
        self.separators = tuple(separators)
        from transformers import BertConfig, BertModel  # takes seconds, and a baked model does without

        config = BertConfig(
            vocab_size=vocabulary_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden_width,
            max_position_embeddings=max_positions,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, D)."""
        mask, positions = None, None
        if self.separators:
            mask, positions = phrase_attention(tokens.ids, self.separators)
        elif not tokens.mask.all():  # without padding, no mask keeps attention on its fastest path
            mask = tokens.mask.long()
        features = self.bert(input_ids=tokens.ids, attention_mask=mask, position_ids=positions).last_hidden_state
        return TextFeatures(features, tokens.mask, tokens.token_map)


def phrase_attention(ids: Tensor, separators: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return which tokens see each other, (B, 1, T, T) bool, and the place of each in its phrase, (B, T) int64.

    A separator sees only itself. What follows the last one, [PAD] after [SEP], is a phrase like any other.
    """
    separates = torch.isin(ids, torch.tensor(separators, device=ids.device))
    phrase = 2 * separates.cumsum(1) - separates.long()  # odd for the separators, even for what stands between
    together = phrase[:, None, :, None] == phrase[:, None, None, :]
    place = torch.arange(ids.shape[1], device=ids.device)
    first = together[:, 0].int().argmax(-1)  # of the tokens that one sees
    return together, place - first
