"""Methods on the sizes of GLIP-T train what the modes of the public code do."""

import json
from pathlib import Path

import pytest
import torch

from glip_adapt.core.captions import ClassPrompt, build_caption
from glip_adapt.engine.adapted import attach
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_T
from glip_adapt.trunks.glip.names import public_name, public_names

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "parity" / "tuning_modes.json").read_text())["glip_tiny"]
CLASSES = ("red box", ClassPrompt(name="blue box", prefix="a ", suffix=" on grey"))


@pytest.fixture(scope="module")
def glip_t(tiny_trunk):
    """The sizes of GLIP-T without their numbers."""
    with torch.device("meta"):
        glip = build_glip(GLIP_T)
    return Trunk("glip-t", glip.requires_grad_(False), tiny_trunk.tokenizer, "")


@pytest.mark.parametrize(
    ("method", "mode", "tensors", "numbers"),
    [
        ("full", "full", 726, 231_759_662),
        ("linear_probe", "linear_prob", 9, 198_919),
        ("text_encoder", "language_prompt_v1", 197, 108_891_648),
    ],
)
def test_on_glip_t_a_method_trains_as_much_as_the_public_mode(glip_t, method, mode, tensors, numbers):
    settings = {"frozen": ()} if method == "full" else {}  # the golden counts were made without FREEZE_CONV_BODY_AT
    model = attach(glip_t, method, classes=CLASSES, settings=settings)
    golden = GOLDEN[mode]
    assert (len(model.owned), model.trained_parameters) == (tensors, numbers)
    assert (golden["num_tensors"], golden["num_parameters"]) == (tensors, numbers)
    table = public_names(GLIP_T)
    mine = {public_name(name, table) for name in model.owned}
    if golden["names"] is not None:
        assert mine == set(golden["names"])
    state, counts = model.owned_tensors(), dict.fromkeys(golden["prefix_counts"], 0)
    for name, tensor in state.items():
        counts[".".join(public_name(name, table).split(".")[:2])] += tensor.numel()
    assert counts == golden["prefix_counts"]


def test_on_glip_t_a_prompt_owns_the_rows_of_the_public_table_that_its_caption_uses(glip_t):
    model = attach(glip_t, "prompt", classes=CLASSES)
    tokens = model.captions[0].ids.shape[1]
    (offset,) = model.owned_tensors().values()
    assert offset.shape == (tokens, 768)
    assert GOLDEN["language_prompt_v2"]["num_parameters"] == 1000 * offset.shape[1]
    assert tokens == glip_t.tokenizer.encode(build_caption(CLASSES)).ids.shape[1]
