"""The card of a shared adapter; most of it is tested with the Hub."""

from glip_adapt.adapters.storage import read_description
from glip_adapt.engine.adapted import attach
from glip_adapt.share.card import TrainingFacts, build_card


def test_no_control_code_reaches_the_card(tiny_trunk, tmp_path):
    attach(tiny_trunk, "prompt", classes=["red box"]).save(tmp_path)
    facts = TrainingFacts(data="set \x1b[31m\u202e\x9b\ud800", shots=1, seed=3)
    card = build_card("me/\x1b]0;x\x07", read_description(tmp_path), facts)
    assert not set(card) & set("\x1b\u202e\x9b\ud800\x07")
    assert "| trained on | set \\\\x1b\\[31m\\\\u202e\\\\x9b\\\\ud800 |" in card
