"""Released trunks of the Grounding DINO family, of a size for tests."""

from dataclasses import replace

from conftest import DINO

from glip_adapt.trunks.released import TRUNKS

SMALL_DINO = replace(DINO, shared_boxes=False, scaled_scores=True)  # as MM-Grounding-DINO and LLMDet


def shrink(monkeypatch, *names):
    """Give released trunks the sizes of ``SMALL_DINO``; all else of their rows stays."""
    for name in names:
        monkeypatch.setitem(TRUNKS, name, replace(TRUNKS[name], config=SMALL_DINO))
