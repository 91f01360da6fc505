"""Files of the Grounding DINO family as transformers writes them, in older and newer names, and as we do."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from conftest import DINO, load_benchmark
from public_files import VOCABULARY, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glip_adapt.data.transforms import collate
from glip_adapt.trunks.catalogue import convert, load_trunk
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.released import ASSETS, TRUNKS
from glip_adapt.trunks.weights import weights_checksum

CONFIGS = {
    "tiny-gd": DINO,
    "tiny-mm": replace(DINO, shared_boxes=False, scaled_scores=True),
    "tiny-mm-five": replace(
        DINO, shared_boxes=False, scaled_scores=True, backbone=replace(DINO.backbone, outputs=4)
    ),
    "tiny-gd-wide": replace(DINO, width=96),
}  # fmt: skip
KINDS = tuple(CONFIGS)[:3]


@pytest.fixture(scope="module")
def script():
    yield from load_benchmark("parity_transformers")


@pytest.fixture(scope="module")
def published(script, tmp_path_factory):
    """Trunk → transformers' network, and the file that it is saved to."""
    found = {}
    for seed, name in enumerate(KINDS):
        torch.manual_seed(seed)
        network, folder = script.public_network(CONFIGS[name]), tmp_path_factory.mktemp(name)
        network.save_pretrained(folder)
        found[name] = network, folder / "model.safetensors"
    return found


@pytest.fixture(autouse=True)
def rows():
    """Trunks of these sizes in the catalogue, and no others: a refusal builds all networks of the family."""
    released, catalogue = TRUNKS["grounding-dino-t"], dict(TRUNKS)
    TRUNKS.clear()
    TRUNKS.update({name: spec for name, spec in catalogue.items() if spec.family is not released.family})
    TRUNKS.update({name: replace(released, config=config) for name, config in CONFIGS.items()})
    yield
    TRUNKS.clear()
    TRUNKS.update(catalogue)  # whose order says which trunk is better


def load(name, path):
    return load_trunk(name, checkpoint=path, vocabulary=VOCABULARY, device="cpu")


def save(entries, path):
    save_file({name: value.clone().contiguous() for name, value in entries.items()}, path)
    return path


# Names of the backbone on the Hub → those in memory since transformers 5.20.
NEWER = (
    (r"conv_encoder\.model\.(?!swin\.)", "conv_encoder.model.swin."),
    (r"swin\.hidden_states_norms", "hidden_states_norms"),
    (r"(blocks\.\d+\.attention)\.self\.(q|k|v)\w*?\.(weight|bias)$", r"\1.\2_proj.\3"),
    (r"(blocks\.\d+\.attention)\.output\.dense", r"\1.o_proj"),
    (r"(blocks\.\d+\.attention)\.self\.relative", r"\1.relative_position_bias.relative"),
    (r"(blocks\.\d+)\.intermediate\.dense", r"\1.mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
)


def newer(name):
    for pattern, other in NEWER:
        name = re.sub(pattern, other, name)
    return name


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_transformers_holds_the_whole_network(name, published, script, caplog):
    public, path = published[name]
    with caplog.at_level(logging.WARNING):
        trunk = load(name, path)
    assert not [record for record in caplog.records if record.name.startswith("glip_adapt")]
    assert same(trunk.network.state_dict(), script.our_network(CONFIGS[name], public).state_dict())
    assert not trunk.network.training
    assert not any(p.requires_grad for p in trunk.network.parameters())
    images, tokens = collate([torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)]), script.tokenize("red box. die")
    tokens = replace(tokens, ids=torch.where(tokens.ids < 2000, 5, 40))  # of this vocabulary
    with torch.no_grad():
        ours = trunk.network(images, tokens).layers[-1]
    found = script.our_network(CONFIGS[name], public)(images, tokens).layers[-1]
    torch.testing.assert_close(ours.boxes, found.boxes.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_older_and_newer_names_of_the_backbone_are_read_alike(name, published, tmp_path):
    public, path = published[name]
    older = load_file(path)
    assert any("attention.self.query" in key for key in older)
    assert any("intermediate.dense" in key and "backbone.conv_encoder" in key for key in older)
    renamed = {newer(key): value for key, value in older.items()}
    assert renamed.keys() <= public.state_dict().keys()  # so these are the names in memory
    assert older.keys() - renamed.keys()
    checksums = {load(name, file).checksum for file in (path, save(renamed, tmp_path / "newer.safetensors"))}
    assert len(checksums) == 1


@pytest.mark.parametrize("name", KINDS)
def test_layers_that_a_file_holds_twice_or_once_are_read_alike(name, published, tmp_path):
    public, path = published[name]
    everything = {key: value.clone() for key, value in public.state_dict().items()}
    inside = {key for key in everything if key.startswith(("model.decoder.bbox_embed.", "model.decoder.class_embed."))}
    outside = {key for key in everything if key.startswith(("bbox_embed.", "class_embed."))}
    assert inside
    assert outside
    files = {"all": set(), "without those inside": inside, "without those outside": outside}
    if CONFIGS[name].shared_boxes:
        files["one of them"] = inside | {key for key in outside if not key.startswith("bbox_embed.0.")}
    expected = load(name, path).checksum
    for case, left_out in files.items():
        entries = {key: value for key, value in everything.items() if key not in left_out}
        assert load(name, save(entries, tmp_path / "copy.safetensors")).checksum == expected, case


def test_layers_of_their_own_are_not_mistaken_for_copies(published):
    state = load("tiny-mm", published["tiny-mm"][1]).network.state_dict()
    assert not torch.equal(state["decoder.boxes.0.4.weight"], state["decoder.boxes.1.4.weight"])
    assert not torch.equal(state["decoder.scores.0.bias"], state["decoder.scores.1.bias"])
    assert not torch.equal(state["decoder.scores.0.bias"], state["decoder.proposal_scores.bias"])


def test_entries_that_follow_from_sizes_are_left_out_without_a_word(published, tmp_path, caplog):
    _, path = published["tiny-gd"]
    entries = load_file(path)
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self"
    extra = {
        f"{block}.relative_position_index": torch.zeros(49, 49),
        "model.text_backbone.embeddings.position_ids": torch.arange(512),
        "model.text_backbone.embeddings.token_type_ids": torch.zeros(1, 512),
        "model.text_backbone.pooler.dense.weight": torch.zeros(16, 16),
        "model.backbone.conv_encoder.model.layernorm.weight": torch.zeros(64),
    }
    with caplog.at_level(logging.WARNING):
        trunk = load("tiny-gd", save(entries | extra, tmp_path / "extra.safetensors"))
    assert trunk.checksum == load("tiny-gd", path).checksum
    assert not [record for record in caplog.records if record.name.startswith("glip_adapt")]


def test_entries_that_no_trunk_has_are_named_in_one_warning(published, tmp_path, caplog):
    _, path = published["tiny-mm"]
    extra = {"model.mask_head.weight": torch.zeros(2), "ema.decay": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        trunk = load("tiny-mm", save(load_file(path) | extra, tmp_path / "extra.safetensors"))
    assert trunk.checksum == load("tiny-mm", path).checksum
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("glip_adapt")]
    assert "left out 2 entries that tiny-mm does not have" in warning
    assert "mask_head.weight" in warning
    assert "ema.decay" in warning


# Refused files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", CONFIGS)
@pytest.mark.parametrize("stored", KINDS)
def test_the_file_of_another_trunk_is_refused_and_named(asked, stored, published):
    path = published[stored][1]
    if asked == stored:
        assert load(asked, path).name == asked
        return
    with pytest.raises(CheckpointError, match=f"is not a checkpoint of {asked}: ") as failure:
        load(asked, path)
    assert f"Its entries are those of {stored}: ask for that." in str(failure.value)
    assert "The public file of" in str(failure.value)


def test_one_error_lists_what_does_not_fit(published, tmp_path):
    entries = load_file(published["tiny-mm"][1])
    del entries["model.level_embed"]
    entries["class_embed.1.bias"] = torch.full_like(entries["class_embed.1.bias"], torch.nan)
    entries["model.text_projection.weight"] = torch.zeros(3, 3)
    entries["model.enc_output.bias"] = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(CheckpointError) as failure:
        load("tiny-mm", save(entries, tmp_path / "odd.safetensors"))
    message = str(failure.value)
    assert "is not a checkpoint of tiny-mm: 4 entries do not fit" in message
    assert "missing: encoder.levels (4, 64)" in message
    assert "not finite: decoder.scores.1.bias" in message
    assert "wrong shape: text_encoder.projection.weight (3, 3), expected (64, 16)" in message
    assert "wrong type: decoder.proposal.0.bias torch.int64" in message
    assert "Its entries are those of" not in message


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_third_of_an_attention_layer_that_is_missing_is_an_error(part, published, tmp_path):
    entries = load_file(published["tiny-gd"][1])
    del entries[f"model.backbone.conv_encoder.model.encoder.layers.1.blocks.1.attention.self.{part}.weight"]
    with pytest.raises(
        CheckpointError, match=r"missing: image_encoder\.backbone\.stages\.1\.blocks\.1\.attn\.qkv\.weight"
    ):
        load("tiny-gd", save(entries, tmp_path / "odd.safetensors"))


def test_a_file_of_the_other_family_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint of tiny-gd"):
        load("tiny-gd", ASSETS / "glip-nano.safetensors")


# Our own files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_converted_file_holds_the_same_weights_under_our_names(name, published, tmp_path):
    _, path = published[name]
    first, second = tmp_path / "ours.safetensors", tmp_path / "again.safetensors"
    checksum = convert(path, first, name)
    trunks = [load(name, file) for file in (path, first)]
    assert [trunk.checksum for trunk in trunks] == [checksum] * 2
    assert same(load_file(first), trunks[0].network.state_dict())
    assert weights_checksum(trunks[1].network) == checksum
    assert convert(first, second, name) == checksum
    assert same(load_file(first), load_file(second))
    with safe_open(first, "pt") as file:
        assert file.metadata() == {"trunk": name, "checksum": checksum}


@pytest.mark.parametrize("asked", ["tiny-gd", "tiny-mm-five"])
def test_a_converted_file_of_another_trunk_is_refused_and_named(asked, published, tmp_path):
    convert(published["tiny-mm"][1], tmp_path / "ours.safetensors", "tiny-mm")
    with pytest.raises(CheckpointError, match="Its entries are those of tiny-mm: ask for that"):
        load(asked, tmp_path / "ours.safetensors")


def test_the_command_line_converts_a_file_of_the_hub(published, tmp_path, glip):
    target = tmp_path / "ours.safetensors"
    code, _, err = glip("convert", published["tiny-mm"][1], target, "--trunk", "tiny-mm")
    assert code == 0, err
    assert load("tiny-mm", target).checksum == load("tiny-mm", published["tiny-mm"][1]).checksum
