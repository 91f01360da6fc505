import base64
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from made_up import RECORDS

from glip_adapt.bench.report.document import build_document
from glip_adapt.bench.report.markup import Section, format_page
from glip_adapt.bench.report.tables import load_table

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><path id="p"/></svg>'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Checker(HTMLParser):
    """Keeps every tag with its attributes, and fails on one that closes another."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
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
    assert len(set(ids)) == len(ids)
    targets = [attributes["href"][1:] for _, attributes in tags if attributes.get("href", "").startswith("#")]
    assert targets == ids


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.search(r"\b(src|href)=[\"'](?!#|data:image/svg\+xml;base64,)", page)
    assert not re.search(r"@import|url\(|https?:|<script", page)


def test_every_section_and_figure_is_there_and_named(page):
    for section in build_document(load_table(RECORDS)):
        assert section.title in page
    figures = [attributes for tag, attributes in parsed(page) if tag == "img"]
    assert [attributes["alt"] for attributes in figures] == ["Curves <1>", "Costs"]
    assert [base64.b64decode(attributes["src"].partition(",")[2]) for attributes in figures] == [SVG, SVG]
    assert "Untrained &amp; made up." in page
    assert page.count("<table>") == 7


def test_cells_are_escaped_and_words_stand_on_the_left():
    table = pd.DataFrame({"run": ["<b>&", "–"], "5": ["– (1 of 2 missing)", "1.0"]})
    page = format_page([Section("Head"), Section("Body", table=table)], {})
    assert '<td class="label">&lt;b&gt;&amp;</td><td class="number">– (1 of 2 missing)</td>' in page
    parsed(page)
