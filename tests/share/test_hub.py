"""Adapters that travel: up to a stand-in of the Hub and down again, and nothing unsafe on the way."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from stand_in_hub import hub_within_reach

from glip_adapt.adapters.storage import AdapterMismatchError
from glip_adapt.engine.adapted import attach
from glip_adapt.share import hub
from glip_adapt.share.card import TrainingFacts, write_facts
from glip_adapt.share.hub import HubError, download_adapter, from_hub, pull, push_to_hub

REPOSITORY = "someone/tools-5-shot"
FACTS = TrainingFacts(data="shapes/train-5-shot-seed-3", shots=5, seed=3, metrics={"test AP": 0.4567})


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_within_reach(monkeypatch, tmp_path / "cache") as stand_in:
        yield stand_in


@pytest.fixture
def model(tiny_trunk):
    made = attach(tiny_trunk, "prompt", classes=["red box", "blue | box"])
    generator = torch.Generator().manual_seed(0)
    made.load_owned({name: torch.randn(x.shape, generator=generator) for name, x in made.owned_tensors().items()})
    return made


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def equal(one, other):
    mine, theirs = one.owned_tensors(), other.owned_tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_adapter_goes_up_and_comes_down_bit_for_bit(server, model, tiny_trunk):
    address = push_to_hub(model, REPOSITORY)
    assert address.endswith(f"/{REPOSITORY}")
    assert set(server.files[REPOSITORY]) == {"adapter.json", "adapter.safetensors", "README.md"}
    back = from_hub(REPOSITORY, trunk=tiny_trunk)
    assert equal(back, model)
    assert back.prompts == model.prompts


def test_only_the_two_files_are_fetched_whatever_lies_beside_them(server, model, tiny_trunk):
    push_to_hub(model, REPOSITORY)
    for name in ("setup.py", "model.pkl", "adapter.bin", "config.json"):
        server.put(REPOSITORY, name, b"import os")
    server.requests.clear()
    folder = download_adapter(REPOSITORY)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]
    asked = {path.rpartition("/")[2] for _, path, _ in server.requests if "/resolve/" in path}
    assert asked == {"adapter.json", "adapter.safetensors"}


def test_a_saved_folder_goes_up_without_its_other_files(server, saved):
    (saved / "notes.txt").write_text("private")
    write_facts(FACTS, saved)
    push_to_hub(saved, REPOSITORY, licence="mit")
    assert set(server.files[REPOSITORY]) == {"adapter.json", "adapter.safetensors", "README.md"}
    assert server.files[REPOSITORY]["adapter.json"] == (saved / "adapter.json").read_bytes()
    card = server.files[REPOSITORY]["README.md"].decode()
    assert "45.7 %" in card
    assert 'license: "mit"' in card


def test_a_picture_goes_up_small_and_without_its_metadata(server, saved, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "photo.jpg", exif=exif)
    push_to_hub(saved, REPOSITORY, picture=tmp_path / "photo.jpg")
    sent = server.files[REPOSITORY]["picture.png"]
    assert b"taken at home" not in sent
    (tmp_path / "back.png").write_bytes(sent)
    assert Image.open(tmp_path / "back.png").size == (1280, 640)
    assert "](picture.png)" in server.files[REPOSITORY]["README.md"].decode()
    with pytest.raises(FileNotFoundError, match="No image at"):
        push_to_hub(saved, REPOSITORY, picture=tmp_path / "absent.jpg")


def test_nothing_is_sent_that_does_not_belong_together(server, saved, tmp_path):
    content = bytearray((saved / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "adapter.safetensors").write_bytes(bytes(content))
    with pytest.raises(AdapterMismatchError, match="is damaged, or belongs to another description"):
        push_to_hub(saved, REPOSITORY)
    (saved / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter\.safetensors is missing"):
        push_to_hub(saved, REPOSITORY)
    with pytest.raises(FileNotFoundError, match=r"adapter\.json is missing"):
        push_to_hub(tmp_path, REPOSITORY)
    assert server.requests == []


# What comes down may be anything


def test_an_oversized_file_is_refused_before_it_is_fetched(server, saved, tiny_trunk):
    push_to_hub(saved, REPOSITORY)
    whole = dict(server.files[REPOSITORY])
    server.put(REPOSITORY, "adapter.safetensors", bytes(3 * 2**20))
    with pytest.raises(AdapterMismatchError, match=r"adapter\.safetensors of .* has 3,145,728 bytes.*was not fetched"):
        from_hub(REPOSITORY, trunk=tiny_trunk)
    server.put(REPOSITORY, "adapter.json", b" " * 2**20 + whole["adapter.json"])
    with pytest.raises(AdapterMismatchError, match=r"adapter\.json of .* was not fetched"):
        from_hub(REPOSITORY, trunk=tiny_trunk)
    assert len(server.asked("GET", "/blob/")) == 1  # the description, while it was small


def test_a_description_cannot_talk_its_way_past_the_limit(server, saved, tiny_trunk, monkeypatch):
    push_to_hub(saved, REPOSITORY)
    monkeypatch.setattr(hub, "MAX_TENSORS_BYTES", 2000)
    boastful = json.loads(server.files[REPOSITORY]["adapter.json"]) | {"trained_parameters": 10**15}
    server.put(REPOSITORY, "adapter.json", json.dumps(boastful).encode())
    server.put(REPOSITORY, "adapter.safetensors", bytes(2001))
    with pytest.raises(AdapterMismatchError, match="more than the 2,000"):
        from_hub(REPOSITORY, trunk=tiny_trunk)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("adapter.json", lambda content: content[: len(content) // 2]),
        ("adapter.json", lambda _: b"[]"),
        ("adapter.safetensors", lambda content: content[:-4]),
        ("adapter.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("adapter.safetensors", lambda _: b"\x80\x04\x95cos\nsystem\n(S'touch evil'\ntR."),
    ],
)
def test_a_damaged_or_foreign_file_is_one_clear_error(server, saved, tiny_trunk, name, change):
    push_to_hub(saved, REPOSITORY)
    server.put(REPOSITORY, name, change(server.files[REPOSITORY][name]))
    with pytest.raises(AdapterMismatchError, match=name):
        from_hub(REPOSITORY, trunk=tiny_trunk)


def test_an_adapter_for_other_weights_is_refused(server, saved, tiny_trunk):
    push_to_hub(saved, REPOSITORY)
    with pytest.raises(AdapterMismatchError, match="Load the trunk that it was trained on"):
        from_hub(REPOSITORY, trunk=replace(tiny_trunk, checksum="0" * 64))


def test_a_file_damaged_on_the_way_is_not_kept(server, saved, model, tiny_trunk):
    push_to_hub(saved, REPOSITORY)
    server.fault = "damaged"
    with pytest.raises(HubError, match="arrived damaged"):
        from_hub(REPOSITORY, trunk=tiny_trunk)
    server.fault = None
    assert equal(from_hub(REPOSITORY, trunk=tiny_trunk), model)


def test_what_is_not_there_or_no_hub_is_one_error_that_says_what_to_do(server, saved, tiny_trunk, monkeypatch):
    with pytest.raises(HubError, match=r"adapter\.json of someone/absent could not be fetched .*Check the name"):
        from_hub("someone/absent", trunk=tiny_trunk)
    with pytest.raises(HubError, match="could not be"):
        from_hub("not a name/at/all", trunk=tiny_trunk)
    server.fault = "page"
    with pytest.raises(HubError, match=r"was not answered by a Hub"):
        from_hub(REPOSITORY, trunk=tiny_trunk)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(HubError, match=r"could not be written .*Check the network"):
        push_to_hub(saved, REPOSITORY)


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_full_disk_while_pulling_leaves_no_adapter_and_the_next_pull_succeeds(
    server, saved, tmp_path, monkeypatch, name
):
    def fail_half_way(source, target):
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[:10] if Path(source).name == name else content)
        if Path(source).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")

    push_to_hub(saved, REPOSITORY)
    with monkeypatch.context() as full:
        full.setattr(hub.shutil, "copyfile", fail_half_way)
        with pytest.raises(OSError, match="No space left"):
            pull(REPOSITORY, tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} <= {"adapter.safetensors"} - {name}
    pull(REPOSITORY, tmp_path / "here")
    assert (tmp_path / "here" / name).read_bytes() == (saved / name).read_bytes()


# The verbs


def test_push_and_pull_from_the_shell(server, saved, glip, tmp_path):
    code, out, err = glip("push", saved, REPOSITORY, "--licence", "mit")
    assert (code, REPOSITORY in out) == (0, True), err
    code, out, err = glip("pull", REPOSITORY, "--out", tmp_path / "here")
    assert code == 0, err
    assert "prompt on glip-nano, for red box, blue | box" in out
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "here" / name).read_bytes() == (saved / name).read_bytes()
        assert not (tmp_path / "here" / name).is_symlink()
    code, _, err = glip("pull", REPOSITORY, "--out", tmp_path / "here")
    assert (code, "holds an adapter already" in err, "Traceback" in err) == (1, True, False)
    with pytest.raises(FileExistsError):
        pull(REPOSITORY, tmp_path / "here")
    (tmp_path / "baked").mkdir()
    (tmp_path / "baked" / "baked.json").touch()
    with pytest.raises(FileExistsError, match="holds a baked model"):
        pull(REPOSITORY, tmp_path / "baked")
    for verb in ("push", "pull"):
        code, out, _ = glip(verb, "--help")
        assert f"Example: glip-adapt {verb}" in " ".join(out.split())
