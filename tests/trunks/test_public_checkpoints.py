"""Weights of public files: every form in which the public code stores them, and what lies beside them."""

import pytest
import torch
from public_files import RARE_EXTRAS, SMALL, VOCABULARY, public_run, same, save_public, tuned
from safetensors.torch import save_file

from glip_adapt.trunks.catalogue import convert, load_trunk, read_checkpoint
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.glip.names import public_name, public_names
from glip_adapt.trunks.weights import weights_checksum

pytestmark = pytest.mark.usefixtures("small_trunk")


def test_a_public_file_holds_what_was_written(small_glip, public_file):
    assert same(read_checkpoint(public_file, small_glip, "small").state, small_glip.state_dict())


def test_our_names_and_public_names_are_one_to_one(small_glip):
    table = public_names(SMALL)
    names = [public_name(key, table) for key in small_glip.state_dict()]
    assert len(set(names)) == len(names)
    assert all(name.startswith(("backbone.", "language_backbone.", "rpn.head.")) for name in names)


def test_a_file_without_the_module_prefix_reads_the_same(small_glip, public, tmp_path):
    plain = {key.removeprefix("module."): value for key, value in public.items()}
    assert same(
        read_checkpoint(save_public(plain, tmp_path / "plain.pth"), small_glip, "small").state, small_glip.state_dict()
    )


def test_a_file_in_the_format_of_old_pytorch_reads_the_same(small_glip, public, tmp_path):
    path = save_public(public, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path, small_glip, "small").state, small_glip.state_dict())


def test_weights_in_half_precision_arrive_in_float32(small_glip, public, tmp_path):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in public.items()}
    found = read_checkpoint(save_public(halves, tmp_path / "half.pth"), small_glip, "small").state
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found["head.box_deltas.weight"], small_glip.head.box_deltas.weight, rtol=1e-3, atol=1e-4)


def test_a_trunk_from_a_public_file_has_its_weights_frozen_in_eval_mode(small_glip, public_file):
    trunk = load_trunk("small", checkpoint=public_file, vocabulary=VOCABULARY)
    assert same(trunk.network.state_dict(), small_glip.state_dict())
    assert not any(x.requires_grad for x in trunk.network.parameters())
    assert not any(module.training for module in trunk.network.modules())
    assert (trunk.name, trunk.tokenizer.size) == ("small", 950)
    assert trunk.checksum == weights_checksum(small_glip)


# What public files hold beside the network


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
def test_whatever_a_public_run_stored_its_weights_load(new_format, small_glip, public, tmp_path, caplog):
    path = tmp_path / "run.pth"
    torch.save(public_run(public), path, _use_new_zipfile_serialization=new_format)
    assert same(read_checkpoint(path, small_glip, "small").state, small_glip.state_dict())
    assert caplog.messages == []


def test_numpy_scalars_are_read_in_the_spelling_of_other_versions(small_glip, public, tmp_path):
    path = tmp_path / "run.pth"
    torch.save(public_run(public), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert (new in content) != (old in content)
    path.write_bytes(content.replace(*((new, old) if new in content else (old, new))))
    assert same(read_checkpoint(path, small_glip, "small").state, small_glip.state_dict())


def test_entries_that_the_network_does_not_know_are_one_warning(small_glip, public, tmp_path, caplog):
    odd = {f"module.new_head.layer{i}.weight": torch.ones(i) for i in range(25)} | {"module.steps": 7, "note": "mine"}
    assert same(
        read_checkpoint(save_public(public | odd, tmp_path / "odd.pth"), small_glip, "small").state,
        small_glip.state_dict(),
    )
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'odd.pth'}: left out 27 entries that small does not have: new_head.layer0.")
    assert message.endswith("new_head.layer19.weight, … and 7 more.")


def test_a_name_in_the_warning_holds_no_control_codes(small_glip, public, tmp_path, caplog):
    public["\x1b[2J\x1b]0;title\x07" + "a" * 500] = torch.ones(1)
    read_checkpoint(save_public(public, tmp_path / "odd.pth"), small_glip, "small")
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 400


def test_what_no_network_needs_is_not_worth_a_warning(small_glip, public, tmp_path, caplog):
    wrapped = {f"module.{key}": value for key, value in RARE_EXTRAS.items()}
    assert same(
        read_checkpoint(save_public(public | wrapped, tmp_path / "x.pth"), small_glip, "small").state,
        small_glip.state_dict(),
    )
    assert caplog.messages == []


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "module.module.module."])
@pytest.mark.parametrize("form", ["model", "bare", "safetensors"])
def test_the_prefixes_of_wrappers_are_removed_from_every_form(prefix, form, small_glip, public, tmp_path):
    state = {prefix + key.removeprefix("module."): value for key, value in public.items()}
    if form == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "x.pth"
        torch.save({"model": state} if form == "model" else state, path)
    assert same(read_checkpoint(path, small_glip, "small").state, small_glip.state_dict())


def test_an_entry_that_is_there_twice_is_refused(small_glip, public, tmp_path):
    public["rpn.head.log_scale"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="twice: 1 entries, under two forms of their names"):
        read_checkpoint(save_public(public, tmp_path / "twice.pth"), small_glip, "small")


def test_weights_that_are_views_parameters_or_of_other_floats_arrive_as_they_are(small_glip, public, tmp_path):
    row = torch.arange(8.0)
    public["module.backbone.body.patch_embed.norm.weight"] = torch.stack([row, -row], 1)[:, 0]
    public["module.backbone.body.patch_embed.norm.bias"] = torch.nn.Parameter(row.double())
    public["module.backbone.body.patch_embed.proj.bias"] = torch.zeros(1).expand(8)
    found = read_checkpoint(save_public(public, tmp_path / "views.pth"), small_glip, "small").state
    start = "image_encoder.backbone.patch_embed"
    assert found[f"{start}.norm.weight"].tolist() == found[f"{start}.norm.bias"].tolist() == row.tolist()
    assert found[f"{start}.proj.bias"].tolist() == [0] * 8
    small_glip.load_state_dict(found)


def test_a_tuned_prompt_is_said_and_how_to_import_it(public, tmp_path, caplog):
    path = save_public(tuned(public), tmp_path / "tuned.pth")
    load_trunk("small", checkpoint=path, vocabulary=VOCABULARY)
    convert(path, tmp_path / "x.safetensors", "small")
    assert caplog.messages[0] == caplog.messages[1]
    assert f"{path} holds a tuned prompt" in caplog.text
    assert f"glip-adapt convert {path} FOLDER --trunk small --classes" in caplog.text
    caplog.clear()
    load_trunk("small", checkpoint=tmp_path / "x.safetensors", vocabulary=VOCABULARY)
    assert caplog.messages == []


def test_a_table_of_zeros_is_no_prompt(public_file, caplog):
    load_trunk("small", checkpoint=public_file, vocabulary=VOCABULARY)
    assert caplog.messages == []
