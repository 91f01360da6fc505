import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from made_up import RECORDS

from glip_adapt.bench.report.document import Section, build_document
from glip_adapt.bench.report.page import format_page
from glip_adapt.bench.report.tables import load_table

SVG = (
    '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg xmlns="http://www.w3.org/2000/svg" width="100pt" height="50pt">'
    "<metadata>by http://example.org</metadata>"
    '<path id="p" style="fill: #0072b2; stroke: #123456"/><use href="#p" clip-path="url(#p)"/></svg>'
)
VOID = {"meta", "link", "img", "br", "path", "use", "hr", "input"}


class Checker(HTMLParser):
    """Keeps every tag with its attributes, and fails on one that closes another."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker.seen


@pytest.fixture
def page():
    return format_page(build_document(load_table(RECORDS), "Untrained & made up."), {"Curves <1>": SVG, "Costs": SVG})


def test_tags_close_in_order_and_every_link_has_its_place(page):
    tags = parsed(page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)  # two figures of the same ids as well
    targets = [attributes["href"][1:] for _, attributes in tags if attributes.get("href", "").startswith("#")]
    assert targets
    assert set(targets) <= set(ids)


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.search(r"\b(src|href)=[\"'](?!#)", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_every_section_and_figure_is_there_and_named(page):
    for section in build_document(load_table(RECORDS)):
        assert section.title in page
    figures = [attributes for tag, attributes in parsed(page) if tag == "svg"]
    assert [attributes["aria-label"] for attributes in figures] == ["Curves <1>", "Costs"]
    assert {attributes["role"] for attributes in figures} == {"img"}
    assert "Untrained &amp; made up." in page
    assert page.count("<table>") == 7


def test_colours_follow_the_page_and_unknown_ones_stay(page):
    assert "fill: var(--0072B2); stroke: #123456" in page
    assert "prefers-color-scheme: dark" in page
    used = set(re.findall(r"var\((--\w+)\)", page))
    light, dark = re.findall(r":root \{ (.*?) \}", page)
    for definitions in (light, dark):
        assert used <= set(re.findall(r"(--\w+):", definitions))


def test_cells_are_escaped_and_the_missing_are_marked():
    table = pd.DataFrame({"run": ["<b>&", "–"], "5": ["– (1 of 2 missing)", "1.0"], "error": ["x" * 80, "y"]})
    page = format_page([Section("Head"), Section("Body", table=table)], {})
    assert '<td class="label">&lt;b&gt;&amp;</td><td class="missing">– (1 of 2 missing)</td>' in page
    assert '<td class="label long">' + "x" * 80 in page
    parsed(page)
