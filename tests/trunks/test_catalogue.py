import errno
import hashlib
import json
import os
import pickle
import random
import resource
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants
from public_files import EXTRAS, RARE_EXTRAS, SMALL, public_run, public_state, save_public, tuned
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import glip_adapt
from glip_adapt.core import retries
from glip_adapt.trunks import catalogue, weights
from glip_adapt.trunks.catalogue import ASSETS, TrunkSpec, convert, load_trunk, read_checkpoint, trunk_spec
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.names import public_name, public_names
from glip_adapt.trunks.weights import fetch, save_tensors, weights_checksum

VOCABULARY = Path(glip_adapt.__file__).parent / "assets" / "glip-nano-vocab.txt"


@pytest.fixture(autouse=True)
def _small_trunks(monkeypatch):
    """Two trunks as released ones are described, of a size for tests."""
    family = catalogue.TRUNKS["glip-t"].family
    for name, file in (("small", "small.pth"), ("small-b", "small_b.pth")):
        spec = TrunkSpec(family=family, config=SMALL, public_file=file, data="none", purpose="for tests")
        monkeypatch.setitem(catalogue.TRUNKS, name, spec)


@pytest.fixture
def glip():
    torch.manual_seed(5)
    return build_glip(SMALL)


@pytest.fixture
def public(glip):
    """The ``model`` entry of a public file that holds the weights of ``glip``."""
    return public_state(glip)


@pytest.fixture
def public_file(public, tmp_path):
    return save_public(public, tmp_path / "small.pth")


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# Public files


def test_a_public_file_holds_what_was_written(glip, public_file):
    assert same(read_checkpoint(public_file, glip, "small").state, glip.state_dict())


def test_our_names_and_public_names_are_one_to_one(glip):
    table = public_names(SMALL)
    names = [public_name(key, table) for key in glip.state_dict()]
    assert len(set(names)) == len(names)
    assert all(name.startswith(("backbone.", "language_backbone.", "rpn.head.")) for name in names)


def test_a_file_without_the_module_prefix_reads_the_same(glip, public, tmp_path):
    plain = {key.removeprefix("module."): value for key, value in public.items()}
    assert same(read_checkpoint(save_public(plain, tmp_path / "plain.pth"), glip, "small").state, glip.state_dict())


def test_a_file_in_the_format_of_old_pytorch_reads_the_same(glip, public, tmp_path):
    path = save_public(public, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path, glip, "small").state, glip.state_dict())


def test_weights_in_half_precision_arrive_in_float32(glip, public, tmp_path):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in public.items()}
    found = read_checkpoint(save_public(halves, tmp_path / "half.pth"), glip, "small").state
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found["head.box_deltas.weight"], glip.head.box_deltas.weight, rtol=1e-3, atol=1e-4)


def test_a_trunk_from_a_public_file_has_its_weights_frozen_in_eval_mode(glip, public_file):
    trunk = load_trunk("small", checkpoint=public_file, vocabulary=VOCABULARY)
    assert same(trunk.network.state_dict(), glip.state_dict())
    assert not any(x.requires_grad for x in trunk.network.parameters())
    assert not any(module.training for module in trunk.network.modules())
    assert (trunk.name, trunk.tokenizer.size) == ("small", 950)
    assert trunk.checksum == weights_checksum(glip)


# What public files hold beside the network


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
def test_whatever_a_public_run_stored_its_weights_load(new_format, glip, public, tmp_path, caplog):
    path = tmp_path / "run.pth"
    torch.save(public_run(public), path, _use_new_zipfile_serialization=new_format)
    assert same(read_checkpoint(path, glip, "small").state, glip.state_dict())
    assert caplog.messages == []


def test_numpy_scalars_are_read_in_the_spelling_of_other_versions(glip, public, tmp_path):
    path = tmp_path / "run.pth"
    torch.save(public_run(public), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert (new in content) != (old in content)
    path.write_bytes(content.replace(*((new, old) if new in content else (old, new))))
    assert same(read_checkpoint(path, glip, "small").state, glip.state_dict())


def test_entries_that_the_network_does_not_know_are_one_warning(glip, public, tmp_path, caplog):
    odd = {f"module.new_head.layer{i}.weight": torch.ones(i) for i in range(25)} | {"module.steps": 7, "note": "mine"}
    assert same(
        read_checkpoint(save_public(public | odd, tmp_path / "odd.pth"), glip, "small").state, glip.state_dict()
    )
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'odd.pth'}: left out 27 entries that small does not have: new_head.layer0.")
    assert message.endswith("new_head.layer19.weight, … and 7 more.")


def test_a_name_in_the_warning_holds_no_control_codes(glip, public, tmp_path, caplog):
    public["\x1b[2J\x1b]0;title\x07" + "a" * 500] = torch.ones(1)
    read_checkpoint(save_public(public, tmp_path / "odd.pth"), glip, "small")
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 400


def test_what_no_network_needs_is_not_worth_a_warning(glip, public, tmp_path, caplog):
    wrapped = {f"module.{key}": value for key, value in RARE_EXTRAS.items()}
    assert same(
        read_checkpoint(save_public(public | wrapped, tmp_path / "x.pth"), glip, "small").state, glip.state_dict()
    )
    assert caplog.messages == []


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "module.module.module."])
@pytest.mark.parametrize("form", ["model", "bare", "safetensors"])
def test_the_prefixes_of_wrappers_are_removed_from_every_form(prefix, form, glip, public, tmp_path):
    state = {prefix + key.removeprefix("module."): value for key, value in public.items()}
    if form == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "x.pth"
        torch.save({"model": state} if form == "model" else state, path)
    assert same(read_checkpoint(path, glip, "small").state, glip.state_dict())


def test_an_entry_that_is_there_twice_is_refused(glip, public, tmp_path):
    public["rpn.head.log_scale"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="twice: 1 entries, under two forms of their names"):
        read_checkpoint(save_public(public, tmp_path / "twice.pth"), glip, "small")


def test_weights_that_are_views_parameters_or_of_other_floats_arrive_as_they_are(glip, public, tmp_path):
    row = torch.arange(8.0)
    public["module.backbone.body.patch_embed.norm.weight"] = torch.stack([row, -row], 1)[:, 0]
    public["module.backbone.body.patch_embed.norm.bias"] = torch.nn.Parameter(row.double())
    public["module.backbone.body.patch_embed.proj.bias"] = torch.zeros(1).expand(8)
    found = read_checkpoint(save_public(public, tmp_path / "views.pth"), glip, "small").state
    start = "image_encoder.backbone.patch_embed"
    assert found[f"{start}.norm.weight"].tolist() == found[f"{start}.norm.bias"].tolist() == row.tolist()
    assert found[f"{start}.proj.bias"].tolist() == [0] * 8
    glip.load_state_dict(found)


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


# What does not fit


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.full((1,), torch.nan), "not finite: head.log_scale holds NaN or infinity"),
        (torch.full((1,), -torch.inf), "not finite: head.log_scale"),
        (torch.full((1,), 1e300, dtype=torch.float64), "not finite: head.log_scale"),
        (torch.ones(1, dtype=torch.int64), "wrong type: head.log_scale torch.int64"),
        (torch.ones(1, dtype=torch.complex64), "wrong type: head.log_scale torch.complex64"),
        pytest.param(
            *(torch.ones(1).to_sparse(), "wrong type: head.log_scale torch.float32, torch.sparse_coo"),
            marks=pytest.mark.filterwarnings("ignore:Validating sparse"),
        ),
        (torch.ones(1, device="meta"), "wrong type: head.log_scale"),
        (1.0, "wrong type: head.log_scale float, expected a tensor of floats"),
        (None, "missing: head.log_scale"),
        (torch.tensor(1.0), r"wrong shape: head.log_scale \(\), expected \(1,\)"),
    ],
)
def test_a_value_that_cannot_be_a_weight_is_refused_by_name(value, reason, glip, public, tmp_path):
    public["module.rpn.head.log_scale"] = value
    with pytest.raises(CheckpointError, match=f"1 entries do not fit.\n  {reason}"):
        read_checkpoint(save_public(public, tmp_path / "odd.pth"), glip, "small")


TABLES = {"glip-t-a": "glip_a_tiny", "glip-t": "glip_tiny", "glip-l": "glip_large"}
SIZES = {"glip-t-a": "glip-t-a", "glip-t": "glip-t-b or glip-t-c or glip-t", "glip-l": "glip-l"}


def without_memory(shapes):
    """Return tensors of one repeated number, which take no space in memory or in a file."""
    return {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Trunk → files of its entries by public names, as recorded, and by ours, as we write them."""
    folder, paths = tmp_path_factory.mktemp("trunks"), {}
    for name in ("glip-nano", "glip-nano-a"):
        paths[name] = [ASSETS / f"{name}.safetensors"]
    for name, table in TABLES.items():
        recorded = json.loads((Path(__file__).parents[1] / "parity" / f"{table}.state_dict.json").read_text())
        public = {key: shape for key, (shape, _) in recorded.items()}
        ours = {key: value.shape for key, value in on_meta(name).state_dict().items()}
        paths[name] = [folder / f"{name}.{kind}.pth" for kind in ("public", "ours")]
        for shapes, path in zip((public, ours), paths[name], strict=True):
            torch.save({"model": without_memory(shapes)}, path)
    return paths


def on_meta(name):
    with torch.device("meta"):
        return build_glip(trunk_spec(name).config)


@pytest.mark.parametrize("asked", ["glip-nano", "glip-nano-a", *TABLES])
def test_the_file_of_another_trunk_is_refused_and_named(asked, files):
    glip = on_meta(asked)
    for stored, paths in files.items():
        for path in paths:
            if stored == asked:
                assert read_checkpoint(path, glip, asked).state.keys() == glip.state_dict().keys()
                continue
            with pytest.raises(CheckpointError, match=f"is not a checkpoint of {asked}") as failure:
                read_checkpoint(path, glip, asked)
            assert f"Its entries are those of {SIZES.get(stored, stored)}: ask for that." in str(failure.value)


def test_missing_unexpected_and_misshapen_entries_are_one_error(glip, public, tmp_path):
    del public["module.rpn.head.log_scale"]
    public["module.rpn.head.shape_head.weight"] = torch.zeros(3, 3)
    public["module.rpn.head.bbox_pred.weight"] = torch.zeros(8, 32, 1, 1)
    path = save_public(public, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as failure:
        read_checkpoint(path, glip, "small")
    message = str(failure.value)
    assert f"{path} is not a checkpoint of small: 3 entries do not fit" in message
    assert "missing: head.log_scale (1,)" in message
    assert "unexpected: rpn.head.shape_head.weight (3, 3)" in message
    assert "wrong shape: head.box_deltas.weight (8, 32, 1, 1), expected (4, 32, 1, 1)" in message
    assert "The public file of small is small.pth" in message


def test_a_long_list_of_problems_is_cut_and_counted(glip, public, tmp_path):
    with pytest.raises(CheckpointError, match=r"\d+ entries do not fit") as failure:
        read_checkpoint(save_public(EXTRAS, tmp_path / "empty.pth"), glip, "small")
    missing = len(glip.state_dict())
    assert f"{missing} entries do not fit" in str(failure.value)
    assert f"and {missing - 20} more" in str(failure.value)


def test_a_failed_read_leaves_the_detector_as_it_was(glip, public, tmp_path):
    before = weights_checksum(glip)
    del public["module.rpn.head.log_scale"]
    with pytest.raises(CheckpointError):
        read_checkpoint(save_public(public, tmp_path / "odd.pth"), glip, "small")
    assert weights_checksum(glip) == before


@pytest.mark.parametrize("content", [{"weights": {}}, {"model": [1, 2]}, {"model": {"a": 1}}, [1], torch.zeros(3)])
def test_a_file_without_a_dict_of_tensors_is_refused(content, glip, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no dict of tensors under 'model'"):
        read_checkpoint(tmp_path / "other.pth", glip, "small")


# Files that are damaged or hostile


class Foreign:
    """An object of a class that no checkpoint needs."""


class Mischief:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("kind", ["foreign", "system", "mkdir"])
def test_a_pickle_with_other_objects_is_refused_and_never_run(kind, new_format, glip, public, tmp_path):
    marker = tmp_path / "was-here"
    hostile = {
        "foreign": Foreign(),
        "system": Mischief(os.system, f"touch {marker}"),
        "mkdir": Mischief(os.mkdir, str(marker)),
    }[kind]
    path = tmp_path / "hostile.pth"
    torch.save({"model": public, "extra": hostile}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="holds other objects, which are never loaded") as failure:
        read_checkpoint(path, glip, "small")
    assert not marker.exists()
    named = {"foreign": f"{__name__}.Foreign", "system": "posix.system", "mkdir": "posix.mkdir"}[kind]
    assert f"never loaded: {named}, and that may run code" in str(failure.value)
    assert "torch.save({'model': " in str(failure.value)


def test_a_bare_pickle_is_refused_and_never_run(glip, tmp_path):
    marker = tmp_path / "was-here"
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Mischief(os.mkdir, str(marker)), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "bare.pth", glip, "small")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_a_truncated_file_is_one_clear_error(form, share, glip, public, tmp_path):
    path = tmp_path / ("cut.safetensors" if form == "safetensors" else "cut.pth")
    if form == "safetensors":
        save_file(glip.state_dict(), path)
    else:
        save_public(public, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="could not be read as a checkpoint") as failure:
        read_checkpoint(path, glip, "small")
    assert str(path) in str(failure.value)
    assert "weights_only" not in str(failure.value)  # torch advises to load what it refuses


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_whatever_bytes_are_damaged_the_error_is_the_same(form, glip, tmp_path):
    path = tmp_path / ("bad.safetensors" if form == "safetensors" else "bad.pth")
    tensors = {f"module.a{i}.weight": torch.ones(2, 3) for i in range(5)}
    if form == "safetensors":
        save_file(tensors, path)
    else:
        save_public(tensors, path, _use_new_zipfile_serialization=form == "zip")
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 2, 5, 30])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):  # at the latest since these are not the entries of the detector
            read_checkpoint(path, glip, "small")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"This is not a checkpoint.\n" * 50,
        b"<!doctype html><html>404</html>",
        b"\x00" * 4096,
        "Gewichte für später".encode(),
    ],
    ids=["text", "html", "zeros", "umlauts"],
)
def test_a_file_of_another_kind_is_one_clear_error(content, suffix, glip, tmp_path):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="could not be read as a checkpoint"):
        read_checkpoint(path, glip, "small")


def test_a_missing_file_names_the_public_one(glip, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*public file of small is small\.pth.*GLIPModel/GLIP"):
        read_checkpoint(tmp_path / "nowhere.pth", glip, "small")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path, glip, "small")  # a folder


# Conversion


def test_a_converted_file_holds_the_same_weights_under_our_names(glip, public_file, tmp_path):
    target = tmp_path / "new" / "small.safetensors"
    checksum = convert(public_file, target, "small")
    assert same(load_file(target), glip.state_dict())
    assert same(read_checkpoint(target, glip, "small").state, glip.state_dict())
    assert checksum == weights_checksum(glip)
    trunks = [load_trunk("small", checkpoint=path, vocabulary=VOCABULARY) for path in (public_file, target)]
    assert trunks[0].checksum == trunks[1].checksum == checksum


def test_a_converted_file_converts_to_itself(public_file, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    checksum = convert(public_file, first, "small")
    assert convert(first, second, "small") == checksum
    contents = []
    for path in (first, second):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"trunk": "small", "checksum": checksum}
            contents.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    assert same(*contents)


def test_the_converted_file_is_safetensors_by_name(public_file, tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors, got small\.bin"):
        convert(public_file, tmp_path / "small.bin", "small")


def test_a_file_that_does_not_fit_is_not_converted(public, tmp_path):
    del public["module.rpn.head.log_scale"]
    with pytest.raises(CheckpointError):
        convert(save_public(public, tmp_path / "odd.pth"), tmp_path / "odd.safetensors", "small")
    assert not (tmp_path / "odd.safetensors").exists()


def test_the_checksum_changes_with_any_single_number(glip):
    before = weights_checksum(glip)
    with torch.no_grad():
        glip.head.bias_lang[3] += 1e-6
    assert weights_checksum(glip) != before


def test_the_checksum_covers_the_names():
    layer = torch.nn.Linear(2, 2)
    some, other = torch.nn.ModuleDict({"a": layer}), torch.nn.ModuleDict({"b": layer})
    assert weights_checksum(some) != weights_checksum(other)


def test_the_checksum_does_not_depend_on_what_is_trained(glip):
    before = weights_checksum(glip)
    assert weights_checksum(glip.requires_grad_(False).train()) == before


def fail_half_way(tensors, path, metadata=None):
    Path(path).write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_without_room_is_one_clear_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.ones(2)}, path, {})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # not by a fixture: pytest reports in between
    try:
        with pytest.raises(OSError, match=r"x\.safetensors could not be written \(File too large\). Make room"):
            save_tensors({"a": torch.ones(100_000)}, path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_no_file_behind(public_file, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "save_file", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        convert(public_file, tmp_path / "new" / "small.safetensors", "small")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.ones(2)}, path, {})
    before = path.read_bytes()
    monkeypatch.setattr(weights, "save_file", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"a": torch.zeros(2)}, path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_has_the_permissions_of_any_other(tmp_path):
    path = tmp_path / "x.safetensors"
    before = os.umask(0o027)
    try:
        save_tensors({"a": torch.ones(2)}, path, {})
    finally:
        os.umask(before)
    assert oct(path.stat().st_mode & 0o777) == oct(0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_views_and_gradients_are_saved_as_plain_tensors(tmp_path):
    table = torch.arange(6.0).view(2, 3).requires_grad_()
    save_tensors({"column": table[:, 1], "whole": table}, tmp_path / "x.safetensors", {"kind": "test"})
    found = load_file(tmp_path / "x.safetensors")
    assert found["column"].tolist() == [1, 4]
    assert found["whole"].tolist() == table.tolist()


# Trunks by name


@pytest.mark.parametrize(
    ("name", "nearest"), [("glip-nona", "glip-nano"), ("glip_t", "glip-t"), ("glip-t-aa", "glip-t-a")]
)
def test_an_unknown_trunk_lists_the_choices_and_the_nearest(name, nearest):
    for ask in (trunk_spec, load_trunk):
        with pytest.raises(ValueError, match=rf"Unknown trunk '{name}'.*did you mean '{nearest}'") as failure:
            ask(name)
        assert "'glip-l'" in str(failure.value)


def test_a_device_that_torch_does_not_know_is_refused():
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        load_trunk("glip-nano", device="gpu")


def test_a_vocabulary_of_another_size_is_refused(public_file, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(VOCABULARY.read_text() + "##zzz\n")
    with pytest.raises(ValueError, match="vocabulary has 951 entries, the text encoder 950"):
        load_trunk("small", checkpoint=public_file, vocabulary=path)


@pytest.mark.parametrize("name", ["glip-nano", "glip-nano-a"])
def test_the_nano_trunks_come_with_the_package(name):
    trunk = load_trunk(name)
    file = ASSETS / f"{name}.safetensors"
    assert file.stat().st_size < 12 * 2**20
    with safe_open(file, "pt") as stored:
        assert stored.metadata() == {"trunk": name, "checksum": trunk.checksum}
    card = (ASSETS / f"{name}.md").read_text(encoding="utf-8")
    assert trunk.checksum in card
    assert "synthetic" in card


def test_loading_neither_reads_nor_moves_the_global_random_state():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = load_trunk("glip-nano")
    assert torch.equal(torch.rand(3), expected)
    assert load_trunk("glip-nano").checksum == first.checksum


# The Hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the imitated Hub answers, and what it was asked."""

    def __init__(self):
        self.content = os.urandom(50_000)
        self.etag = hashlib.sha256(self.content).hexdigest()
        self.mode = "whole"
        self.requests = []

    def answer(self, request):
        self.requests.append((request.command, request.path))
        if self.mode == "html":
            return self.send(request, 200, {"Content-Type": "text/html"}, b"<html>Please log in to the network</html>")
        path = "/cdn/file" if self.mode == "redirect" else "/GLIPModel/GLIP/resolve/main/small.pth"
        known = {path, "/GLIPModel/GLIP/resolve/main/small.pth"}
        if self.mode == "404" or request.path not in known:
            return self.send(
                request, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"Entry not found"
            )
        facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.etag}"'}
        if request.path != path:
            facts |= {"X-Linked-Etag": f'"{self.etag}"', "X-Linked-Size": str(len(self.content)), "ETag": '"other"'}
            return self.send(request, 302, facts | {"Location": path}, b"")
        if self.mode == "cut" and request.command == "GET":
            if self.count("GET") > 1:  # the client asks for the rest, but the server has gone
                return self.send(request, 500, {}, b"")
            return self.send(request, 200, facts, self.content, stop=len(self.content) // 2)
        return self.send(request, 200, facts, self.content)

    def send(self, request, status, headers, body, stop=None):
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:stop])
        if stop is not None:
            request.close_connection = True

    def count(self, command):
        return sum(asked == command for asked, _ in self.requests)


@contextmanager
def serving(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            hub.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache of its own, and no other Hub within reach."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield folder
    close_session()


@pytest.fixture
def hub(cache, monkeypatch):
    served = Hub()
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield served


def ask():
    return fetch(catalogue.HUB_REPOSITORY, "small.pth", option="--checkpoint")


def files_of_at_least(folder, size):
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= size]


@pytest.mark.parametrize("mode", ["whole", "redirect"])
def test_a_fetched_file_is_kept_and_needs_no_network_again(mode, hub, monkeypatch):
    hub.mode = mode
    path = ask()
    assert Path(path).read_bytes() == hub.content
    assert Path(path).name == "small.pth"
    asked = len(hub.requests)
    assert ask() == path
    assert len(hub.requests) == asked
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert ask() == path


def test_other_content_than_the_hub_states_is_one_error_and_does_not_stay(hub, cache):
    hub.content, content = hub.content[::-1], hub.content
    with pytest.raises(CheckpointError, match=rf"small\.pth arrived damaged: SHA-256 \w+, expected {hub.etag}"):
        ask()
    assert files_of_at_least(cache, 1000) == []
    assert list(cache.rglob("small.pth")) == []  # not even a link to nowhere
    hub.content = content
    assert Path(ask()).read_bytes() == content


def test_a_connection_cut_half_way_leaves_no_file_and_the_next_try_succeeds(hub, cache, monkeypatch):
    monkeypatch.setattr(retries, "sleep", lambda _: None)
    hub.mode = "cut"
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        ask()
    assert hub.count("GET") >= 1
    assert [path.suffix for path in files_of_at_least(cache, 1000)] == [".incomplete"]
    hub.mode = "whole"
    assert Path(ask()).read_bytes() == hub.content


@pytest.mark.parametrize("mode", ["html", "404"])
def test_an_answer_that_is_not_the_file_says_what_to_do(mode, hub, cache):
    hub.mode = mode
    with pytest.raises(FileNotFoundError, match=r"small\.pth is not in the cache and could not be fetched") as failure:
        ask()
    assert "/GLIPModel/GLIP/resolve/main/small.pth" in str(failure.value)
    assert "name the file with --checkpoint" in str(failure.value)
    assert files_of_at_least(cache, 1) == [] or mode == "404"  # the client notes that there is no such entry


def test_without_a_network_a_trunk_names_the_file_and_the_option(cache):
    with pytest.raises(FileNotFoundError, match=r"small\.pth is not in the cache.*with --checkpoint"):
        load_trunk("small", vocabulary=VOCABULARY)
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt is not in the cache.*with --vocabulary"):
        load_trunk("small", checkpoint="small.pth")


def test_a_trunk_can_be_fetched_by_name(hub, public_file, glip):
    hub.content = public_file.read_bytes()
    hub.etag = hashlib.sha256(hub.content).hexdigest()
    assert load_trunk("small", vocabulary=VOCABULARY).checksum == weights_checksum(glip)
