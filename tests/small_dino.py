"""Networks of the Grounding DINO family of a size for tests, and their files as the Hub has them."""

from dataclasses import replace

from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.encoder_config import SwinConfig, TextConfig
from glip_adapt.trunks.released import TRUNKS

SMALL_DINO = DinoConfig(
    backbone=SwinConfig(width=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
    # [CLS], [SEP] and the full stop of glip-nano's vocabulary
    text=TextConfig(vocabulary_size=950, width=16, layers=1, heads=2, hidden_width=32, dropout=0, separators=(2, 3, 5)),
    width=32,
    encoder_layers=1,
    decoder_layers=2,
    heads=4,
    hidden_width=32,
    queries=20,
    shared_boxes=False,
    scaled_scores=True,
)


def shrink(monkeypatch, *names):
    """Give released trunks of the family the sizes of ``SMALL_DINO``; all else of their rows stays."""
    for name in names:
        monkeypatch.setitem(TRUNKS, name, replace(TRUNKS[name], config=SMALL_DINO))
