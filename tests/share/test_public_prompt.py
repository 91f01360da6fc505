"""Import of prompts that the public code tuned."""

import dataclasses

import pytest
import torch
from public_files import VOCABULARY, add_trunk, public_state, save_public, small_state, tuned

from glip_adapt import ClassPrompt, attach, load_adapter, load_trunk
from glip_adapt.core.structures import ImageBatch
from glip_adapt.share.public_prompt import import_prompt
from glip_adapt.trunks import catalogue as weights
from glip_adapt.trunks.catalogue import convert
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.names import PROMPT_TABLE

CLASSES = ("red box", ClassPrompt(name="blue box", prefix="a ", suffix=" there"))


@pytest.fixture(autouse=True)
def _small_trunk(monkeypatch):
    add_trunk(monkeypatch, "small")
    add_trunk(monkeypatch, "small-a", deep_fusion=False)


@pytest.fixture
def state():
    return small_state()


@pytest.fixture
def file(state, tmp_path):
    return save_public(tuned(state), tmp_path / "tuned.pth")


def pictures():
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageBatch(pixels, ((64, 60),))


def raw(model):
    with torch.no_grad():
        (output,) = model.outputs(pictures())
    return output


@pytest.mark.parametrize("name", ["small", "small-a"])
def test_a_saved_import_gives_what_the_public_code_computes(name, tmp_path):
    torch.manual_seed(6)
    config = weights.TRUNKS[name].config
    state = tuned(public_state(build_glip(config), config))
    file = save_public(state, tmp_path / "tuned.pth")
    import_prompt(file, name, CLASSES, vocabulary=VOCABULARY).save(tmp_path / "adapter")
    trunk = load_trunk(name, checkpoint=file, vocabulary=VOCABULARY)
    found = raw(load_adapter(tmp_path / "adapter", trunk=trunk))

    glip, (tokens,) = trunk.network, attach(trunk, "zero_shot", classes=CLASSES).captions
    with torch.no_grad():
        text = glip.encode_text(tokens)
        rows = state[f"module.{PROMPT_TABLE}"][: tokens.ids.shape[1]]
        text = dataclasses.replace(text, features=text.features + rows)
        expected = glip.predict(glip.fuse(glip.encode_image(pictures()), text))
    assert torch.equal(found.token_logits, expected.token_logits)
    assert torch.equal(found.box_deltas, expected.box_deltas)
    plain = raw(attach(trunk, "zero_shot", classes=CLASSES))
    assert not torch.allclose(found.token_logits, plain.token_logits, atol=1e-3)


def test_the_adapter_belongs_to_the_public_file_and_to_the_converted_one(file, tmp_path):
    import_prompt(file, "small", CLASSES, vocabulary=VOCABULARY).save(tmp_path / "adapter")
    convert(file, tmp_path / "small.safetensors", "small")
    outputs = []
    for checkpoint in (file, tmp_path / "small.safetensors"):
        trunk = load_trunk("small", checkpoint=checkpoint, vocabulary=VOCABULARY)
        outputs.append(raw(load_adapter(tmp_path / "adapter", trunk=trunk, classes=CLASSES)))
    assert torch.equal(outputs[0].token_logits, outputs[1].token_logits)


def test_the_import_itself_does_not_say_how_to_import(file, caplog):
    model = import_prompt(file, "small", CLASSES, vocabulary=VOCABULARY)
    assert caplog.messages == []
    assert model.adapter.name == "prompt"
    assert model.trained_parameters == model.captions[0].ids.shape[1] * 16


def test_a_table_in_half_precision_arrives_in_float32(state, tmp_path):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in tuned(state).items()}
    model = import_prompt(save_public(halves, tmp_path / "x.pth"), "small", ["red box"], vocabulary=VOCABULARY)
    (offset,) = model.owned_tensors().values()
    assert offset.dtype == torch.float32
    assert torch.equal(offset, halves[f"module.{PROMPT_TABLE}"][: len(offset)].float())


@pytest.mark.parametrize("moved", [3, 5, 200])
def test_a_caption_of_another_length_than_that_of_the_training_is_said(moved, state, tmp_path, caplog):
    file = save_public(tuned(state, rows=moved), tmp_path / "x.pth")
    model = import_prompt(file, "small", ["red box"], vocabulary=VOCABULARY)
    tokens = model.captions[0].ids.shape[1]
    assert len(caplog.messages) == 1
    assert f"trained on a caption of {moved} tokens, but 'red box' has {tokens}" in caplog.text
    caplog.clear()
    import_prompt(
        save_public(tuned(state, rows=tokens), tmp_path / "y.pth"), "small", ["red box"], vocabulary=VOCABULARY
    )
    assert caplog.messages == []


def test_a_file_without_a_prompt_is_refused(state, tmp_path):
    for content in (state, {key: value for key, value in state.items() if PROMPT_TABLE not in key}):
        with pytest.raises(CheckpointError, match=f"holds no tuned prompt: {PROMPT_TABLE} is missing or zero"):
            import_prompt(save_public(content, tmp_path / "x.pth"), "small", CLASSES, vocabulary=VOCABULARY)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (torch.ones(2, 16), r"has shape \(2, 16\); the caption of these 1 classes needs at least 4 rows of 16"),
        (torch.ones(1000, 8), r"has shape \(1000, 8\)"),
        (torch.ones(16), r"has shape \(16,\)"),
        (torch.full((1000, 16), torch.nan), "holds NaN or infinity"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, reason, state, tmp_path):
    file = save_public(state | {f"module.{PROMPT_TABLE}": table}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=reason):
        import_prompt(file, "small", ["red box"], vocabulary=VOCABULARY)


def test_classes_that_need_several_captions_are_refused(file):
    with pytest.raises(ValueError, match="classes need 2 captions"):
        import_prompt(file, "small", [f"red box {i}" for i in range(100)], vocabulary=VOCABULARY)
