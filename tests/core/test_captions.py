import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.captions import ClassPrompt, build_caption, clean_name

GOLDEN = json.loads((Path(__file__).parents[1] / "parity" / "text.json").read_text())

few = settings(max_examples=40, deadline=None)
printable = st.characters(exclude_categories=("Cc", "Cs"))
letters = st.one_of(st.text(printable, min_size=1, max_size=12), st.text("ab_() é", min_size=1, max_size=12))
names = letters.filter(lambda name: clean_name(name).strip())
prompts = st.lists(
    st.builds(ClassPrompt, name=names, prefix=st.text(printable, max_size=5), suffix=st.text(printable, max_size=5)),
    min_size=1,
    max_size=6,
)


@given(prompts)
@few
def test_every_span_holds_its_cleaned_name(classes):
    caption = build_caption(classes)
    assert len(caption.spans) == len(classes)
    assert caption.names == tuple(clean_name(prompt.name) for prompt in classes)
    assert tuple(caption.text[start:end] for start, end in caption.spans) == caption.names


@given(prompts)
@few
def test_what_surrounds_the_spans_is_prefix_suffix_and_separator(classes):
    caption = build_caption(classes)
    rest, position = [], 0
    for start, end in caption.spans:
        rest.append(caption.text[position:start])
        position = end
    rest.append(caption.text[position:])
    between = [f"{a.suffix}. {b.prefix}" for a, b in pairwise(classes)]
    assert rest == [classes[0].prefix, *between, classes[-1].suffix]


@given(st.lists(names, min_size=1, max_size=6))
@few
def test_a_plain_string_is_its_own_name(classes):
    assert build_caption(classes) == build_caption([ClassPrompt(name=name) for name in classes])


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: "-".join(entry["labels"])[:40])
def test_the_caption_is_that_of_the_public_code(entry):
    worded = entry["manual_prompt"]
    classes = [ClassPrompt(**prompt) for prompt in worded] if worded else entry["labels"]
    assert build_caption(classes).text == entry["caption"]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("stop_sign", "stop sign"),
        ("T-Rex", "T-Rex"),
        ("Café-au-lait (milk)", "Café-au-lait "),
        ("tennis racket  (wood)", "tennis racket "),
        ("a (b) c (d)", "a "),  # from the first to the last parenthesis, as the public pattern does
        ("half (open", "half (open"),
        ("two__lines", "two lines"),
        ("a    b", "a  b"),  # pairs of spaces become one, once
    ],
)
def test_awkward_names_are_cleaned_as_in_the_public_code(name, cleaned):
    assert clean_name(name) == cleaned


@given(st.text("ab() \n", max_size=30))
def test_parentheses_are_dropped_as_by_the_public_pattern(name):
    assert clean_name(name) == re.sub(r"\(.*\)", "", name).replace("  ", " ")


def test_a_name_of_open_parentheses_takes_no_longer_than_its_length():
    assert clean_name("(" * 2**20) == "(" * 2**20  # minutes, if each is looked at from every other


@pytest.mark.parametrize("text", ["\x1b[2J", "\x00", "\x9b", "\ud800"])
@pytest.mark.parametrize("field", ["name", "prefix", "suffix"])
def test_control_characters_are_refused(text, field):
    with pytest.raises(ValueError, match=r"class .*red box.* holds control"):
        build_caption([ClassPrompt(**{"name": "red box", field: f"red box{text}"})])


def test_hand_computed_spans():
    caption = build_caption(["stop_sign (red)", ClassPrompt(name="holes", prefix="some ", suffix=" on the road"), "x"])
    assert caption.text == "stop sign . some holes on the road. x"
    assert caption.spans == ((0, 10), (17, 22), (36, 37))


@pytest.mark.parametrize("name", ["", " ", "_", "(all)", " (a) "])
def test_a_name_that_cleaning_empties_is_an_error_naming_it(name):
    with pytest.raises(ValueError, match="empty after cleaning") as failure:
        build_caption(["cat", name])
    assert repr(name) in str(failure.value)


def test_a_caption_of_no_classes_is_an_error():
    with pytest.raises(ValueError, match="at least one class name"):
        build_caption([])
