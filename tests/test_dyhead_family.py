"""The supervised baseline: a detector without language, whose classifier has a row for each class."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import SHARED, TINY
from PIL import Image
from safetensors.torch import save_file

from glip_adapt.adapters import ADAPTERS
from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.settings import FitConfig, ViewConfig
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.transforms import collate
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.load import load_adapter
from glip_adapt.engine.prompting import search_prompts
from glip_adapt.engine.train import train_model
from glip_adapt.share.baked import bake, load_baked
from glip_adapt.share.trials import METHODS, methods_for
from glip_adapt.trunks.catalogue import Trunk, load_trunk
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.dyhead.config import DyHeadConfig
from glip_adapt.trunks.encoder_config import SwinConfig
from glip_adapt.trunks.released import TRUNKS
from glip_adapt.trunks.weights import save_tensors, weights_checksum

SMALL = DyHeadConfig(backbone=TINY.backbone, image_width=32, blocks=1, anchor_scale=4, drop_block=0.0, classes=5)
SWIN = replace(SMALL, backbone=SwinConfig())
VIEW = ViewConfig(short_side=64, max_long_side=96)
CONFIG = FitConfig(short_sides=(64,), test_short_side=64, max_long_side=96, max_steps=3, validate_every=3, flip=False)
NAMES = ("red box", "star", "die")


@pytest.fixture(scope="module")
def trunk():
    """Random weights; the row of dyhead-nano."""
    family = TRUNKS["dyhead-nano"].family
    network = family.drawn(SMALL).requires_grad_(False)
    return Trunk("dyhead-nano", network, family.tokenizer(SMALL, None), weights_checksum(network))


@pytest.fixture(autouse=True)
def _row(monkeypatch):
    monkeypatch.setitem(TRUNKS, "dyhead-nano", replace(TRUNKS["dyhead-nano"], config=SMALL))


def moved(trunk, method="linear_probe", classes=NAMES):
    """Return a model whose rows differ, and score high enough to be seen."""
    model = attach(trunk, method, classes=classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.owned_tensors().items():
            if name.startswith("head.classes"):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def picture(seed=0, size=(80, 64)):
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (*reversed(size), 3), generator=generator, dtype=torch.uint8).numpy())


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for name in ("boxes_xyxy", "scores", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


# The classifier ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_are_those_of_a_linear_layer(trunk):
    model = moved(trunk)
    network, (text,) = model.network, model.texts()
    images = collate([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    fused = network.fuse(network.encode_image(images), text)
    logits = network.predict(fused).token_logits
    rows = F.linear(fused.pyramid.cells, network.head.classes.weight, network.head.classes.bias)
    assert logits.shape[-1] == len(NAMES)
    torch.testing.assert_close(logits, rows[..., : len(NAMES)])


def test_rows_in_another_order_give_labels_in_another_order(trunk):
    one, other = moved(trunk), moved(trunk, classes=NAMES[::-1])
    with torch.no_grad():
        for name in ("head.classes.weight", "head.classes.bias"):
            tensor = other.owned_tensors()[name]
            tensor[:3] = tensor[:3].flip(0)
    found, expected = other.predict(picture(), view=VIEW), one.predict(picture(), view=VIEW)
    torch.testing.assert_close(found.scores, expected.scores)
    assert [found.class_names[i] for i in found.labels] == [expected.class_names[i] for i in expected.labels]


def test_training_does_not_depend_on_the_order_of_the_classes(trunk, coco_folder):
    data = load_dataset(coco_folder).train
    targets = [record.learned() if callable(record.learned) else record.learned for record in data.records]
    records = [
        replace(record, learned=replace(target, labels=1 - target.labels))
        for record, target in zip(data.records, targets, strict=True)
    ]
    swapped = replace(data, classes=data.classes[::-1], category_ids=data.category_ids[::-1], records=tuple(records))
    one, other = (attach(trunk, "linear_probe", classes=split.classes) for split in (data, swapped))
    for model, split in ((one, data), (other, swapped)):
        train_model(model, split, None, CONFIG)
    rows, turned = (model.network.head.classes.weight[:2] for model in (one, other))
    assert rows.abs().max() > 0
    torch.testing.assert_close(rows, turned.flip(0), rtol=0, atol=1e-6)


@torch.no_grad()
def test_batches_of_any_size_equal_images_by_themselves(trunk):
    model = moved(trunk)
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(3)]
    for batch in (images[:2], images):
        (together,) = model.outputs(collate(batch))
        for i, image in enumerate(batch):
            (alone,) = model.outputs(collate([image]))
            torch.testing.assert_close(alone.token_logits[0], together.token_logits[i], rtol=0, atol=1e-4)


def test_before_training_nothing_is_found_and_a_warning_says_so(trunk, caplog):
    model = attach(trunk, "zero_shot", classes=NAMES)
    assert len(model.predict(picture(), view=VIEW)) == 0
    assert "knows no class before it is trained" in caplog.text


def test_names_may_be_alike_as_only_their_places_count(trunk, caplog):
    attach(trunk, "full", classes=("box", "Box", "日本"))
    assert not caplog.text


# Classes and methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "context", "lora", "text_encoder"])
def test_methods_that_work_by_text_are_refused(method, trunk):
    with pytest.raises(ValueError, match=rf"reads no text.*so {method} has nothing.*Use linear_probe or full"):
        attach(trunk, method, classes=NAMES)
    assert ADAPTERS[method].needs_text


def test_more_classes_than_rows_are_refused(trunk):
    with pytest.raises(ValueError, match="rows for 5 classes, got 6"):
        attach(trunk, "full", classes=[f"c{i}" for i in range(6)])


def test_a_model_serves_no_other_classes_and_two_lists_leave_the_trunk_alone(trunk):
    one, other = moved(trunk, "full"), attach(trunk, "full", classes=("box",))
    assert one.network.head.classes.weight.any()
    assert not other.network.head.classes.weight.any()
    assert weights_checksum(trunk.network) == trunk.checksum
    with pytest.raises(ValueError, match="full belong to these classes"):
        one.for_classes(["box"])


@pytest.mark.parametrize("method", ["linear_probe", "full"])
def test_saved_and_baked_models_predict_the_same(method, trunk, tmp_path):
    model = moved(trunk, method)
    expected = model.predict(picture(), view=VIEW)
    model.save(tmp_path / "adapter")
    assert_same(load_adapter(tmp_path / "adapter", trunk).predict(picture(), view=VIEW), expected)
    bake(model).save(tmp_path / "baked")
    assert_same(load_baked(tmp_path / "baked").predict(picture(), view=VIEW), expected)


# Files ---------------------------------------------------------------------------------------------------------------


def test_without_a_file_the_weights_are_always_alike_and_other_random_numbers_stay():
    state = torch.get_rng_state()
    one, other = load_trunk("dyhead-nano", device="cpu"), load_trunk("dyhead-nano", device="cpu")
    assert one.checksum == other.checksum
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def classifier():
    """Swin-T of timm with random weights; in smaller pictures it would not shift the windows of the last stage.

    Norms and biases are random too, as none is seen where it starts at one or zero.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=448).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or len(parameter) == 13**2:  # norms, biases, and those by relative position
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def swin_row(monkeypatch):
    monkeypatch.setitem(TRUNKS, "dyhead-t", replace(TRUNKS["dyhead-t"], config=SWIN))


def test_a_file_of_microsoft_gives_the_same_weights_and_our_own_too(classifier, swin_row, tmp_path):
    entries = classifier.state_dict()
    save_file(entries, tmp_path / "timm.safetensors")
    early = {
        f"layers.{int(key[7]) - 1}{key[8:]}" if ".downsample." in key else key: value for key, value in entries.items()
    }
    assert early.keys() != entries.keys()
    torch.save({"model": early}, tmp_path / "microsoft.pth")
    files = [tmp_path / name for name in ("timm.safetensors", "microsoft.pth")]
    one, other = (load_trunk("dyhead-t", checkpoint=file, device="cpu") for file in files)
    assert one.checksum == other.checksum
    save_tensors(one.network.state_dict(), tmp_path / "ours.safetensors", {})
    assert load_trunk("dyhead-t", checkpoint=tmp_path / "ours.safetensors", device="cpu").checksum == one.checksum


@torch.no_grad()
def test_the_last_stages_of_the_backbone_are_the_features_of_timm(classifier, swin_row, tmp_path):
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    timms = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=448, features_only=True).eval()
    entries = classifier.state_dict()
    timms.load_state_dict({key: entries[key.replace("layers_", "layers.")] for key in timms.state_dict()})
    backbone = load_trunk("dyhead-t", checkpoint=tmp_path / "timm.safetensors", device="cpu").network.image_encoder
    pixels = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    _, *expected = timms(pixels)
    found = backbone.backbone(pixels.flip(1))  # RGB there, BGR here
    for one, other in zip(found, expected, strict=True):
        other = F.layer_norm(other, other.shape[-1:]).permute(0, 3, 1, 2)  # ours have norms, which start alike
        assert torch.linalg.norm(one - other) < 1e-4 * torch.linalg.norm(other)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_another_file_is_refused_by_its_entries(classifier, swin_row, tmp_path):
    entries = {k: v for k, v in classifier.state_dict().items() if not k.startswith("layers.3")}
    save_file(entries, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"of dyhead-t.*\n.*missing: image_encoder.backbone.stages.3"):
        load_trunk("dyhead-t", checkpoint=tmp_path / "part.safetensors", device="cpu")


@pytest.mark.slow
def test_four_photographs_are_learnt_by_heart(monkeypatch):
    if not (SHARED / "data" / "odinw" / "Raccoon").is_dir():
        pytest.skip("the photographs are not beside this checkout")
    monkeypatch.undo()  # the released size
    split = load_dataset(SHARED / "data" / "odinw" / "Raccoon").train
    four = replace(split, records=split.records[:4])
    config = FitConfig(
        learning_rate=2e-3, weight_decay=0.0, schedule="cosine", max_steps=200, short_sides=(128,), test_short_side=128,
        max_long_side=230, flip=False,
    )  # fmt: skip
    model = attach(load_trunk("dyhead-nano", device="cpu"), "full", classes=four.classes)
    train_model(model, four, None, config)
    assert evaluate(model, four, config.view).values["ap50"] >= 0.9


def test_auto_tries_the_methods_that_need_no_text(trunk, tiny_trunk):
    assert methods_for(trunk) == ["full"]
    assert methods_for(tiny_trunk) == list(METHODS)


def test_sentences_and_captions_are_refused(trunk, coco_folder):
    refused = pytest.raises(ValueError, match="dyhead-nano reads no text, so that it cannot read sentences")
    with refused:
        adapt(trunk, "full").ground(picture(), "a [red box]")
    with refused:
        moved(trunk).ground(picture(), "a [red box]")
    record = load_dataset(coco_folder).train.records[0]
    image = CaptionedImage(record=record, sentences=(sentence_caption("a [red box]"),))
    with refused:
        adapt(trunk, "full").for_captions(CaptionedSplit("captions", (image,)))


def test_no_wording_is_searched_for(trunk, coco_folder):
    with pytest.raises(ValueError, match="dyhead-nano reads no text, so that no wording is better"):
        search_prompts(trunk, load_dataset(coco_folder), ["a {}"])
