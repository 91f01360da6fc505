"""One adapter replaces another in one step, whatever happens in between."""

import os
import resource
import sys

import pytest
import torch
from processes import FORK, exit_codes

from glip_adapt.adapters.storage import STAGING, TENSORS_FILE, read_description, read_tensors, settled
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
