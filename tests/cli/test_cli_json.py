"""``--json``: one value on standard output and nothing else, from every verb whose results a program may read."""

import json
import math
from pathlib import Path

import pytest
import typer
from PIL import Image
from public_files import VOCABULARY, add_trunk, save_public, small_state, tuned
from stand_in_hub import hub_within_reach

from glip_adapt import attach, load_trunk
from glip_adapt.bench import quickstart
from glip_adapt.bench.plan import BenchPlan
from glip_adapt.cli import terminal
from glip_adapt.cli.app import app
from glip_adapt.share import export as exporting
from glip_adapt.trunks.weights import weights_checksum

# They write the files that they are asked for, and print counts for people; or serve a page until they are stopped.
WITHOUT = {"data sample", "data export", "serve", "studio"}


def verbs(command, path=()):
    """Yield the name and the options of every verb below a command."""
    for name, found in getattr(command, "commands", {}).items():
        yield from verbs(found, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), {option for parameter in command.params for option in parameter.opts}


def test_every_verb_with_results_takes_json():
    found = dict(verbs(typer.main.get_command(app)))
    assert len(found) > 15
    assert {name for name, options in found.items() if "--json" not in options} <= WITHOUT


@pytest.fixture
def read(glip):
    """Run a verb with ``--json``; return what standard output holds."""

    def run(*arguments):
        code, out, err = glip(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def adapter(tmp_path):
    attach(load_trunk("glip-nano"), "prompt", classes=("red box", "blue box")).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_numbers_that_json_lacks_are_null(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "console", terminal.Console(width=80))
    content = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf,)], "c": {"d": 10**20, "e": True, "f": "NaN"}}
    terminal.print_json(content)
    expected = {"a": None, "b": [None, 1.5, [None]], "c": {"d": 10**20, "e": True, "f": "NaN"}}
    assert json.loads(capsys.readouterr().out) == expected


def test_bake_and_export_say_what_they_wrote(read, adapter, tmp_path, monkeypatch):
    baked, file = tmp_path / "baked", tmp_path / "model.onnx"
    found = read("bake", adapter, "--out", baked)
    assert found.pop("bytes") == sum((baked / name).stat().st_size for name in ("baked.json", "baked.safetensors"))
    assert found == {"folder": str(baked), "method": "prompt", "classes": ["red box", "blue box"]}
    monkeypatch.setattr(exporting, "export_onnx", lambda model, path: path.write_bytes(b"onnx"))
    found = read("export", baked, "--out", file)
    assert found == {"file": str(file), "classes": ["red box", "blue box"], "bytes": 4}


def test_convert_says_the_checksum_or_the_adapter(read, small_glip, tmp_path, monkeypatch):
    add_trunk(monkeypatch, "small")
    source, file = save_public(tuned(small_state()), tmp_path / "tuned.pth"), tmp_path / "small.safetensors"
    convert = ("--trunk", "small", "--vocabulary", VOCABULARY)
    expected = {"file": str(file), "trunk": "small", "checksum": weights_checksum(small_glip)}
    assert read("convert", source, file, *convert) == expected
    found = read("convert", source, tmp_path / "adapter", "--classes", "dog, cat", *convert)
    assert found.pop("trained_parameters") > 0
    assert found == {"folder": str(tmp_path / "adapter"), "trunk": "small", "classes": ["dog", "cat"]}


def test_push_and_pull_say_where_the_adapter_is(read, adapter, tmp_path, monkeypatch):
    with hub_within_reach(monkeypatch, tmp_path / "cache"):
        pushed = read("push", adapter, "someone/boxes", "--licence", "mit")
        pulled = read("pull", "someone/boxes", "--out", tmp_path / "here")
    assert pushed["folder"] == str(adapter)
    assert pushed["address"].endswith("/someone/boxes")
    names = ["red box", "blue box"]
    assert pulled == {"folder": str(tmp_path / "here"), "method": "prompt", "trunk": "glip-nano", "classes": names}


def test_quickstart_and_report_name_the_files_that_they_wrote(read, coco_folder, tmp_path, monkeypatch):
    plan = BenchPlan(
        trunks=("glip-nano",), datasets=(str(coco_folder),), methods=("zero_shot",), shots=(0,), seeds=(3,)
    )
    monkeypatch.setattr(quickstart, "quickstart_plan", lambda full: plan)
    monkeypatch.setattr(quickstart, "draw_strip", lambda *given: Image.new("RGB", (8, 8)))
    out = tmp_path / "runs"
    first = read("quickstart", "--out", out, "--workers", "1")
    assert {name: first.pop(name) for name in ("done", "skipped", "failed")} == {"done": 1, "skipped": 0, "failed": 0}
    strip = first.pop("strip")
    second = read("report", out / "results")
    assert first == second
    assert {"csv", "parquet", "markdown", "latex", "page", "figures"} == second.keys()
    files = [strip, *second.pop("figures"), *second.values()]
    assert len(files) > 5
    assert all(Path(file).is_file() for file in files)


def test_an_error_leaves_standard_output_empty(glip, tmp_path):
    for arguments in (("report", tmp_path), ("bake", tmp_path, "--out", tmp_path / "x"), ("eval", "NoSuchSet")):
        code, out, err = glip(*arguments, "--json")
        assert (code, out, "error: " in err) == (1, "", True)
