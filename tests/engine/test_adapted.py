"""What a saved adapter belongs to, and captions that are too long."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from glip_adapt.adapters import storage as files
from glip_adapt.adapters.protocol import Stage
from glip_adapt.adapters.storage import FORMAT_VERSIONS, AdapterMismatchError
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.transforms import collate
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.load import load_adapter
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_T
from glip_adapt.trunks.tokenizer import CaptionTooLongError
from glip_adapt.trunks.weights import weights_checksum

CLASSES = ("red box", "blue box")
MANY = tuple(f"{colour} {shape}7" for colour in ("red", "blue", "green", "grey") for shape in "abcdefghijklmnop")


@pytest.fixture
def saved(tiny_trunk, tmp_path):
    """A prompt adapter in a folder, with an offset that is not zero."""
    model = attach(tiny_trunk, "prompt", classes=CLASSES)
    with torch.no_grad():
        model.owned_tensors()["text_prompt.offset"].normal_(generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def describe(folder, **changes):
    """Change what ``adapter.json`` says; None removes an entry."""
    path = folder / "adapter.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_files_are_small_and_say_what_they_belong_to(saved, tiny_trunk):
    assert {file.name for file in saved.iterdir()} == {"adapter.json", "adapter.safetensors"}
    assert sum(file.stat().st_size for file in saved.iterdir()) <= 100_000
    description = json.loads((saved / "adapter.json").read_text())
    rows = tiny_trunk.tokenizer.encode_in_chunks(CLASSES)[0].ids.shape[1]
    assert description == {
        "format_version": FORMAT_VERSIONS[-1],
        "method": "prompt",
        "config": {},
        "trunk": {"name": "glip-nano", "checksum": tiny_trunk.checksum},
        "classes": [{"name": name, "prefix": "", "suffix": ""} for name in CLASSES],
        "trained_parameters": 32 * rows,
        "sha256": hashlib.sha256((saved / "adapter.safetensors").read_bytes()).hexdigest(),
        "thresholds": {},
    }
    assert {name: tensor.shape for name, tensor in load_file(saved / "adapter.safetensors").items()} == {
        "text_prompt.offset": (rows, 32)
    }


def test_thresholds_travel_with_the_adapter(tiny_trunk, tmp_path):
    model = attach(tiny_trunk, "prompt", classes=CLASSES)
    model.thresholds = dict(zip(CLASSES, (0.2, 1.0), strict=True))
    model.save(tmp_path)
    assert load_adapter(tmp_path, trunk=tiny_trunk).thresholds == model.thresholds


@pytest.mark.parametrize("thresholds", [{"red box": 0.5}, {"red box": 0.5, "blue box": 1.5}, {"a": 0.5, "b": 0.5}])
def test_thresholds_of_other_classes_or_out_of_range_are_refused(saved, tiny_trunk, thresholds):
    describe(saved, thresholds=thresholds)
    with pytest.raises(AdapterMismatchError, match="expected a score from 0 to 1 for each class"):
        load_adapter(saved, trunk=tiny_trunk)


def test_an_adapter_of_the_version_before_thresholds_loads(saved, tiny_trunk):
    describe(saved, format_version=2, thresholds=None)
    assert load_adapter(saved, trunk=tiny_trunk).thresholds == {}


def test_a_prompt_for_glip_t_stays_below_a_hundred_kilobytes(tiny_trunk, tmp_path):
    """32 rows of 768 numbers: a caption of about ten classes."""
    width = GLIP_T.text.width
    config = replace(GLIP_T, backbone="test_convnext", text=replace(GLIP_T.text, layers=0, vocabulary_size=109))
    glip = build_glip(replace(config, blocks=0)).requires_grad_(False)
    model = attach(Trunk("glip-t", glip, tiny_trunk.tokenizer, ""), "prompt", classes=CLASSES)
    rows = model.captions[0].ids.shape[1]
    model.save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 4 * rows * width + 2_000
    assert size + 4 * (32 - rows) * width <= 100_000


def test_saving_again_replaces_the_adapter(saved, tiny_trunk):
    attach(tiny_trunk, "linear_probe", classes=("box",)).save(saved)
    assert load_adapter(saved, trunk=tiny_trunk).adapter.name == "linear_probe"
    assert {file.name for file in saved.iterdir()} == {"adapter.json", "adapter.safetensors"}


def test_settings_and_prompts_survive(tiny_trunk, tmp_path):
    classes = (ClassPrompt(name="kräftig", prefix="a ", suffix=" one"), "blue box")
    model = attach(tiny_trunk, "full", classes=classes, settings={"frozen": ("image_encoder", "tower.blocks.1")})
    model.save(tmp_path)
    loaded = load_adapter(tmp_path, trunk=tiny_trunk, classes=classes)
    assert (loaded.adapter, loaded.prompts, loaded.owned) == (model.adapter, model.prompts, model.owned)
    assert "kräftig" in (tmp_path / "adapter.json").read_text(encoding="utf-8")


def test_other_weights_are_refused_and_both_are_named(saved, tiny_trunk):
    other = replace(tiny_trunk, checksum="0123456789abcdef" * 4)
    with pytest.raises(AdapterMismatchError, match=rf"{tiny_trunk.checksum[:12]}.*this trunk.*0123456789ab"):
        load_adapter(saved, trunk=other)


def test_another_trunk_is_refused_and_both_are_named(saved, tiny_trunk):
    with pytest.raises(AdapterMismatchError, match=r"trained on glip-nano.*this trunk is glip-t "):
        load_adapter(saved, trunk=replace(tiny_trunk, name="glip-t"))


def test_the_checksum_tells_trunks_apart_by_a_single_number(tiny_trunk):
    glip = attach(tiny_trunk, "full", classes=CLASSES).network
    assert weights_checksum(glip) == tiny_trunk.checksum
    with torch.no_grad():
        glip.head.bias0.add_(1e-6)
    assert weights_checksum(glip) != tiny_trunk.checksum


@pytest.mark.parametrize(
    "classes",
    [
        ("red box",),
        ("blue box", "red box"),
        ("red box", "green box"),
        ("red box", ClassPrompt(name="blue box", prefix="a ")),
        ("red box", ClassPrompt(name="blue box", suffix=" on grey")),
        ("red box", "blue box", "green box"),
    ],
    ids=str,
)
def test_another_class_list_order_or_prompt_is_refused_and_both_are_named(saved, tiny_trunk, classes):
    asked = [c if isinstance(c, str) else f"{c.prefix}{c.name}{c.suffix}" for c in classes]
    with pytest.raises(AdapterMismatchError) as caught:
        load_adapter(saved, trunk=tiny_trunk, classes=classes)
    assert repr(list(CLASSES)) in str(caught.value)
    assert repr(asked) in str(caught.value)


def test_a_class_list_in_another_shape_is_the_same(saved, tiny_trunk):
    assert load_adapter(str(saved), trunk=tiny_trunk, classes=[ClassPrompt(name=name) for name in CLASSES]).prompts


def test_another_format_version_is_refused_and_both_are_named(saved, tiny_trunk):
    describe(saved, format_version=FORMAT_VERSIONS[-1] + 8)
    with pytest.raises(AdapterMismatchError, match=rf"version {FORMAT_VERSIONS[-1] + 8}; this version reads 2 and 3"):
        load_adapter(saved, trunk=tiny_trunk)


def test_an_unknown_method_lists_those_that_exist(saved, tiny_trunk):
    describe(saved, method="promt")
    with pytest.raises(ValueError, match=r"'promt'.*prompt"):
        load_adapter(saved, trunk=tiny_trunk)


def test_an_unknown_setting_is_refused_by_name(saved, tiny_trunk):
    describe(saved, config={"rows": 7})
    with pytest.raises(ValueError, match="rows"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named(saved, tiny_trunk, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        load_adapter(saved, trunk=tiny_trunk)


def test_a_file_that_cannot_be_read_is_not_called_damaged(saved, tiny_trunk, monkeypatch):
    def refuse(path, device):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(files, "load_file", refuse)
    with pytest.raises(PermissionError):
        load_adapter(saved, trunk=tiny_trunk)


def test_a_missing_folder_is_named(tiny_trunk, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No adapter in .*nowhere"):
        load_adapter(tmp_path / "nowhere", trunk=tiny_trunk)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe\x00"])
def test_what_is_no_description_is_refused_by_path(saved, tiny_trunk, content):
    (saved / "adapter.json").write_bytes(content)
    with pytest.raises(AdapterMismatchError, match=r"adapter\.json describes no adapter"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize("key", ["format_version", "method", "config", "trunk", "classes", "sha256"])
def test_a_description_that_lacks_an_entry_is_refused_by_path_and_entry(saved, tiny_trunk, key):
    describe(saved, **{key: None})
    with pytest.raises(AdapterMismatchError, match=rf"adapter\.json.*{key}"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trunk", {"name": "glip-nano"}),
        ("trunk", "glip-nano"),
        ("classes", ["red box"]),
        ("classes", [{"title": "red box"}]),
        ("config", 3),
        ("method", ["prompt"]),
    ],
)
def test_an_entry_of_the_wrong_shape_is_refused_by_path(saved, tiny_trunk, key, value):
    describe(saved, **{key: value})
    with pytest.raises(AdapterMismatchError, match=r"adapter\.json"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"text_prompt.offset": torch.zeros(3, 32)}, r"\(3, 32\)"),
        ({"text_prompt.ofset": torch.zeros(13, 32)}, r"text_prompt\.ofset"),
        ({"text_prompt.offset": torch.zeros(7, 32, dtype=torch.float64)}, "float32.*float64"),
        ({"text_prompt.offset": torch.zeros(7, 32, dtype=torch.int32)}, "float32.*int32"),
        ({}, "0 came"),
        ({"text_prompt.offset": torch.zeros(13, 32), "head.bias0": torch.zeros(1)}, r"expected 1 tensors.*2 came"),
    ],
)
def test_wrong_tensors_are_refused_and_both_sides_are_named(saved, tiny_trunk, tensors, message):
    save_file(tensors, saved / "adapter.safetensors")
    with pytest.raises(AdapterMismatchError, match=message) as caught:
        load_adapter(saved, trunk=tiny_trunk)
    assert "text_prompt.offset" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_damaged_tensor_file_is_refused_by_path(saved, tiny_trunk, keep):
    path = saved / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AdapterMismatchError, match=r"adapter\.safetensors"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize("position", [-1, -100])
def test_a_flipped_bit_is_noticed(saved, tiny_trunk, position):
    path = saved / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterMismatchError, match=r"adapter\.safetensors is damaged.*SHA-256"):
        load_adapter(saved, trunk=tiny_trunk)


def test_the_tensors_of_another_adapter_of_the_same_shape_are_noticed(saved, tiny_trunk, tmp_path):
    attach(tiny_trunk, "prompt", classes=CLASSES).save(tmp_path / "other")
    os.replace(tmp_path / "other" / "adapter.safetensors", saved / "adapter.safetensors")
    with pytest.raises(AdapterMismatchError, match="belongs to another description"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tiny_trunk, tmp_path, value):
    model = attach(tiny_trunk, "prompt", classes=CLASSES)
    with torch.no_grad():
        model.owned_tensors()["text_prompt.offset"][1, 2] = value
    model.save(tmp_path)
    with pytest.raises(AdapterMismatchError, match=r"not finite, in text_prompt\.offset"):
        load_adapter(tmp_path, trunk=tiny_trunk)


@pytest.mark.parametrize(("name", "size"), [("adapter.json", 2**21), ("adapter.safetensors", 2**40)])
def test_a_file_too_large_is_refused_before_it_is_read(saved, tiny_trunk, name, size):
    os.truncate(saved / name, size)  # a hole, which takes no space: reading it would take the memory
    with pytest.raises(AdapterMismatchError, match=rf"{name} .*more than"):
        load_adapter(saved, trunk=tiny_trunk)


def test_a_description_nested_to_no_end_is_refused(saved, tiny_trunk):
    (saved / "adapter.json").write_text("[" * 100_000)
    with pytest.raises(AdapterMismatchError, match=r"adapter\.json describes no adapter"):
        load_adapter(saved, trunk=tiny_trunk)


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\ud800"])
@pytest.mark.parametrize("change", [lambda t: {"sha256": t}, lambda t: {"classes": [{"name": t}]}, lambda t: {t: 1}])
def test_control_characters_in_a_description_reach_neither_terminal_nor_tokenizer(saved, tiny_trunk, text, change):
    file = saved / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change(text)))
    with pytest.raises(AdapterMismatchError, match="holds control characters") as caught:
        load_adapter(saved, trunk=tiny_trunk)
    assert str(caught.value).isprintable()


def test_a_header_that_claims_more_than_the_file_holds_is_refused(saved, tiny_trunk):
    header = json.dumps({"text_prompt.offset": {"dtype": "F32", "shape": [7, 32], "data_offsets": [0, 2**40]}}).encode()
    (saved / "adapter.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AdapterMismatchError, match=r"adapter\.safetensors is damaged"):
        load_adapter(saved, trunk=tiny_trunk)


def test_a_pickle_is_never_opened(saved, tiny_trunk, tmp_path):
    """Unpickling this one would leave a file."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"text_prompt.offset": Bomb()}, saved / "adapter.safetensors")
    with pytest.raises(AdapterMismatchError, match=r"adapter\.safetensors is damaged"):
        load_adapter(saved, trunk=tiny_trunk)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
@pytest.mark.parametrize("target", ["/dev/zero", "folder", "nowhere"])
def test_a_link_to_what_is_no_file_is_refused(saved, tiny_trunk, tmp_path, name, target):
    (tmp_path / "folder").mkdir()
    (saved / name).unlink()
    (saved / name).symlink_to(tmp_path / target)
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        load_adapter(saved, trunk=tiny_trunk)


def test_links_to_files_are_followed_as_in_the_cache_of_the_hub(saved, tiny_trunk, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for file in saved.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    (loaded,) = load_adapter(tmp_path / "snapshot", trunk=tiny_trunk).owned_tensors().values()
    assert torch.equal(loaded, load_file(saved / "adapter.safetensors")["text_prompt.offset"])


def test_refused_tensors_leave_the_model_as_it_was(tiny_trunk):
    model = attach(tiny_trunk, "linear_probe", classes=CLASSES)
    before = {name: tensor.clone() for name, tensor in model.owned_tensors().items()}
    wrong = {name: torch.ones_like(tensor) for name, tensor in before.items()} | {"head.bias0": torch.ones(2)}
    with pytest.raises(AdapterMismatchError):
        model.load_owned(wrong)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.owned_tensors().items())


def test_loading_does_not_tie_the_model_to_the_tensors_it_was_given(tiny_trunk):
    model = attach(tiny_trunk, "prompt", classes=CLASSES)
    given = {"text_prompt.offset": torch.ones_like(model.owned_tensors()["text_prompt.offset"])}
    model.load_owned(given)
    given["text_prompt.offset"].zero_()
    assert model.owned_tensors()["text_prompt.offset"].eq(1).all()


def test_zero_shot_splits_a_long_class_list_over_captions(tiny_trunk):
    model = attach(tiny_trunk, "zero_shot", classes=MANY)
    assert len(model.captions) > 1
    assert sum(tokens.token_map.shape[1] for tokens in model.captions) == len(MANY) == len(model.class_names)
    assert all(tokens.ids.shape[1] <= 256 and tokens.token_map.any(-1).all() for tokens in model.captions)


def test_predictions_over_several_captions_carry_the_labels_of_the_whole_list(tiny_trunk):
    """They equal those of one model per caption, put together by hand."""
    model = attach(tiny_trunk, "zero_shot", classes=MANY)
    image = Image.effect_noise((80, 64), 90).convert("RGB")
    config = ViewConfig(short_side=64)
    together, rows, start = model.predict(image, view=config), [], 0
    for tokens in model.captions:
        count = tokens.token_map.shape[1]
        part = attach(tiny_trunk, "zero_shot", classes=MANY[start : start + count]).predict(image, view=config)
        labels = (part.labels + start).tolist()
        rows += zip(part.scores.tolist(), labels, part.boxes_xyxy.tolist(), strict=True)
        start += count
    expected = sorted(rows)  # no limit over all captions, as in the public merging
    found = zip(together.scores.tolist(), together.labels.tolist(), together.boxes_xyxy.tolist(), strict=True)
    assert sorted(found) == expected
    assert {label for _, label, _ in expected} - set(range(model.captions[0].token_map.shape[1]))


def test_names_per_caption_is_a_setting_that_is_saved(tiny_trunk, tmp_path):
    settings = {"names_per_caption": 2}
    model = attach(tiny_trunk, "zero_shot", classes=["cat", "dog", "owl", "bat", "eel"], settings=settings)
    assert model.class_counts == (2, 2, 1)
    model.save(tmp_path)
    assert load_adapter(tmp_path, tiny_trunk).class_counts == (2, 2, 1)
    with pytest.raises(ValueError, match="names_per_caption is 0; expected at least 1"):
        attach(tiny_trunk, "zero_shot", classes=["cat"], settings={"names_per_caption": 0})


def test_a_caption_keeps_as_many_boxes_as_asked_for(tiny_trunk, coco_folder):
    split = load_dataset(coco_folder).test
    model = attach(tiny_trunk, "zero_shot", classes=split.classes, settings={"names_per_caption": 1})
    few, many = (
        evaluate(model, split, ViewConfig(short_side=64), boxes_per_caption=limit).predictions for limit in (3, 20)
    )
    assert Counter(entry["image_id"] for entry in few) == {record.image_id: 6 for record in split.records}
    assert len(many) > len(few)


@pytest.mark.parametrize("method", ["prompt", "linear_probe", "full", "text_encoder"])
def test_methods_that_train_refuse_a_class_list_of_several_captions(tiny_trunk, method):
    with pytest.raises(
        ValueError, match=rf"{len(MANY)} classes need \d captions, and {method} trains on one.*zero_shot"
    ):
        attach(tiny_trunk, method, classes=MANY)


def test_one_name_too_long_for_any_caption_is_refused(tiny_trunk):
    with pytest.raises(CaptionTooLongError, match="Shorten"):
        attach(tiny_trunk, "zero_shot", classes=("box", "abcdefgh " * 40))


@pytest.mark.parametrize("classes", [(), ("box", ""), ("box", "(all of it)")])
def test_a_class_list_without_a_readable_name_is_refused(tiny_trunk, classes):
    with pytest.raises(ValueError, match=r"at least one class name|empty after cleaning"):
        attach(tiny_trunk, "prompt", classes=classes)


@pytest.mark.parametrize("method", ["zero_shot", "prompt", "linear_probe", "text_encoder", "full"])
def test_text_features_are_computed_again_only_when_their_weights_have_moved(tiny_trunk, method):
    model = attach(tiny_trunk, method, classes=CLASSES)
    with torch.no_grad():
        first = model.texts()
        assert model.texts()[0] is first[0]
        trained = [name for name in model.owned if name.startswith("text_encoder.")]
        for name in trained:
            model.owned_tensors()[name].add_(0.01)
        moved = model.texts()
    assert (moved[0] is not first[0]) == bool(trained) == (method in ("text_encoder", "full"))
    assert torch.equal(moved[0].features, model.network.encode_text(model.captions[0]).features)


def test_text_features_carry_gradients_where_the_text_is_trained(tiny_trunk):
    model = attach(tiny_trunk, "text_encoder", classes=CLASSES)
    with torch.no_grad():
        assert not model.texts()[0].features.requires_grad
    assert model.texts()[0].features.requires_grad


def test_stages_stand_in_the_order_of_the_pipeline():
    assert [stage.name for stage in sorted(Stage)] == ["ENCODE_IMAGE", "ENCODE_TEXT", "FUSE", "PREDICT", "NONE"]


def test_an_image_batch_on_the_device_of_the_model_goes_through(tiny_trunk):
    model = attach(tiny_trunk, "zero_shot", classes=CLASSES)
    images = collate([torch.zeros(3, 33, 40, dtype=torch.uint8)]).to(model.device)
    (output,) = model.outputs(images)
    assert output.token_logits.shape == (1, sum(h * w for h, w in output.level_shapes_hw), output.token_mask.shape[1])


@pytest.mark.parametrize("method", ["text_encoder", "context"])
def test_a_training_loop_of_ones_own_never_reads_stale_text(tiny_trunk, method):
    """Fused optimisers change weights without raising the counter of changes."""
    model = attach(tiny_trunk, method, classes=CLASSES)
    optimiser = torch.optim.AdamW([t for t in model.owned_tensors().values() if t.requires_grad], lr=0.1, fused=True)
    for _ in range(2):
        with torch.no_grad():
            kept = [text.features.clone() for text in model.texts()]
        optimiser.zero_grad()
        model.texts()[0].features.pow(2).sum().backward()
        optimiser.step()
        with torch.no_grad():
            fresh = [model.network.encode_text(tokens).features for tokens in model.captions]
            assert torch.equal(model.texts()[0].features, fresh[0])
        assert not torch.equal(fresh[0], kept[0])
