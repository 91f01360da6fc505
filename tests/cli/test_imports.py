"""Verbs start fast because of what they do not import; seconds would depend on the machine."""

import json
import re
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "torchvision", "timm", "transformers", "tokenizers", "peft", "pandas", "matplotlib", "scipy",
    "pycocotools", "huggingface_hub", "supervision", "ray", "trackers", "av",
)  # fmt: skip
LIBRARY = "from glip_adapt.cli import main; main()"
EVERY_HELP = """
import typer
from glip_adapt.cli.app import app
def ask(command, *verbs):
    for name, below in getattr(command, "commands", {}).items():
        ask(below, *verbs, name)
    app([*verbs, "--help"], standalone_mode=False)
ask(typer.main.get_command(app))
"""


@pytest.fixture
def run(coco_folder, tmp_path):
    """Return a function that runs code in a process of its own; it returns heavy packages, exit code and output."""
    ending = "import atexit, sys; atexit.register(lambda: print('IMPORTED', *sys.modules, file=sys.stderr)); "

    def run(code, *arguments):
        command = [sys.executable, "-c", ending + code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        imported = done.stderr.rpartition("IMPORTED")[2].split()
        assert "glip_adapt" in imported, done.stderr
        return sorted(set(HEAVY).intersection(imported)), done.returncode, done.stdout

    return run


@pytest.mark.parametrize(
    ("verb", "imported"),
    [
        ("--version", []),
        ("ls trunks", []),
        ("ls datasets", []),
        ("ls methods", []),
        ("ls methods --json", []),
        ("doctor", ["huggingface_hub", "torch"]),  # torch tells the number of threads, and the GPUs
        ("data check shapes", []),
        ("data convert shapes --to yolo --out written", []),
        ("data sample shapes --shots 1 -o sample.json", []),
    ],
)
def test_a_verb_imports_no_more_than_it_needs(run, verb, imported):
    assert run(LIBRARY, *verb.split())[:2] == (imported, 0)


def test_help_imports_nothing_heavy(run):
    heavy, code, out = run(EVERY_HELP)
    assert (heavy, code) == ([], 0)
    assert len(re.findall("Example: glip-adapt", out)) > 20


@pytest.mark.parametrize(
    ("wrong", "imported"),
    [
        ("adapt absent", []),
        ("studio absent", []),
        ("studio shapes --host 192.0.2.1", []),
        ("serve absent", []),  # no address of this machine; the page would be open by then
        ("eval absent", []),
        ("detect x.jpg --classes a --caption b", []),
        ("bench absent.toml --out x", []),
        ("prompt search shapes --knowledge absent.yaml", []),
        ("report absent", ["matplotlib", "pandas"]),
        ("score absent.json absent.json --metric fixed_ap", []),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(run, wrong, imported):
    heavy, code, _ = run(LIBRARY, *wrong.split())
    assert code in (1, 2)
    assert heavy == imported


def test_a_dry_run_lists_runs_before_it_imports_what_measures_memory(run, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'trunks = ["glip-nano"]\ndatasets = ["shapes"]\nmethods = ["lora"]\nshots = [0, 1]\nseeds = [3]\n'
        "[settings.lora]\nrank = 3\n"  # for which nothing is stored
    )
    absent = "import sys; sys.modules['glip_adapt.engine.memory'] = sys.modules['glip_adapt.trunks.catalogue'] = None; "
    heavy, code, out = run(absent + LIBRARY, "bench", plan, "--out", "runs", "--dry-run")
    assert (heavy, code) == ([], 1)
    assert "glip-nano--shapes--lora--1--3" in out


def test_a_dry_run_on_released_trunks_computes_nothing(run, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'trunks = ["glip-nano", "glip-t"]\ndatasets = ["shapes", "Packages"]\nmethods = ["prompt", "lora", "full"]\n'
        "shots = [0, 1]\nseeds = [3]\n"
    )
    assert run(LIBRARY, "bench", plan, "--out", "runs", "--dry-run")[:2] == ([], 0)


def test_doctor_states_what_it_knows_before_it_imports_torch(run):
    _, code, out = run("import sys; sys.modules['torch'] = None; " + LIBRARY, "doctor")
    assert code != 0
    assert re.search(r"torch +│ [0-9]", out)
    assert "Hub cache" in out


def test_the_names_of_the_package_are_imported_when_they_are_used(run):
    code = "import glip_adapt, json; from glip_adapt import Lora, FitConfig, load_dataset, default_recipe; "
    heavy, _, out = run(code + "print(json.dumps(default_recipe('glip-t', Lora().name, 5).learning_rate))")
    assert heavy == []
    assert json.loads(out) == 2e-4
