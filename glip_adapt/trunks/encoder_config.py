"""Sizes of the image and text encoders that the families share; read without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Swin Transformer backbone."""

    width: int = 96
    "channels of the first stage"
    depths: tuple[int, ...] = (2, 2, 6, 2)
    "blocks per stage"
    heads: tuple[int, ...] = (3, 6, 12, 24)
    "attention heads per stage"
    window: int = 7
    "side of an attention window, cells"
    drop_path: float = 0.2
    "stochastic depth of the last block while training"
    outputs: int = 3
    "how many of the last stages give a feature map; the last one has stride 32"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """BERT text encoder."""

    vocabulary_size: int = 30_522
    "WordPiece entries"
    width: int = 768
    "channels"
    layers: int = 12
    "encoder layers"
    heads: int = 12
    "attention heads"
    hidden_width: int = 3072
    "channels of the feed-forward layer"
    dropout: float = 0.1
    "in the text layers of the fusion while training"
    separators: tuple[int, ...] = ()
    "WordPiece ids between which a phrase is read by itself; without, the whole caption is read as one"


SWIN_T, BERT_BASE = SwinConfig(), TextConfig()
