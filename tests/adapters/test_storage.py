"""One saved model replaces another in one step, whatever happens in between; what is read is what was expected."""

import os
import resource
import sys

import pytest
import torch
from processes import FORK, exit_codes

from glip_adapt.adapters.storage import (
    DESCRIPTION_FILE,
    STAGING,
    TENSORS_FILE,
    AdapterMismatchError,
    check_tensors,
    read_description,
    read_tensors,
    replaced_pair,
    settle,
    settled,
    write_tensors,
)
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.load import load_adapter

FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "fcntl.flock", "shutil.rmtree")


def build(tiny_trunk, value):
    model = attach(tiny_trunk, "prompt", classes=("red box", "blue box"))
    with torch.no_grad():
        model.owned_tensors()["text_prompt.offset"].fill_(value)
    return model


def value_in(folder, model):
    """The offset of the adapter in ``folder``, which has tensors like those of ``model``."""
    with settled(folder):
        sha256 = read_description(folder).sha256
        return read_tensors(folder / TENSORS_FILE, model.owned_tensors(), sha256)["text_prompt.offset"][0, 0].item()


def save_and_die(model, folder, last, counter):
    """Save, and be gone at the file operation with the number ``last``; count those before it."""

    def on_event(event, arguments):
        if event in FILE_EVENTS and str(folder) in str(arguments):
            if counter.value == last:
                os._exit(9)
            counter.value += 1

    sys.addaudithook(on_event)
    model.save(folder)
    os._exit(0)


def test_killed_at_any_file_operation_the_old_or_the_new_one_loads_and_nothing_is_left(tiny_trunk, tmp_path):
    folder = tmp_path / "adapter"
    old, new, counter = build(tiny_trunk, 1.0), build(tiny_trunk, 2.0), FORK.Value("i", 0)
    seen = set()
    for last in range(1000):
        old.save(folder)
        counter.value = 0
        if exit_codes(save_and_die, new, folder, last, counter) == [0]:
            break
        seen.add(value_in(folder, new))
        assert {file.name for file in folder.iterdir()} == {"adapter.json", "adapter.safetensors"}
    assert last > 10
    assert seen == {1.0, 2.0}
    offset = load_adapter(folder, trunk=tiny_trunk).owned_tensors()["text_prompt.offset"]
    assert (offset == 2.0).all()


def test_killed_in_a_new_folder_no_half_adapter_is_left(tiny_trunk, tmp_path):
    new, counter = build(tiny_trunk, 2.0), FORK.Value("i", 0)
    for last in range(1000):
        folder = tmp_path / str(last)
        counter.value = 0
        if exit_codes(save_and_die, new, folder, last, counter) == [0]:
            break
        if folder.exists() and (folder / "adapter.json").exists():
            assert value_in(folder, new) == 2.0
        new.save(folder)
        assert {file.name for file in folder.iterdir()} == {"adapter.json", "adapter.safetensors"}
    assert last > 10


def test_two_writers_leave_the_adapter_of_one_of_them(tiny_trunk, tmp_path):
    models = {value: build(tiny_trunk, value) for value in (1.0, 2.0)}
    for _ in range(20):
        children = [FORK.Process(target=model.save, args=(tmp_path,)) for model in models.values()]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        assert value_in(tmp_path, models[1.0]) in models
        assert {file.name for file in tmp_path.iterdir()} == {"adapter.json", "adapter.safetensors"}


def test_an_adapter_is_not_replaced_unless_that_is_wanted(tiny_trunk, tmp_path):
    old, new = build(tiny_trunk, 1.0), build(tiny_trunk, 2.0)
    old.save(tmp_path, overwrite=False)
    with pytest.raises(FileExistsError, match="holds a saved model already"):
        new.save(tmp_path, overwrite=False)
    assert value_in(tmp_path, old) == 1.0


def test_a_full_disk_keeps_the_old_adapter(tiny_trunk, tmp_path):
    old, new = build(tiny_trunk, 1.0), build(tiny_trunk, 2.0)
    old.save(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="could not be written"):
            new.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert value_in(tmp_path, old) == 1.0
    assert not (tmp_path / STAGING).exists()


def test_other_files_of_the_folder_stay(tiny_trunk, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    build(tiny_trunk, 1.0).save(tmp_path)
    build(tiny_trunk, 2.0).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_error_while_a_pair_is_written_keeps_the_old_one(tiny_trunk, tmp_path):
    old = build(tiny_trunk, 1.0)
    old.save(tmp_path)

    def fail():
        with replaced_pair(tmp_path, DESCRIPTION_FILE) as staging:
            assert list(staging.iterdir()) == []
            (staging / DESCRIPTION_FILE).write_text("{}")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert value_in(tmp_path, old) == 1.0
    assert not (tmp_path / STAGING).exists()


def test_staged_tensors_are_moved_where_the_description_is_about_them_and_else_removed(tiny_trunk, tmp_path):
    old, new = build(tiny_trunk, 1.0), build(tiny_trunk, 2.0)
    old.save(tmp_path)
    (tmp_path / STAGING).mkdir()
    write_tensors(new.owned_tensors(), tmp_path / STAGING / TENSORS_FILE, "prompt")
    settle(tmp_path)
    assert value_in(tmp_path, old) == 1.0
    new.save(tmp_path / "new")
    (tmp_path / STAGING).mkdir()
    (tmp_path / "new" / DESCRIPTION_FILE).replace(tmp_path / DESCRIPTION_FILE)
    (tmp_path / "new" / TENSORS_FILE).replace(tmp_path / STAGING / TENSORS_FILE)
    settle(tmp_path)
    assert value_in(tmp_path, old) == 2.0
    assert not (tmp_path / STAGING).exists()


def test_a_folder_that_is_not_there_is_read_as_it_is_and_not_made(tmp_path):
    with settled(tmp_path / "absent"):
        pass
    assert not (tmp_path / "absent").exists()


def test_tensors_come_back_bit_for_bit_each_at_an_aligned_address(tmp_path):
    written = {"a": torch.randn(3), "b": torch.arange(5), "c": torch.randn(2, 2).bfloat16()}
    sha256 = write_tensors(written, tmp_path / TENSORS_FILE, "prompt")
    expected = {name: torch.empty_like(tensor, device="meta") for name, tensor in written.items()}
    found = read_tensors(tmp_path / TENSORS_FILE, expected, sha256)
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in written)
    assert [tensor.data_ptr() % 64 for tensor in found.values()] == [0, 0, 0]


def test_tensors_of_another_file_are_told_by_its_checksum(tmp_path):
    tensors = {"a": torch.ones(3)}
    write_tensors(tensors, tmp_path / TENSORS_FILE, "prompt")
    with pytest.raises(AdapterMismatchError, match=r"its SHA-256 is not 000000000000…"):
        read_tensors(tmp_path / TENSORS_FILE, tensors, 64 * "0")


@pytest.mark.parametrize(
    ("came", "named"),
    [
        ({"b": torch.ones(3)}, r"expected 1 tensors \(a \(3,\) float32\), but 1 came: \(b \(3,\) float32\)"),
        ({"a": torch.ones(4)}, r"but 1 came: \(a \(4,\) float32\)"),
        ({"a": torch.ones(3).double()}, r"but 1 came: \(a \(3,\) float64\)"),
        ({"a": torch.ones(3), "b": torch.ones(1)}, r"but 2 came: \(a \(3,\) float32, b \(1,\) float32\)"),
        ({}, r"but 0 came: \(\)"),
    ],
)
def test_other_names_shapes_or_types_are_refused_and_both_sides_are_named(came, named):
    check_tensors({"a": torch.zeros(3)}, {"a": torch.ones(3)}, "the file")
    with pytest.raises(AdapterMismatchError, match=f"^the file: .*{named}"):
        check_tensors(came, {"a": torch.ones(3)}, "the file")
