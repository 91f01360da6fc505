"""Checkpoints of transformers by name from the Hub, and folders as ``hf download`` makes them."""

from itertools import count
from shutil import copy

import numpy as np
import pytest
import torch
from conftest import load_benchmark
from huggingface_hub import constants
from public_files import VOCABULARY, same
from safetensors.torch import load_file
from small_dino import SMALL_DINO, shrink
from stand_in_hub import hub_within_reach

from glip_adapt import attach
from glip_adapt.core.downloads import cached
from glip_adapt.trunks import tokenizer
from glip_adapt.trunks.catalogue import best_trunk, convert, load_trunk
from glip_adapt.trunks.released import ASSETS, TRUNKS, trunk_spec
from glip_adapt.trunks.weights import weights_checksum

ROWS = ("mm-grounding-dino-t", "llmdet-t")  # two repositories of one file name


@pytest.fixture(scope="module")
def parity():
    yield from load_benchmark("parity_transformers")


@pytest.fixture(scope="module")
def published(parity, tmp_path_factory):
    """Networks of both rows, and the bytes of their files as transformers writes them."""
    found = {}
    for seed, name in zip(count(), ROWS):
        torch.manual_seed(seed)
        network = parity.public_network(SMALL_DINO)
        folder = tmp_path_factory.mktemp(name)
        network.save_pretrained(folder)
        found[name] = parity.our_network(SMALL_DINO, network), (folder / "model.safetensors").read_bytes()
    return found


@pytest.fixture
def hub(monkeypatch, tmp_path, published):
    """A stand-in Hub with both files and the vocabulary."""
    shrink(monkeypatch, *ROWS)
    with hub_within_reach(monkeypatch, tmp_path / "cache") as stand_in:
        for name in ROWS:
            stand_in.put(trunk_spec(name).repository, "model.safetensors", published[name][1])
        stand_in.put(tokenizer.HUB_VOCABULARY[0], "vocab.txt", VOCABULARY.read_bytes())
        yield stand_in


@pytest.fixture
def folder(monkeypatch, tmp_path, published):
    """The folder that ``hf download`` makes of the first repository; no Hub is within reach."""
    shrink(monkeypatch, *ROWS)
    path = tmp_path / "downloaded"
    (path / ".cache" / "huggingface").mkdir(parents=True)
    for name in ("config.json", "README.md"):
        (path / name).write_text("{}")
    copy(VOCABULARY, path / "vocab.txt")
    (path / "model.safetensors").write_bytes(published[ROWS[0]][1])
    return path


def test_a_trunk_of_the_hub_is_fetched_by_name_and_detects(hub, published, monkeypatch):
    trunk = load_trunk(ROWS[0])
    assert trunk.checksum == weights_checksum(published[ROWS[0]][0])
    found = attach(trunk, "zero_shot", classes=["arrow", "heart"]).predict(np.zeros((64, 96, 3), np.uint8))
    assert len(found.scores) > 0
    assert set(found.labels.tolist()) <= {0, 1}
    asked = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert load_trunk(ROWS[0]).checksum == trunk.checksum
    assert len(hub.requests) == asked


def test_files_of_one_name_in_two_repositories_are_not_confused(hub, published):
    for name in ROWS:
        assert load_trunk(name).checksum == weights_checksum(published[name][0])
    paths = [cached(TRUNKS[name].repository, "model.safetensors") for name in ROWS]
    assert [path.read_bytes() for path in paths] == [published[name][1] for name in ROWS]


def test_only_the_trunk_in_the_cache_is_the_best_one(hub):
    assert best_trunk("cpu")[0] == "glip-t"
    load_trunk(ROWS[0])
    assert best_trunk("cpu")[0] == ROWS[0]
    assert cached(TRUNKS[ROWS[1]].repository, "model.safetensors") is None
    load_trunk(ROWS[1])
    assert best_trunk("cpu")[0] == ROWS[1]


def test_offline_one_error_says_what_to_fetch_and_which_option_names_it(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = trunk_spec(ROWS[0]).repository
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE") as failure:
        load_trunk(ROWS[0], vocabulary=VOCABULARY)
    said = str(failure.value)
    assert said.startswith(f"{repository}/model.safetensors is not in the cache")
    assert f"/{repository}/resolve/main/model.safetensors" in said
    assert "--checkpoint" in said
    assert not hub.requests


def test_a_folder_has_weights_and_vocabulary(folder, published):
    trunk = load_trunk(ROWS[0], checkpoint=folder)
    assert trunk.checksum == weights_checksum(published[ROWS[0]][0])
    assert trunk.tokenizer.size == 950


def test_a_named_vocabulary_wins_over_that_of_the_folder(folder):
    (folder / "vocab.txt").write_text("not a vocabulary")
    with pytest.raises(ValueError, match=r"downloaded/vocab\.txt is not a vocabulary"):
        load_trunk(ROWS[0], checkpoint=folder)
    assert load_trunk(ROWS[0], checkpoint=folder, vocabulary=VOCABULARY).tokenizer.size == 950


def test_a_file_in_a_folder_is_no_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt is not in the cache.*with --vocabulary"):
        load_trunk(ROWS[0], checkpoint=folder / "model.safetensors")


def test_a_folder_without_the_weights_says_what_was_expected_and_what_is_there(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as failure:
        load_trunk(ROWS[0], checkpoint=folder)
    assert str(failure.value) == (
        f"Expected model.safetensors in {folder}, found .cache, README.md, config.json, pytorch_model.bin, vocab.txt. "
        f"The public file of {ROWS[0]} is model.safetensors in the Hub repository {trunk_spec(ROWS[0]).repository}."
    )
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Expected model\.safetensors in .*empty, found nothing\. The public"):
        load_trunk(ROWS[0], checkpoint=folder / "empty")


def test_a_folder_converts(folder, published, tmp_path):
    convert(folder, tmp_path / "ours.safetensors", ROWS[0])
    assert same(load_file(tmp_path / "ours.safetensors"), published[ROWS[0]][0].state_dict())
    assert load_trunk(ROWS[0], checkpoint=tmp_path / "ours.safetensors", vocabulary=VOCABULARY)


@pytest.mark.usefixtures("small_trunk")
def test_a_folder_with_a_checkpoint_of_the_other_family(public_file, small_glip):
    copy(VOCABULARY, public_file.parent / "vocab.txt")
    assert load_trunk("small", checkpoint=public_file.parent).checksum == weights_checksum(small_glip)


def test_the_packaged_trunks_have_a_folder_too():
    assert load_trunk("glip-nano", checkpoint=ASSETS).checksum == load_trunk("glip-nano").checksum
