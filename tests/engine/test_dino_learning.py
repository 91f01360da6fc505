"""A network of the Grounding DINO family learns, from random weights and on one thread."""

from dataclasses import replace

import pytest
import torch
from conftest import SHARED
from public_files import VOCABULARY

from glip_adapt.core.settings import FitConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.encoder_config import SwinConfig, TextConfig

RACCOON = SHARED / "data" / "odinw" / "Raccoon"
pytestmark = pytest.mark.skipif(not RACCOON.is_dir(), reason="the development data is not beside this checkout")
SMALL = DinoConfig(
    backbone=SwinConfig(width=16, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), drop_path=0.0),
    text=TextConfig(
        vocabulary_size=950, width=32, layers=1, heads=2, hidden_width=64, dropout=0.0, separators=(2, 3, 5)
    ),
    width=64,
    encoder_layers=1,
    decoder_layers=2,
    heads=4,
    hidden_width=128,
    queries=20,
    dropout=0.0,
    fusion_drop_path=0.0,
    shared_boxes=False,
    scaled_scores=True,
)
CONFIG = FitConfig(
    learning_rate=1e-3, text_learning_rate=1e-3, weight_decay=0.0, schedule="cosine", max_steps=250,
    short_sides=(128,), test_short_side=128, max_long_side=230, flip=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def four():
    """Four photographs with one raccoon each."""
    data = load_dataset(RACCOON)
    return replace(data.train, records=data.train.records[:4])


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    family = DinoFamily()
    network = family.build(SMALL).requires_grad_(False)
    return Trunk("mm-grounding-dino-t", network, family.tokenizer(SMALL, VOCABULARY), "random")


@pytest.mark.slow
def test_full_fine_tuning_learns_four_real_images_by_heart(trunk, four):
    """AP and AP50 were 1.0, after 80 seconds of one core."""
    model = attach(trunk, "full", classes=four.classes)
    train_model(model, four, None, CONFIG)
    found = evaluate(model, four, CONFIG.view)
    assert found.values["ap50"] >= 0.9


@pytest.mark.parametrize(("method", "rate"), [("prompt", 0.05), ("lora", 3e-3)])
def test_a_method_lowers_its_loss_by_a_fifth_while_every_frozen_tensor_stays(method, rate, trunk, four):
    model = attach(trunk, method, classes=four.classes)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    config = replace(CONFIG, max_steps=20, learning_rate=rate, text_learning_rate=rate)
    losses = [step.loss for step in train_model(model, four, None, config).steps]
    assert losses[-1] < 0.8 * losses[0]
    after = model.network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(model.owned)
