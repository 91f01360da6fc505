"""What users do with a trunk of the Grounding DINO family, beyond the contract of methods, at sizes for tests."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import DINO
from PIL import Image

from glip_adapt.adapters import ADAPTERS
from glip_adapt.core.captions import MAX_TOKENS, build_caption
from glip_adapt.core.settings import FitConfig, ViewConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.transforms import collate
from glip_adapt.engine import memory
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.memory import estimate_memory
from glip_adapt.engine.train import train_model
from glip_adapt.share.baked import bake, load_baked
from glip_adapt.share.export import export_onnx, export_program
from glip_adapt.share.tasks import TaskSet
from glip_adapt.trunks.catalogue import random_trunk
from glip_adapt.trunks.dino.geometry import geometry
from glip_adapt.trunks.released import TRUNKS
from glip_adapt.trunks.weights import weights_checksum

VIEW = ViewConfig(short_side=64, max_long_side=96)
CONFIG = FitConfig(
    short_sides=(64,), test_short_side=64, max_long_side=96, batch_size=2, epochs=1, learning_rate=1e-3,
    text_learning_rate=1e-3,
)  # fmt: skip
TRAINED = [method for method in ADAPTERS if method != "zero_shot"]
COLOURS = ("red", "blue", "green", "grey")
# 130 names of two or more tokens; with a full stop behind each that is more than a caption holds.
MANY = tuple(f"{colour} {first}{second}7" for colour in COLOURS for first in "abcdef" for second in "ghijkl")[:130]


@pytest.fixture(autouse=True)
def _row(monkeypatch):
    """The row of ``dino_trunk`` in the catalogue has its sizes."""
    monkeypatch.setitem(TRUNKS, "grounding-dino-t", replace(TRUNKS["grounding-dino-t"], config=DINO))


def picture(seed, size=(80, 64)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def moved(trunk, method, classes):
    """Return a model whose owned tensors are no longer the trunk's."""
    model = attach(trunk, method, classes=classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.owned_tensors().values():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=generator))
    return model


def assert_same(found, expected, tolerance=0.0):
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=tolerance)
    if not tolerance:  # else pairs of nearly the same score may swap
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)


# Captions ------------------------------------------------------------------------------------------------------------


def test_classes_that_fill_several_captions_are_detected_in_chunks(dino_trunk):
    model = attach(dino_trunk, "zero_shot", classes=MANY)
    assert len(model.captions) > 1
    assert sum(model.class_counts) == len(MANY)
    assert all(tokens.ids.shape[1] <= MAX_TOKENS for tokens in model.captions)
    found = model.predict(picture(0), view=VIEW)
    assert found.class_names == MANY
    start = 0
    for count in model.class_counts:  # each caption alone
        part = attach(dino_trunk, "zero_shot", classes=MANY[start : start + count]).predict(picture(0), view=VIEW)
        mine = found.select((found.labels >= start) & (found.labels < start + count))
        assert_same(replace(mine, labels=mine.labels - start), part)
        start += count


def test_classes_that_fill_several_captions_are_evaluated(dino_trunk, coco_folder):
    data = load_dataset(coco_folder)
    classes = (*data.classes, *MANY)
    split = replace(data.test, classes=classes, category_ids=(*data.test.category_ids, *range(100, 100 + len(MANY))))
    model = attach(dino_trunk, "zero_shot", classes=classes)
    assert len(model.captions) > 1
    found = evaluate(model, split, VIEW)
    assert found.ap is not None
    assert len({entry["category_id"] for entry in found.predictions}) > 20


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_that_trains_takes_one_caption_and_says_so(method, dino_trunk):
    with pytest.raises(ValueError, match=rf"\d+ classes need \d captions, and {method} trains on one.*zero_shot"):
        attach(dino_trunk, method, classes=MANY)


def test_names_with_marks_inside_are_classes_like_others(dino_trunk):
    names = ("red box", "st. box", "what?", "grey, blue")
    model = attach(dino_trunk, "prompt", classes=names)
    assert model.captions[0].token_map.shape[1] == 4
    assert model.predict(picture(0), view=VIEW).class_names == names


def test_a_phrase_scores_the_same_whatever_stands_around_it_before_the_fusion(dino_trunk):
    """Names do not see each other in the text encoder: two captions differ in nothing but what they share."""
    one, other = (
        dino_trunk.network.encode_text(dino_trunk.tokenizer.encode(build_caption(names)))
        for names in (("red box", "star"), ("red box", "blue circle", "die"))
    )
    torch.testing.assert_close(one.features[0, 1:3], other.features[0, 1:3], rtol=0, atol=1e-6)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(coco_folder):
    return load_dataset(coco_folder)


@pytest.mark.parametrize("method", ["prompt", "full"])
def test_computing_layers_again_trains_alike(method, dino_trunk, data):
    """Dropout is drawn again as it was, so nothing but rounding differs."""
    found = []
    for recompute in (False, True):
        model = attach(dino_trunk, method, classes=data.classes)
        steps = train_model(model, data.train, None, replace(CONFIG, max_steps=2, recompute=recompute)).steps
        found.append([loss for step in steps for loss in step.losses.values()])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_losses_are_those_of_tokens_and_boxes(dino_trunk, data):
    (step, *_) = train_model(attach(dino_trunk, "prompt", classes=data.classes), data.train, None, CONFIG).steps
    assert step.losses.keys() == {"token", "box", "giou"}
    assert all(loss > 0 for loss in step.losses.values())


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured_trunk():
    """Random weights and a vocabulary of w0 w1 …, as estimates are made with."""
    return random_trunk("grounding-dino-t")


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "prompt", "full"])
def test_the_estimate_for_a_size_that_was_not_probed_is_what_a_step_takes(method, measured_trunk, monkeypatch):
    size_hw = (320, 512)
    geometry.cache_clear()  # tables of places are kept, and count where they are made
    estimate = estimate_memory(measured_trunk, method, size_hw)
    monkeypatch.setattr(memory, "PROBES_HW", (size_hw, (128, 128)))
    geometry.cache_clear()
    assert estimate.activations == pytest.approx(estimate_memory(measured_trunk, method, size_hw).activations, rel=0.1)
    model = attach(measured_trunk, method, classes=[f"w{2 * i} w{2 * i + 1}" for i in range(10)])
    assert estimate.trained == 16 * model.trained_parameters


def test_computing_layers_again_takes_less(measured_trunk):
    plain, again = (estimate_memory(measured_trunk, "full", (320, 512), recompute=again) for again in (False, True))
    assert again.activations < 0.7 * plain.activations


# Tasks, baked models, export -----------------------------------------------------------------------------------------


def test_several_tasks_detect_as_each_alone_and_the_trunk_stays(dino_trunk):
    classes = {"prompt": ("red box", "star"), "lora": ("box",), "linear_probe": ("die", "box"), "full": ("a",)}
    tasks = TaskSet(dino_trunk)
    for method, names in classes.items():
        tasks.add(method, moved(dino_trunk, method, names))
    for method in classes:
        (alone,) = tasks.predict([picture(0)], [method], VIEW)
        assert_same(alone, tasks[method].predict(picture(0), view=VIEW))
    order = ["prompt", "full", "lora", "prompt", "linear_probe"]
    images = [picture(i, size) for i, size in enumerate([(80, 64), (90, 64), (80, 64), (64, 100), (80, 60)])]
    for name, image, found in zip(order, images, tasks.predict(images, order, VIEW), strict=True):
        assert_same(found, tasks[name].predict(image, view=VIEW), tolerance=1e-5)
    assert weights_checksum(dino_trunk.network) == dino_trunk.checksum


@pytest.mark.parametrize("method", ADAPTERS)
def test_a_baked_model_predicts_what_the_adapted_one_does(method, dino_trunk, tmp_path):
    model = moved(dino_trunk, method, ("red box", "what? a star"))
    expected = model.predict(picture(1), view=VIEW)
    bake(model).save(tmp_path / "baked")
    found = load_baked(tmp_path / "baked").predict(picture(1), view=VIEW)
    assert_same(found, expected, tolerance=1e-5 if method == "lora" else 0.0)  # factors are folded
    assert found.class_names == expected.class_names


def test_a_baked_model_of_several_captions_predicts_the_same(dino_trunk, tmp_path):
    model = attach(dino_trunk, "zero_shot", classes=MANY)
    bake(model).save(tmp_path)
    assert_same(load_baked(tmp_path).predict(picture(1), view=VIEW), model.predict(picture(1), view=VIEW))


def test_lora_serves_other_classes_by_the_same_factors(dino_trunk):
    adapted = adapt(dino_trunk, "lora")
    one, other = adapted.for_classes(["red box"]), adapted.for_classes(["star", "die", "what?"])
    before = other.predict(picture(0), view=VIEW)
    with torch.no_grad():
        for tensor in one.owned_tensors().values():
            tensor.add_(0.05)
    assert not torch.equal(other.predict(picture(0), view=VIEW).scores, before.scores)


def test_export_says_that_this_family_cannot_be_exported(dino_trunk, tmp_path):
    baked = bake(attach(dino_trunk, "prompt", classes=["red box"]))
    for export in (export_program, lambda model: export_onnx(model, tmp_path / "model.onnx")):
        with pytest.raises(NotImplementedError, match=r"Dino cannot be exported\. Use its baked model in PyTorch\."):
            export(baked)
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_so_too(dino_trunk, tmp_path, glip):
    bake(attach(dino_trunk, "prompt", classes=["red box"])).save(tmp_path / "baked")
    code, _, err = glip("export", tmp_path / "baked", "--out", tmp_path / "model.onnx")
    assert code == 1
    assert "cannot be exported. Use its baked model in PyTorch" in err
    assert "Traceback" not in err


# Batches of a view ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_batch_with_one_caption_equals_images_by_themselves(dino_trunk):
    network = copy.deepcopy(dino_trunk.network).double()
    model = attach(replace(dino_trunk, network=network), "prompt", classes=["red box", "star"])
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(3)]
    (together,) = model.outputs(collate(images))
    for i, image in enumerate(images):
        (alone,) = model.outputs(collate([image]))
        torch.testing.assert_close(alone.layers[-1].boxes[0], together.layers[-1].boxes[i], rtol=0, atol=1e-12)
