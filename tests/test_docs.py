"""The site of ``docs/``: its code runs, its links and figures are there, and it builds without a warning."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest
from pages import NOT_HERE, PROJECT, Block, Story, blocks

import glip_adapt
from glip_adapt import load_dataset

DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FIRST = DOCS / "five-pictures.md"  # other pages go on in the folder that it leaves
OTHERS = [page for page in PAGES if page != FIRST]
SHORTER = {"adapt": ["--method", "prompt", "--config", "two_steps.toml"]}  # words of a page follow and win
IMAGES = 8  # of val and test, instead of 40 and 150
_TABLE = re.compile(r"<!-- rows of (\S+) -->\n((?:\|.*\n)+)")


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """Return a folder of datasets where glyphs13/Tools has few images to validate and test."""
    root = tmp_path_factory.mktemp("data")
    load_dataset("glyphs13/Tools", root=root)
    for file in root.rglob("*.json"):
        document = json.loads(file.read_text(encoding="utf-8"))
        document["images"] = document["images"][: 12 if "train" in file.parts else IMAGES]
        kept = {image["id"] for image in document["images"]}
        document["annotations"] = [note for note in document["annotations"] if note["image_id"] in kept]
        file.write_text(json.dumps(document), encoding="utf-8")
    return root


@pytest.fixture
def story(glip, synthetic, tmp_path, monkeypatch):
    """Run pages in a new folder that holds the plans of the repository too."""
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(synthetic))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(PROJECT / "benchmarks")
    (tmp_path / "two_steps.toml").write_text("max_steps = 2\n", encoding="utf-8")
    return Story(glip, SHORTER)


@pytest.fixture(scope="session")
def left_behind(tmp_path_factory):
    """Return the place where the folder that the first page leaves is kept for the others."""
    return tmp_path_factory.mktemp("first") / "folder"


def go_on(story, folder, left_behind):
    """Put what the first page leaves into the working folder; run that page if no test has."""
    if left_behind.exists():
        shutil.copytree(
            left_behind, folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("benchmarks")
        )
    else:
        story.run(FIRST)
        shutil.copytree(folder, left_behind, symlinks=True)
        story.names.clear()


def test_the_guide_from_five_pictures_on_runs_as_printed(story, tmp_path, left_behind):
    go_on(story, tmp_path, left_behind)
    assert "AP" in (tmp_path / "adapters" / "practice" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_printed(page, story, tmp_path, left_behind):
    if any(block.runs for block in blocks(page)):
        go_on(story, tmp_path, left_behind)
        story.run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestPage:
    def test_the_only_code_that_does_not_run_says_what_it_needs(self, page):
        marks = {block.mark for block in blocks(page) if block.mark}
        assert marks <= NOT_HERE.keys()
        assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0

    def test_rows_that_a_table_took_from_results_are_there(self, page):
        for source, table in _TABLE.findall(page.read_text(encoding="utf-8")):
            stored = (PROJECT / source).read_text(encoding="utf-8").splitlines()
            assert [row for row in table.splitlines() if row not in stored] == []

    def test_files_of_the_repository_that_it_names_exist(self, page):
        named = re.findall(r"`((?:benchmarks|glip_adapt|tests)/[\w./-]+)`", page.read_text(encoding="utf-8"))
        assert [name for name in named if not (PROJECT / name).exists()] == []

    def test_public_names_that_it_imports_are_public(self, page):
        code = "".join(block.code for block in blocks(page) if block.language == "python")
        for line in re.findall(r"from glip_adapt import (.*)", code):
            assert set(line.split(", ")) <= set(glip_adapt.__all__)


def test_the_reference_has_every_public_name_once():
    named = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(f"{home}.{name}" for name, home in glip_adapt._HOME_OF.items())


def test_a_block_that_lists_a_missing_file_is_noticed(story):
    with pytest.raises(AssertionError, match=r"page\.md:7: gone\.txt is not there"):
        story.run_block(Block("page.md:7", "text", "gone.txt  a file\n", ""))
    with pytest.raises(AssertionError, match="mark the block"):
        story.run_block(Block("page.md:7", "bash", "rm everything\n", ""))
    with pytest.raises(AssertionError, match=r"detect nothing\.png"):
        story.run_block(Block("page.md:7", "bash", "glip-adapt detect nothing.png --classes gear\n", ""))


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert not re.search(r"^WARNING", built.stderr, flags=re.MULTILINE)
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert {page.with_suffix(".html").name for page in PAGES} <= {page.name for page in pages}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?:", html) == [], page.name
        for figure in re.findall(r"<img[^>]*src=\"([^\"]+\.png)", html):
            assert (page.parent / figure).is_file(), figure
