"""The README's code runs, on the tiny model."""

import re
from pathlib import Path

import pytest

import glip_adapt

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_as_printed(tiny_trunk, coco_folder, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    data = glip_adapt.load_dataset(coco_folder)
    small = glip_adapt.FitConfig(epochs=1, short_sides=(64,), test_short_side=64, batch_size=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glip_adapt, "load_trunk", lambda name: tiny_trunk, raising=False)
    monkeypatch.setattr(glip_adapt, "load_dataset", lambda path: data, raising=False)
    monkeypatch.setattr(glip_adapt, "default_recipe", lambda trunk, method, shots: small, raising=False)
    exec(code, {})
    assert (tmp_path / "adapters" / "tools-5-shot" / "adapter.json").is_file()


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_local_link_leads_somewhere(link):
    assert (Path(__file__).resolve().parents[1] / link).exists(), link


def test_the_commands_that_ci_and_acceptance_run_are_marked():
    for marker in ("quickstart-command", "test-command"):
        assert re.search(rf"<!-- {marker} -->\n```bash\n[^\n]+\n```", README), marker
