"""Baked models: the same numbers without a text encoder, in memory and from a folder."""

import copy
import hashlib
import json
import os
from dataclasses import fields, replace

import pytest
import torch
from conftest import TINY
from PIL import Image
from safetensors.torch import load_file, save_file

from glip_adapt.adapters import ADAPTERS
from glip_adapt.adapters.storage import AdapterMismatchError
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import ImageBatch, Pyramid
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.transforms import collate
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.share.baked import bake, load_baked
from glip_adapt.trunks import tokenizer
from glip_adapt.trunks.glip import build, text
from glip_adapt.trunks.released import TRUNKS
from glip_adapt.trunks.weights import weights_checksum

CLASSES = ("red box", "blue box")
MANY = tuple(f"{colour} {shape}7" for colour in ("red", "blue", "green", "grey") for shape in "abcdefghijklmnop")
# Those without wrapped layers.
METHODS = ("zero_shot", "exemplars", "prompt", "context", "linear_probe", "full", "text_encoder")
CONFIG = ViewConfig(short_side=64)


@pytest.fixture(autouse=True)
def _tiny_by_name(monkeypatch):
    """The tiny trunk calls itself glip-nano."""
    monkeypatch.setitem(TRUNKS, "glip-nano", replace(TRUNKS["glip-nano"], config=TINY))


def adapted(trunk, method, classes=CLASSES, settings=None):
    """A model whose owned tensors are no longer the trunk's."""
    model = attach(trunk, method, classes=classes, settings=settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.owned_tensors().values():
            tensor.add_(0.01 * torch.randn(tensor.shape, generator=generator))
    return model


def pictures():
    generator = torch.Generator().manual_seed(1)
    return collate(
        [torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in ((40, 70), (64, 33))]
    )


def assert_same_bits(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        for field in fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            same = x.numpy().tobytes() == y.numpy().tobytes() if isinstance(x, torch.Tensor) else x == y
            assert same, field.name


@pytest.fixture
def saved(tiny_trunk, tmp_path):
    """A baked prompt in a folder."""
    bake(adapted(tiny_trunk, "prompt")).save(tmp_path / "baked")
    return tmp_path / "baked"


def describe(folder, **changes):
    """Change what ``baked.json`` says."""
    path = folder / "baked.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_those_of_the_model_to_the_last_bit(tiny_trunk, tmp_path, method):
    model = adapted(tiny_trunk, method)
    model.train(False)
    expected = model.outputs(pictures())
    baked = bake(model)
    assert_same_bits(baked.outputs(pictures()), expected)
    baked.save(tmp_path)
    assert_same_bits(load_baked(tmp_path).outputs(pictures()), expected)


def test_every_method_is_baked_here():
    assert set(ADAPTERS) == {*METHODS, "lora"}


@torch.no_grad()
@pytest.mark.parametrize("target", ["all", "fusion", "text", "head"])
def test_factors_of_lora_go_into_the_weights_of_a_baked_model(tiny_trunk, tmp_path, target):
    model = adapted(tiny_trunk, "lora", settings={"target": target})
    model.train(False)
    expected = model.outputs(pictures())
    baked = bake(model)
    assert (baked.method, baked.trunk.checksum) == ("lora", tiny_trunk.checksum)
    baked.save(tmp_path)
    for found in (baked, load_baked(tmp_path)):
        for a, b in zip(found.outputs(pictures()), expected, strict=True):
            for name in ("token_logits", "box_deltas", "centerness"):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-5)
    assert_same_bits(model.outputs(pictures()), expected)  # still unmerged
    assert weights_checksum(tiny_trunk.network) == tiny_trunk.checksum


def test_an_adapter_is_not_saved_over_a_baked_model(saved, tiny_trunk):
    before = sorted(saved.iterdir())
    with pytest.raises(FileExistsError, match="holds a baked model"):
        adapted(tiny_trunk, "prompt").save(saved)
    assert sorted(saved.iterdir()) == before


@torch.no_grad()
def test_a_class_list_of_several_captions_is_baked_caption_by_caption(tiny_trunk, tmp_path):
    model = attach(tiny_trunk, "zero_shot", classes=MANY)
    bake(model).save(tmp_path)
    loaded = load_baked(tmp_path)
    assert loaded.class_names == MANY
    assert_same_bits(loaded.outputs(pictures()), model.outputs(pictures()))


def test_predict_and_evaluate_take_it_like_an_adapted_trunk(tiny_trunk, tmp_path, coco_folder):
    data = load_dataset(coco_folder)
    model = adapted(tiny_trunk, "prompt", data.classes)
    bake(model).save(tmp_path / "baked")
    baked = load_baked(tmp_path / "baked")
    picture = Image.effect_noise((80, 64), 90).convert("RGB")
    assert_same_bits([baked.predict(picture, view=CONFIG)], [model.predict(picture, view=CONFIG)])
    assert evaluate(baked, data.test, CONFIG) == evaluate(model, data.test, CONFIG)


def test_it_is_loaded_without_text_encoder_and_tokenizer(saved, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("built")

    for owner, name in (
        (text.TextEncoder, "__init__"),
        (tokenizer.Tokenizer, "__init__"),
        (build, "TextEncoder"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    loaded = load_baked(saved)
    assert loaded.outputs(pictures())
    assert not any(isinstance(module, torch.nn.Embedding) for module in loaded.network.modules())


def test_the_folder_holds_the_network_but_for_the_text_encoder(saved, tiny_trunk):
    assert {file.name for file in saved.iterdir()} == {"baked.json", "baked.safetensors"}
    names = set(load_file(saved / "baked.safetensors"))
    whole = set(tiny_trunk.network.state_dict())
    assert {name for name in whole if not name.startswith("text_encoder.")} <= names
    assert not any(name.startswith(("text_encoder.", "text_prompt.")) for name in names)


def test_nothing_in_the_loaded_network_is_without_numbers(saved):
    tensors = [*(glip := load_baked(saved).network).parameters(), *glip.buffers()]
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in tensors)


def test_it_stays_what_it_was_when_the_model_is_trained_on(tiny_trunk):
    model = adapted(tiny_trunk, "linear_probe")
    baked = bake(model)
    with torch.no_grad():
        before = baked.outputs(pictures())
        for tensor in model.owned_tensors().values():
            tensor.add_(1)
        assert_same_bits(baked.outputs(pictures()), before)


def test_it_shares_what_the_trunk_shares(tiny_trunk):
    mine = dict(bake(adapted(tiny_trunk, "prompt")).network.named_parameters())
    theirs = dict(tiny_trunk.network.named_parameters())
    assert mine
    assert all(tensor is theirs[name] for name, tensor in mine.items())


def test_baking_leaves_the_model_as_it_was(tiny_trunk):
    model = adapted(tiny_trunk, "prompt")
    with torch.no_grad():
        before = model.outputs(pictures())
        bake(model)
        assert_same_bits(model.outputs(pictures()), before)
    assert model.owned_tensors()["text_prompt.offset"].requires_grad


@pytest.mark.parametrize(("method", "frozen"), [("prompt", Pyramid), ("linear_probe", Pyramid), ("full", ImageBatch)])
def test_features_are_shared_with_the_trunk_only_where_the_image_encoder_is_its_own(tiny_trunk, method, frozen):
    baked = bake(adapted(tiny_trunk, method))
    assert baked.frozen_state is frozen
    assert isinstance(baked.prefix(pictures()), frozen)


def test_it_cannot_be_trained(tiny_trunk):
    baked = bake(adapted(tiny_trunk, "prompt"))
    baked.train(False)
    with pytest.raises(ValueError, match="bake again"):
        baked.train()


def test_an_adapter_that_adds_what_is_not_around_a_linear_layer_is_not_baked(tiny_trunk):
    model = adapted(tiny_trunk, "prompt")
    model.network.tower.low_rank = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"prompt adds 2 tensors, such as tower\.low_rank\.bias"):
        bake(model)


@pytest.mark.parametrize("name", ["baked.json", "baked.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        load_baked(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 7},
        {"classes": []},
        {"captions": []},
        {"captions": [{"classes": 2, "tokens": -7}]},
        {"captions": [{"classes": 2, "tokens": 10**9}]},
        {"captions": [{"classes": 2, "tokens": 8}]},
        {"captions": [{"classes": 3, "tokens": 7}]},
        {"sha256": "0" * 64},
        {"trunk": {"name": "glip-t", "checksum": ""}},
        {"trunk": {"name": "../../secret", "checksum": ""}},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(saved, changes):
    describe(saved, **changes)
    with pytest.raises(ValueError, match=r"baked\.(json|safetensors)|Unknown trunk"):
        load_baked(saved)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "is damaged"),
        ("flipped", "SHA-256"),
        ("swollen", "more than"),
        ("other names", "but 240 came"),
        ("other type", "but 240 came"),
        ("not finite", r"not finite, in head\.bias0"),
    ],
)
def test_a_damaged_network_is_refused(saved, damage, message):
    path = saved / "baked.safetensors"
    content, tensors = bytearray(path.read_bytes()), load_file(path)
    if damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "swollen":
        os.truncate(path, 2**40)
    else:
        bias = tensors.pop("head.bias0")
        changed = {"other names": {"head.bias": bias}, "other type": {"head.bias0": bias.half()}}
        save_file(tensors | changed.get(damage, {"head.bias0": bias * float("nan")}), path)
    if damage == "not finite":  # which its author may have written
        describe(saved, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(AdapterMismatchError, match=rf"baked\.safetensors.*{message}"):
        load_baked(saved)


@pytest.mark.parametrize(("device", "message"), [("gpu", "Unknown device 'gpu'"), ("cuda", "No GPU for device 'cuda'")])
def test_a_device_that_is_not_there_is_an_error_about_the_device(saved, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        load_baked(saved, device)


def test_an_adapter_in_its_place_is_named_with_the_verb_that_bakes_it(tiny_trunk, tmp_path):
    adapted(tiny_trunk, "prompt").save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"saved by `bake`, but .* holds an adapter.*glip-adapt bake"):
        load_baked(tmp_path)


def test_a_folder_with_an_adapter_takes_no_baked_model(tiny_trunk, tmp_path):
    model = adapted(tiny_trunk, "prompt")
    model.save(tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds an adapter"):
        bake(model).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == before


def test_features_of_a_loaded_network_are_known_by_its_own_numbers_whatever_trunk_it_claims(tiny_trunk, saved):
    model = adapted(tiny_trunk, "prompt")
    assert model.frozen_checksum == bake(model).frozen_checksum == tiny_trunk.checksum
    loaded = load_baked(saved)
    assert loaded.trunk.checksum == tiny_trunk.checksum
    assert loaded.frozen_checksum == hashlib.sha256((saved / "baked.safetensors").read_bytes()).hexdigest()


def test_a_deep_copy_of_the_trunk_is_never_made(tiny_trunk, monkeypatch):
    copied = []
    original = copy.deepcopy
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self) or original(self))
    bake(attach(tiny_trunk, "prompt", classes=CLASSES))
    assert copied == []


def test_thresholds_are_baked_in(tiny_trunk, tmp_path):
    model = adapted(tiny_trunk, "prompt")
    model.thresholds = dict.fromkeys(CLASSES, 0.25)
    bake(model).save(tmp_path)
    assert bake(model).thresholds == load_baked(tmp_path).thresholds == model.thresholds
