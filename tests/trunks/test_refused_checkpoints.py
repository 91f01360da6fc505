"""Files that are not the checkpoint that was asked for, damaged or hostile: one clear error, and nothing is run."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from public_files import EXTRAS, save_public
from safetensors.torch import save_file

from glip_adapt.trunks.catalogue import read_checkpoint
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.released import ASSETS, trunk_spec
from glip_adapt.trunks.weights import weights_checksum

pytestmark = pytest.mark.usefixtures("small_trunk")


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
def test_a_value_that_cannot_be_a_weight_is_refused_by_name(value, reason, small_glip, public, tmp_path):
    public["module.rpn.head.log_scale"] = value
    with pytest.raises(CheckpointError, match=f"1 entries do not fit.\n  {reason}"):
        read_checkpoint(save_public(public, tmp_path / "odd.pth"), small_glip, "small")


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
    small_glip = on_meta(asked)
    for stored, paths in files.items():
        for path in paths:
            if stored == asked:
                assert read_checkpoint(path, small_glip, asked).state.keys() == small_glip.state_dict().keys()
                continue
            with pytest.raises(CheckpointError, match=f"is not a checkpoint of {asked}") as failure:
                read_checkpoint(path, small_glip, asked)
            assert f"Its entries are those of {SIZES.get(stored, stored)}: ask for that." in str(failure.value)


def test_missing_unexpected_and_misshapen_entries_are_one_error(small_glip, public, tmp_path):
    del public["module.rpn.head.log_scale"]
    public["module.rpn.head.shape_head.weight"] = torch.zeros(3, 3)
    public["module.rpn.head.bbox_pred.weight"] = torch.zeros(8, 32, 1, 1)
    path = save_public(public, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as failure:
        read_checkpoint(path, small_glip, "small")
    message = str(failure.value)
    assert f"{path} is not a checkpoint of small: 3 entries do not fit" in message
    assert "missing: head.log_scale (1,)" in message
    assert "unexpected: rpn.head.shape_head.weight (3, 3)" in message
    assert "wrong shape: head.box_deltas.weight (8, 32, 1, 1), expected (4, 32, 1, 1)" in message
    assert "The public file of small is small.pth" in message


def test_a_long_list_of_problems_is_cut_and_counted(small_glip, public, tmp_path):
    with pytest.raises(CheckpointError, match=r"\d+ entries do not fit") as failure:
        read_checkpoint(save_public(EXTRAS, tmp_path / "empty.pth"), small_glip, "small")
    missing = len(small_glip.state_dict())
    assert f"{missing} entries do not fit" in str(failure.value)
    assert f"and {missing - 20} more" in str(failure.value)


def test_a_failed_read_leaves_the_detector_as_it_was(small_glip, public, tmp_path):
    before = weights_checksum(small_glip)
    del public["module.rpn.head.log_scale"]
    with pytest.raises(CheckpointError):
        read_checkpoint(save_public(public, tmp_path / "odd.pth"), small_glip, "small")
    assert weights_checksum(small_glip) == before


@pytest.mark.parametrize("content", [{"weights": {}}, {"model": [1, 2]}, {"model": {"a": 1}}, [1], torch.zeros(3)])
def test_a_file_without_a_dict_of_tensors_is_refused(content, small_glip, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no dict of tensors under 'model'"):
        read_checkpoint(tmp_path / "other.pth", small_glip, "small")


class Foreign:
    """An object of a class that no checkpoint needs."""


class Mischief:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("kind", ["foreign", "system", "mkdir"])
def test_a_pickle_with_other_objects_is_refused_and_never_run(kind, new_format, small_glip, public, tmp_path):
    marker = tmp_path / "was-here"
    hostile = {
        "foreign": Foreign(),
        "system": Mischief(os.system, f"touch {marker}"),
        "mkdir": Mischief(os.mkdir, str(marker)),
    }[kind]
    path = tmp_path / "hostile.pth"
    torch.save({"model": public, "extra": hostile}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="holds other objects, which are never loaded") as failure:
        read_checkpoint(path, small_glip, "small")
    assert not marker.exists()
    named = {"foreign": f"{__name__}.Foreign", "system": "posix.system", "mkdir": "posix.mkdir"}[kind]
    assert f"never loaded: {named}, and that may run code" in str(failure.value)
    assert "torch.save({'model': " in str(failure.value)


def test_a_bare_pickle_is_refused_and_never_run(small_glip, tmp_path):
    marker = tmp_path / "was-here"
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Mischief(os.mkdir, str(marker)), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "bare.pth", small_glip, "small")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_a_truncated_file_is_one_clear_error(form, share, small_glip, public, tmp_path):
    path = tmp_path / ("cut.safetensors" if form == "safetensors" else "cut.pth")
    if form == "safetensors":
        save_file(small_glip.state_dict(), path)
    else:
        save_public(public, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="could not be read as a checkpoint") as failure:
        read_checkpoint(path, small_glip, "small")
    assert str(path) in str(failure.value)
    assert "weights_only" not in str(failure.value)  # torch advises to load what it refuses


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_whatever_bytes_are_damaged_the_error_is_the_same(form, small_glip, tmp_path):
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
            read_checkpoint(path, small_glip, "small")


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
def test_a_file_of_another_kind_is_one_clear_error(content, suffix, small_glip, tmp_path):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="could not be read as a checkpoint"):
        read_checkpoint(path, small_glip, "small")


def test_a_missing_file_names_the_public_one(small_glip, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*public file of small is small\.pth.*GLIPModel/GLIP"):
        read_checkpoint(tmp_path / "nowhere.pth", small_glip, "small")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path, small_glip, "small")  # a folder
