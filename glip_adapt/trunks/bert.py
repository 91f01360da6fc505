"""BERT (arXiv 1810.04805), the text encoder of all families. The only home of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertModel


def build_bert(*, vocabulary_size: int, width: int, layers: int, heads: int, hidden_width: int) -> BertModel:
    """Return BERT with random weights and without its pooler; the arguments are fields of ``TextConfig``."""
    from transformers import BertConfig, BertModel  # takes seconds, and a baked model does without

    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden_width,
    )
    return BertModel(config, add_pooling_layer=False)
