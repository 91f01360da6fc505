"""The README's code runs as printed, for real."""

import re
import tomllib

import pytest
from pages import PROJECT, Story, blocks

import glip_adapt

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_lines_of_python_run_as_printed(glip, tmp_path, monkeypatch, capsys):
    (block,) = (block for block in blocks(PROJECT / "README.md") if block.language == "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(tmp_path / "data"))
    story = Story(glip)
    story.run_block(block)
    names = story.names
    (promised,) = re.findall(r"COCO AP: (0\.\d+)", block.code)
    assert float(capsys.readouterr().out) == pytest.approx(float(promised), abs=0.02)
    assert names["model"].class_names == names["data"].classes
    found = names["found"]
    assert len(found) == 2
    assert all(len(one) and one.scores.min() >= 0.3 for one in found)


def test_every_public_name_that_it_mentions_exists():
    mentioned = set(re.findall(r"\b(\w+)\(", " ".join(re.findall(r"`([^`\n]+)`", README))))
    mentioned -= {"add", "for_classes", "ground", "predict", "save"}  # methods
    assert {"ZeroShot", "draw_detections"} <= mentioned
    assert sorted(mentioned - set(glip_adapt.__all__)) == []


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_local_link_leads_somewhere(link):
    assert (PROJECT / link).exists(), link


def test_the_commands_that_ci_and_acceptance_run_are_marked():
    for marker in ("quickstart-command", "test-command"):
        assert re.search(rf"<!-- {marker} -->\n```bash\n[^\n]+\n```", README), marker


def test_the_extra_all_holds_every_extra_for_users_but_that_with_a_database():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    held = {name: set(re.search(r"\[(.*)\]", extras[name][-1])[1].split(",")) for name in ("all", "dev")}
    assert held["all"] == extras.keys() - {"all", "dev", "docs", "fiftyone"}
    assert {"gligen", "serve", "track"} <= held["dev"]
