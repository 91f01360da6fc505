"""Weights on disk: conversion, checksums, whole files, and downloads from the Hub."""

import errno
import hashlib
import os
import resource
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants
from public_files import VOCABULARY, same, save_public
from safetensors import safe_open
from safetensors.torch import load_file
from stand_in_hub import serving

from glip_adapt.core import retries
from glip_adapt.trunks import weights
from glip_adapt.trunks.catalogue import convert, load_trunk, read_checkpoint
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.released import HUB_REPOSITORY
from glip_adapt.trunks.weights import fetch, save_tensors, weights_checksum

pytestmark = pytest.mark.usefixtures("small_trunk")


def test_a_converted_file_holds_the_same_weights_under_our_names(small_glip, public_file, tmp_path):
    target = tmp_path / "new" / "small.safetensors"
    checksum = convert(public_file, target, "small")
    assert same(load_file(target), small_glip.state_dict())
    assert same(read_checkpoint(target, small_glip, "small").state, small_glip.state_dict())
    assert checksum == weights_checksum(small_glip)
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


def test_the_checksum_changes_with_any_single_number(small_glip):
    before = weights_checksum(small_glip)
    with torch.no_grad():
        small_glip.head.bias_lang[3] += 1e-6
    assert weights_checksum(small_glip) != before


def test_the_checksum_covers_the_names():
    layer = torch.nn.Linear(2, 2)
    some, other = torch.nn.ModuleDict({"a": layer}), torch.nn.ModuleDict({"b": layer})
    assert weights_checksum(some) != weights_checksum(other)


def test_the_checksum_does_not_depend_on_what_is_trained(small_glip):
    before = weights_checksum(small_glip)
    assert weights_checksum(small_glip.requires_grad_(False).train()) == before


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
    return fetch(HUB_REPOSITORY, "small.pth", option="--checkpoint")


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


def test_without_a_network_a_trunk_names_the_file_and_the_option(cache, public_file):
    with pytest.raises(FileNotFoundError, match=r"small\.pth is not in the cache.*with --checkpoint"):
        load_trunk("small", vocabulary=VOCABULARY)
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt is not in the cache.*with --vocabulary"):
        load_trunk("small", checkpoint=public_file)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at absent\.pth"):
        load_trunk("small", checkpoint="absent.pth")


def test_a_trunk_can_be_fetched_by_name(hub, public_file, small_glip):
    hub.content = public_file.read_bytes()
    hub.etag = hashlib.sha256(hub.content).hexdigest()
    assert load_trunk("small", vocabulary=VOCABULARY).checksum == weights_checksum(small_glip)
