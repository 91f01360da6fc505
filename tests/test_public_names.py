"""The names that ``glip_adapt`` promises, and what importing it costs."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glip_adapt

HEAVY = {"torch", "torchvision", "transformers", "timm", "peft", "pandas", "matplotlib", "pycocotools", "numpy"}


@pytest.mark.parametrize("name", sorted(glip_adapt._HOME_OF))
def test_a_public_name_is_what_its_home_defines_whatever_was_imported_before(name):
    home = importlib.import_module(glip_adapt._HOME_OF[name])
    assert getattr(glip_adapt, name) is vars(home)[name]
    assert getattr(glip_adapt, name).__doc__


def test_type_checkers_and_the_interpreter_see_the_same_names_in_the_same_homes():
    tree = ast.parse(Path(glip_adapt.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: node.module for node in block.body for alias in node.names}
    assert declared == glip_adapt._HOME_OF
    assert sorted([*declared, "__version__"]) == sorted(glip_adapt.__all__)


def test_importing_the_package_loads_nothing_heavy():
    report = "import sys, glip_adapt; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout.split()
    assert "glip_adapt" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_a_star_import_brings_every_public_name():
    namespace = {}
    exec("from glip_adapt import *", namespace)
    assert set(glip_adapt.__all__) <= namespace.keys()


def test_an_unknown_name_raises_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'glip_adapt' has no attribute 'fitt'"):
        glip_adapt.fitt  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'fitt'"):
        exec("from glip_adapt import fitt")


def test_the_version_is_that_of_the_project_file():
    project = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{glip_adapt.__version__}"\n' in project


@pytest.mark.parametrize(("old", "new"), [("PredictConfig", "ViewConfig"), ("predict", r"model\.predict\(image\)")])
def test_a_name_that_is_gone_says_what_to_write_instead(old, new):
    with pytest.raises(AttributeError, match=f"no attribute '{old}'; write {new} instead"):
        getattr(glip_adapt, old)


@pytest.mark.parametrize(
    ("old", "new"), [("glip", "model.network"), ("classes", "model.prompts"), ("bake", "glip_adapt.bake(model)")]
)
def test_an_attribute_that_is_gone_says_what_to_write_instead(tiny_trunk, old, new):
    model = glip_adapt.attach(tiny_trunk, "zero_shot", classes=["cat"])
    with pytest.raises(AttributeError, match=re.escape(f"no attribute '{old}'; write {new} instead")):
        getattr(model, old)
    assert not hasattr(model, "no_such_thing")


def test_old_argument_orders_say_what_to_write_instead(tiny_trunk, tmp_path):
    with pytest.raises(TypeError, match=re.escape("load_adapter(folder, trunk=trunk)")):
        glip_adapt.load_adapter(tiny_trunk, tmp_path)
    with pytest.raises(TypeError, match=re.escape("from_hub(repository, trunk=trunk)")):
        glip_adapt.from_hub(tiny_trunk, "me/raccoon")
    with pytest.raises(AttributeError, match=re.escape("write trunk.network instead")):
        tiny_trunk.glip  # noqa: B018
