"""The trunk that verbs take where the user names none: a cached one, a download, or glip-nano with a warning."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from public_files import VOCABULARY, add_trunk
from stand_in_hub import hub_within_reach

from glip_adapt import attach
from glip_adapt.cli import terminal
from glip_adapt.cli.options import _implied_trunk, open_trunk
from glip_adapt.core import memory
from glip_adapt.trunks import catalogue, tokenizer
from glip_adapt.trunks.catalogue import best_trunk
from glip_adapt.trunks.released import TRUNKS

NANO = "only knows rendered pictograms"


@pytest.fixture
def hub(tmp_path, monkeypatch, public_file):
    """A stand-in Hub with small public files of glip-t and glip-l, and the vocabulary."""
    for name, gb in (("glip-t", 3.7), ("glip-l", None)):
        add_trunk(monkeypatch, name)
        monkeypatch.setitem(TRUNKS, name, replace(TRUNKS[name], download_gb=gb))
    monkeypatch.setattr(tokenizer, "HUB_VOCABULARY", ("someone/words", "vocab.txt"))
    with hub_within_reach(monkeypatch, tmp_path / "cache") as stand_in:
        for name in ("glip_t.pth", "glip_l.pth"):
            stand_in.put("GLIPModel/GLIP", name, public_file.read_bytes())
        stand_in.put("someone/words", "vocab.txt", VOCABULARY.read_bytes())
        terminal.prepare()
        monkeypatch.setattr(terminal, "stderr", terminal.Console(stderr=True, width=5000))
        yield stand_in


def opened(capsys, name=None, **given):
    """Return the name of the trunk that is opened, and what is said on standard error."""
    trunk = open_trunk(name, given.pop("checkpoint", None), given.pop("vocabulary", None), "cpu", **given)
    out, err = capsys.readouterr()
    assert not out
    return trunk.name, err


def test_without_a_choice_glip_t_is_downloaded_once_and_its_size_is_said(hub, capsys):
    name, err = opened(capsys)
    assert (name, "glip-t: 3.7 GB are downloaded once" in err, NANO in err) == ("glip-t", True, False)
    asked = len(hub.requests)
    assert opened(capsys) == ("glip-t", "")
    assert len(hub.requests) == asked


def test_the_most_accurate_trunk_in_the_cache_is_taken_if_it_fits(hub, capsys, monkeypatch):
    open_trunk("glip-l", None, None, "cpu")
    assert best_trunk("cpu")[0] == "glip-l"
    open_trunk("glip-t", None, None, "cpu")
    assert best_trunk("cpu")[0] == "glip-l"
    monkeypatch.setitem(TRUNKS, "glip-l", replace(TRUNKS["glip-l"], memory_gb=5))
    monkeypatch.setattr(catalogue, "total_bytes", lambda *device: 4_999_999_999)
    assert best_trunk("cpu")[0] == "glip-t"
    monkeypatch.setattr(catalogue, "total_bytes", lambda *device: 5_000_000_000)
    assert best_trunk("cpu")[0] == "glip-l"


def test_a_machine_or_a_gpu_without_memory_for_glip_t_takes_glip_nano(hub, capsys, monkeypatch):
    for small in (None, torch.device("cuda")):
        monkeypatch.setattr(catalogue, "choose_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr(catalogue, "total_bytes", lambda d=None, s=small: 2e9 if d == s else 64e9)
        assert best_trunk() == ("glip-nano", "glip-t does not fit into the 2.0 GB of memory.")
    assert not hub.requests


def test_offline_glip_nano_is_taken_and_one_sentence_says_what_it_is(hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name, err = opened(capsys)
    assert name == "glip-nano"
    assert err.count("warning:") == 1
    assert all(part in err for part in (NANO, "HF_HUB_OFFLINE is set", "--trunk glip-t --checkpoint FILE"))
    assert "downloaded" not in err
    assert not hub.requests


def test_offline_a_cached_trunk_is_taken(hub, capsys, monkeypatch):
    opened(capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert opened(capsys) == ("glip-t", "")


def test_a_hub_out_of_reach_leaves_glip_nano_and_says_why(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    name, err = opened(capsys)
    assert name == "glip-nano"
    assert err.count("warning:") == 1
    assert all(part in err for part in (NANO, "could not be fetched", "--trunk glip-t --checkpoint FILE"))


def test_the_vocabulary_of_another_trunk_is_no_error_for_glip_nano(hub, capsys, monkeypatch, tmp_path):
    (tmp_path / "vocab.txt").write_text(VOCABULARY.read_text() + "##zzz\n")  # one entry more than glip-nano reads
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert opened(capsys, vocabulary=tmp_path / "vocab.txt")[0] == "glip-nano"


def test_a_download_that_breaks_off_is_an_error_and_no_reason_for_another_detector(hub, capsys):
    hub.fault = "damaged"
    with pytest.raises(ValueError, match="arrived damaged"):
        open_trunk(None, None, VOCABULARY, "cpu")
    hub.fault = "closed"
    with pytest.raises(FileNotFoundError, match=r"glip_t\.pth is not in the cache"):
        open_trunk(None, None, VOCABULARY, "cpu")


def test_a_named_trunk_is_never_replaced(hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        open_trunk("glip-t", None, None, "cpu")


@pytest.mark.parametrize("dataset", ["glyphs13/Dice", "datasets/glyphs13/Dice"])
def test_synthetic_pictograms_take_glip_nano_in_silence(hub, capsys, dataset):
    assert opened(capsys, dataset=dataset) == ("glip-nano", "")
    assert not hub.requests


def test_another_dataset_takes_what_any_photograph_takes(hub, capsys):
    assert opened(capsys, dataset="odinw/Raccoon")[0] == "glip-t"


@pytest.mark.parametrize(
    ("file", "expected"),
    [("glip_l.pth", "glip-l"), ("glip_t.pth", "glip-t"), ("glip-l.pth", "glip-l"), ("mine.pth", "glip-t")],
)
def test_a_checkpoint_says_by_its_name_which_trunk_it_is(hub, capsys, tmp_path, public_file, file, expected):
    (tmp_path / file).write_bytes(public_file.read_bytes())
    assert opened(capsys, checkpoint=tmp_path / file, vocabulary=VOCABULARY) == (expected, "")
    assert not hub.requests


@pytest.mark.parametrize("place", ["llmdet_base", "models--iSEE-Laboratory--llmdet_base/snapshots/0123abc"])
def test_a_file_name_of_several_trunks_is_told_apart_by_its_repository(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).touch()
    assert _implied_trunk(folder, None, None) == "llmdet-b"
    assert _implied_trunk(folder / "model.safetensors", None, None) == "llmdet-b"


def test_a_file_name_of_several_trunks_alone_says_too_little(tmp_path, glip, coco_folder):
    (tmp_path / "model.safetensors").touch()
    code, _, err = glip("eval", coco_folder, "--checkpoint", tmp_path / "model.safetensors")
    assert code == 1
    assert "model.safetensors may be one of dyhead-t, grounding-dino-t, mm-grounding-dino-t" in err
    assert "Say which with --trunk." in err


def test_a_folder_says_by_its_files_which_trunk_it_is(hub, capsys, tmp_path, public_file):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "glip_l.pth").write_bytes(public_file.read_bytes())
    (tmp_path / "some" / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
    assert opened(capsys, checkpoint=tmp_path / "some") == ("glip-l", "")
    assert not hub.requests
    with pytest.raises(FileNotFoundError, match=r"Expected glip_t\.pth in .*some, found glip_l\.pth, vocab\.txt"):
        opened(capsys, "glip-t", checkpoint=tmp_path / "some")


def test_the_trunk_of_an_adapter_is_not_replaced_by_a_better_one(hub, capsys, tmp_path):
    opened(capsys)
    attach(open_trunk("glip-nano", None, None, "cpu"), "prompt", classes=["dog"]).save(tmp_path / "adapter")
    assert opened(capsys, adapter=tmp_path / "adapter") == ("glip-nano", "")


def test_detect_prints_nothing_but_json_while_it_warns(glip, coco_folder, tmp_path):
    detect = ("detect", coco_folder / "test" / "0.png", "--classes", "dog", "--out", tmp_path / "found", "--json")
    code, out, err = glip(*detect)
    assert (code, len(json.loads(out)), NANO in err) == (0, 1, True)


def test_the_limit_of_a_container_is_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (str(tmp_path / "absent"),))
    machine = memory.total_bytes()
    assert machine > 10**8
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "absent")))
    for text, expected in (("max\n", machine), ("1000000\n", 10**6), (f"{2 * machine}\n", machine)):
        (tmp_path / "memory.max").write_text(text)
        assert memory.total_bytes() == expected
