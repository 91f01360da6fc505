import pytest

from glip_adapt.core.plain_text import MOST_SHOWN, excerpt, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb\n  c ", "a b c"), ("\x9b2J\x85fine", "\\x9b2J\\x85fine"), ("\u2028é骰", "\\u2028é骰"), ("", "")],
)
def test_a_line_has_no_control_codes_and_single_spaces(text, shown):
    assert one_line(text) == excerpt(text) == shown


def test_an_excerpt_is_cut_after_its_codes_are_spelled_out():
    assert excerpt("\x1b" * 1000) == ("\\x1b" * 1000)[:MOST_SHOWN]
